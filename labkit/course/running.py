"""The course as one program: run chapters headlessly, gather their metrics, write the report.

    notebooks/NN_name.ipynb --papermill--> out/NN_name.ipynb, out/NN_name.html
                                       --> out/metrics.json, out/index.html

A chapter that fails is named with its cell and its error; the others still run.
`python -m labkit.course stamp` writes the repository's address and the measured time and memory
into notebooks and README.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import labkit
from labkit import runtime
from labkit.course import listing
from labkit.errors import LabError

#: Where `labkit.notebook.report` puts a chapter's numbers inside an output.
METRICS_MIME = "application/vnd.labkit.metrics+json"

#: What a reader of a static page can see, best first: the picture of a widget, not its empty frame.
STATIC_PRIORITY = (
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
)


class ChapterFailed(LabError):
    """One or more chapters raised; the message names each with its cell and error."""

    exit_code = 1


@dataclass(frozen=True)
class Chapter:
    """One notebook of the course."""

    path: Path
    """The notebook."""

    @property
    def name(self) -> str:
        """File name without its ending, such as "03_attention"."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Two digits."""
        return self.name[:2]

    @property
    def title(self) -> str:
        """The text of its first heading."""
        for cell in _read(self.path).cells:
            if found := re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE):
                return found.group(1).strip()
        return self.name


# --- finding -----------------------------------------------------------------------------------


def notebooks_folder() -> Path:
    """The checkout's notebooks/, beside the package or under the current folder.

    Raises:
        LabError: labkit is installed without its notebooks.
    """
    places = [Path(labkit.__file__).resolve().parents[1] / "notebooks", Path.cwd() / "notebooks"]
    for place in places:
        if any(place.glob("[0-9][0-9]_*.ipynb")):
            return place
    raise LabError(
        f"No notebooks in {places[0]} or {places[1]}: clone {labkit.REPOSITORY} and run from there."
    )


def chapters(names: Iterable[str] = (), folder: Path | str | None = None) -> list[Chapter]:
    """Chapters in order: all of them, or those named by number or name.

    Args:
        names: "3", "03" or "03_attention"; none means all.
        folder: where the notebooks are; None looks for the checkout's.

    Raises:
        LabError: a name is no chapter.
    """
    place = Path(folder) if folder is not None else notebooks_folder()
    found = [Chapter(path) for path in sorted(place.glob("[0-9][0-9]_*.ipynb"))]
    if not found:
        raise LabError(f"No chapters in {place}: a chapter is a file such as 03_attention.ipynb.")
    wanted = [names] if isinstance(names, str) else list(names)
    chosen = []
    for name in wanted:
        stem = Path(name).stem
        match = [it for it in found if stem in (it.name, it.number) or stem.zfill(2) == it.number]
        if not match:
            there = ", ".join(it.name for it in found)
            raise LabError(f"There is no chapter {name!r}; there are {there}.")
        chosen += match
    return sorted(set(chosen), key=lambda it: it.name) if wanted else found


# --- running -----------------------------------------------------------------------------------


def run(
    names: Iterable[str] = (),
    profile: str = "auto",
    out: Path | str = "runs/course",
    *,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Run chapters headlessly; write the executed notebooks, metrics.json and index.html.

    Args:
        names: chapters by number or name; none means all.
        profile: "smoke", "cpu", "gpu" or "auto".
        out: folder to write, made if it is not there.
        seed: the notebooks' seed parameter.
        folder: where the notebooks are; None looks for the checkout's.
        progress: show a bar per chapter, in cells.

    Returns:
        What metrics.json holds: name -> {"seconds", "peak_rss_mb", "metrics"}, and "error" where a
        chapter failed.

    Raises:
        ChapterFailed: after everything was run and written, if a chapter failed.
    """
    profile = runtime.resolve_profile(profile)
    chosen = chapters(names, folder)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for chapter in chosen:
        results[chapter.name] = _run_one(chapter, profile, seed, target, progress)
        _write(target / "metrics.json", json.dumps(results, indent=2) + "\n")
        _write(target / "index.html", _index(chosen, results, profile))
    failed = [f"{name}: {it['error']}" for name, it in results.items() if "error" in it]
    if failed:
        raise ChapterFailed(f"{len(failed)} of {len(chosen)} chapters failed: " + "; ".join(failed))
    return results


def _run_one(
    chapter: Chapter, profile: str, seed: int, out: Path, progress: bool
) -> dict[str, Any]:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    written = out / chapter.path.name
    written.unlink(missing_ok=True)  # an older run must not speak for this one
    began = time.perf_counter()
    error = None
    try:
        papermill.execute_notebook(
            str(chapter.path),
            str(written),
            parameters={"profile": profile, "seed": seed},
            kernel_name="python3",
            language="python",
            cwd=str(chapter.path.parent),
            progress_bar={"desc": chapter.name, "unit": "cell"} if progress else False,  # type: ignore[arg-type]
            log_output=False,
            extra_arguments=_KERNEL_ARGUMENTS,
        )
    except PapermillExecutionError as failure:
        # The parameters that papermill injects are a cell of their own, which the notebook has not.
        number = (failure.exec_count or 1) - 1
        first_line = failure.source.strip().splitlines()[0][:60]
        error = (
            f"cell [{number}] ({first_line}) raised {failure.ename}: {_one_line(failure.evalue)}"
        )
    except Exception as failure:
        # The kernel died, the notebook is no notebook: the other chapters still run.
        error = f"{type(failure).__name__}: {_one_line(failure)}"
    result: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_rss_mb": None,
        "metrics": {},
    }
    if written.exists():
        payload = metrics_of(written) or {}
        result["peak_rss_mb"] = payload.get("peak_rss_mb")
        result["metrics"] = payload.get("metrics", {})
        _write(written.with_suffix(".html"), to_html(written))
    return {**result, "error": error} if error else result


def _one_line(said: object) -> str:
    return " ".join(str(said).split())[:300]


#: ipykernel 7 warns at every start that local sockets carry plain text; only errors are news here.
_KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]


def execute(path: Path | str, out: Path | str, profile: str = "cpu") -> dict[str, Any]:
    """Run a notebook top to bottom for committing: outputs and widget state, no traces of the run.

    Args:
        path: the notebook; its parameters cell stays as it is.
        out: the notebook to write.
        profile: set as LABKIT_PROFILE, which `profile = "auto"` reads.

    Returns:
        Its metrics payload (see `metrics_of`).
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = _read(Path(path))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=3600,
        extra_arguments=_KERNEL_ARGUMENTS,
        record_timing=False,
        resources={"metadata": {"path": str(Path(out).resolve().parent)}},
    )
    try:
        client.execute(env={**os.environ, "LABKIT_PROFILE": profile})
    except CellExecutionError as failure:
        raise ChapterFailed(f"{Path(path).name}: {failure.ename}: {failure.evalue}") from failure
    _write(Path(out), nbformat.writes(notebook) + "\n")
    return metrics_of(Path(out)) or {}


def metrics_of(notebook: Path | str) -> dict[str, Any] | None:
    """What `report` recorded in an executed notebook, or None.

    Returns:
        {"chapter", "profile", "seconds", "peak_rss_mb", "metrics"}.
    """
    found = None
    for cell in _read(Path(notebook)).cells:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(METRICS_MIME, found)
    return dict(found) if found is not None else None


# --- report ------------------------------------------------------------------------------------


def to_html(notebook: Path | str) -> str:
    """An executed notebook as one HTML page; widgets show their static picture."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config({"NbConvertBase": {"display_data_priority": list(STATIC_PRIORITY)}})
    content = _read(Path(notebook))
    content.metadata.pop("widgets", None)
    page, _ = HTMLExporter(config=config).from_notebook_node(content)
    return page.replace("</head>", f"<style>{_CODE_FONT}</style></head>", 1)


#: nbconvert leaves fenced code inside outputs in the text font.
_CODE_FONT = ".jp-RenderedMarkdown .highlight pre { font-family: monospace; font-size: 13px }"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LLM Lab: report</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8882; --blue: #0072B2; --red: #D55E00 }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 3rem auto;
  padding: 0 1.2rem }}
h1 {{ margin: 0; font-size: 1.9rem }} .sub {{ opacity: .7; margin: .2rem 0 2rem }}
table {{ border-collapse: collapse; width: 100% }}
th {{ text-align: left; font-size: .8rem; font-weight: 600; opacity: .65 }}
th, td {{ padding: .7rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
th.n {{ text-align: right }}
a {{ color: var(--blue); font-weight: 600; text-decoration: none }}
a:hover {{ text-decoration: underline }}
dl {{ display: flex; flex-wrap: wrap; gap: .35rem; margin: 0 }}
dl div {{ background: var(--soft); border-radius: .4rem; padding: .1rem .5rem; font-size: .85rem }}
dt, dd {{ display: inline; margin: 0 }} dt {{ opacity: .7 }} dd {{ font-weight: 600 }}
.error {{ color: var(--red); font-size: .9rem }}
.bar {{ height: .3rem; border-radius: .2rem; background: var(--blue);
  margin-top: .35rem; margin-left: auto }}
</style></head><body>
<h1>LLM Lab</h1><p class="sub">{summary}</p>
<table><thead><tr><th>Chapter</th><th class="n">Time</th><th class="n">Peak memory</th>
<th>Measured</th></tr></thead>
<tbody>{rows}</tbody></table></body></html>
"""


def _index(chosen: Sequence[Chapter], results: dict[str, dict], profile: str) -> str:
    longest = max((it["seconds"] for it in results.values()), default=1.0) or 1.0
    rows = []
    for chapter in chosen:
        if chapter.name not in results:
            rows.append(
                f"<tr><td>{escape(chapter.title)}</td><td></td><td></td><td>waiting</td></tr>"
            )
            continue
        it = results[chapter.name]
        numbers = "".join(
            f"<div><dt>{escape(name.replace('_', ' '))}</dt> <dd>{_figure(value)}</dd></div>"
            for name, value in it["metrics"].items()
        )
        measured = f"<dl>{numbers}</dl>"
        if "error" in it:
            measured += f'<p class="error">{escape(it["error"])}</p>'
        memory = f"{it['peak_rss_mb']:,.0f} MB" if it["peak_rss_mb"] else "–"
        bar = f'<div class="bar" style="width:{max(2, 100 * it["seconds"] / longest):.0f}%"></div>'
        rows.append(
            f'<tr><td><a href="{chapter.name}.html">{escape(chapter.title)}</a></td>'
            f'<td class="n">{_clock(it["seconds"])}{bar}</td><td class="n">{memory}</td>'
            f"<td>{measured}</td></tr>"
        )
    total = sum(it["seconds"] for it in results.values())
    failed = sum("error" in it for it in results.values())
    summary = (
        f"{len(results)} of {len(chosen)} chapters run under the profile <b>{profile}</b> in "
        f"{_clock(total)}"
        + (f", {failed} failed" if failed else "")
        + f" · labkit {labkit.__version__}"
    )
    return _PAGE.format(summary=summary, rows="\n".join(rows))


def _figure(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


# --- stamping ----------------------------------------------------------------------------------

TABLE_BEGIN, TABLE_END = "<!-- chapters:begin -->", "<!-- chapters:end -->"


def colab_badge(chapter: Chapter) -> str:
    """The Markdown badge that opens a chapter in Colab."""
    path = labkit.REPOSITORY.removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/{chapter.path.name})"
    )


def install_cell() -> str:
    """The source of the cell tagged `colab`."""
    return (
        "# In Colab this installs the lab; anywhere else it does nothing.\n"
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f'    %pip install -q "labkit @ git+{labkit.REPOSITORY}"'
    )


def stamp(root: Path | str | None = None, *, write: bool = True) -> list[Path]:
    """Write labkit.REPOSITORY, measured figures and today's sources into notebooks and README.md.

    A chapter's card says `<!--time--><!--/time-->` and `<!--memory--><!--/memory-->` where the time
    and peak memory of its committed run belong. What a chapter shows of the package is renewed: it
    is a function of the package alone, as a run would find it.

    Args:
        root: the checkout; None takes the one of `notebooks_folder`.
        write: False only looks.

    Returns:
        The files that were (or would be) changed.
    """
    import nbformat

    base = Path(root) if root is not None else notebooks_folder().parent
    changed = []
    found = chapters(folder=base / "notebooks")
    for chapter in found:
        notebook = _read(chapter.path)
        payload = metrics_of(chapter.path) or {}
        before = nbformat.writes(notebook)
        for cell in notebook.cells:
            if "colab" in cell.metadata.get("tags", []):
                cell.source = install_cell()
            elif cell.cell_type == "markdown":
                cell.source = _BADGE.sub(lambda _, it=chapter: colab_badge(it), cell.source)
                cell.source = _measured(cell.source, payload)
            for output in cell.get("outputs", []):
                shown = output.get("metadata", {}).get("labkit")
                if shown:
                    source = listing.rendered(listing.find(shown["shows"]), shown["docstring"])
                    output.data.update(source)
        after = nbformat.writes(notebook)
        if after != before:
            changed.append(chapter.path)
            if write:
                _write(chapter.path, after + "\n")
    readme = base / "README.md"
    if readme.exists():
        before = readme.read_text(encoding="utf-8")
        after = _stamp_readme(before, found)
        if after != before:
            changed.append(readme)
            if write:
                _write(readme, after)
    return changed


_BADGE = re.compile(
    r"\[!\[Open in Colab\]\([^)]*\)\]\(https://colab\.research\.google\.com/github/[^)]*\)", re.I
)


def _measured(text: str, payload: dict[str, Any]) -> str:
    """Put the measured time and memory between their comments (see `stamp`)."""
    if "seconds" not in payload:
        return text
    shown = {
        "time": _clock(payload["seconds"]),
        "memory": f"{payload['peak_rss_mb'] / 1000:.1f} GB",
    }
    for name, value in shown.items():
        text = re.sub(
            f"<!--{name}-->.*?<!--/{name}-->", f"<!--{name}-->{value}<!--/{name}-->", text
        )
    return text


def _stamp_readme(text: str, found: Sequence[Chapter]) -> str:
    text = re.sub(r"git\+https?://[^\s\"'`)]+", f"git+{labkit.REPOSITORY}", text)
    text = re.sub(r"git clone https?://[^\s\"'`)]+", f"git clone {labkit.REPOSITORY}", text)
    if TABLE_BEGIN not in text or TABLE_END not in text:
        return text
    lines = ["| chapter | time | peak memory | |", "|---|---:|---:|---|"]
    for chapter in found:
        payload = metrics_of(chapter.path) or {}
        took = _clock(payload["seconds"]) if "seconds" in payload else ""
        memory = f"{payload['peak_rss_mb'] / 1000:.1f} GB" if payload.get("peak_rss_mb") else ""
        link = f"[{chapter.title}](notebooks/{chapter.path.name})"
        lines.append(f"| {link} | {took} | {memory} | {colab_badge(chapter)} |")
    before, rest = text.split(TABLE_BEGIN, 1)
    after = rest.split(TABLE_END, 1)[1]
    return f"{before}{TABLE_BEGIN}\n" + "\n".join(lines) + f"\n{TABLE_END}{after}"


def _read(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise LabError(f"{path} is not a readable notebook: {error}") from error


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stamp", help="write the repository's address and measured figures")
    one = commands.add_parser("execute", help="run one notebook for committing")
    one.add_argument("notebook")
    one.add_argument("--out", default=None, help="default: in place")
    one.add_argument("--profile", default="cpu")
    given = parser.parse_args(arguments)
    try:
        if given.command == "stamp":
            for path in stamp():
                print(f"stamped {path}")
        else:
            payload = execute(given.notebook, given.out or given.notebook, given.profile)
            print(json.dumps(payload, indent=2))
    except LabError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    sys.exit(_main())

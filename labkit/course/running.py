"""Running chapters: all of them headlessly for a report, or one of them for committing.

    notebooks/NN_name.ipynb --papermill--> out/NN_name.ipynb, out/NN_name.html     (`run`)
                                       --> out/metrics.json, out/index.html
    notebooks/NN_name.ipynb --nbclient---> the same with outputs and fingerprint   (`execute`)

A chapter that fails is named with its cell and its error; the others still run.
"""

import functools
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.atomic import write_json, write_text
from labkit.course import kernels, report
from labkit.course.chapter import (
    Chapter,
    chapters,
    metrics_of,
    one_chapter,
    read_notebook,
    write_notebook,
)
from labkit.course.fingerprints import fingerprint
from labkit.course.profiles import resolve_profile
from labkit.course.recorded import KEEP, recorded_folder
from labkit.errors import LabError


class ChapterFailed(LabError):
    """One or more chapters raised; the message names each with its cell and error."""

    exit_code = 1


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
        profile: "smoke", "cpu", "hour", "gpu" or "auto".
        out: folder to write, made if it is not there.
        seed: the notebooks' seed parameter.
        folder: where the notebooks are; None looks for the checkout's.
        progress: show a bar per chapter, in cells.

    Returns:
        What metrics.json holds: name -> {"seconds", "peak_rss_mb", "metrics"}, and "error" where a
        chapter failed.

    Raises:
        LabError: `out` is the folder of the notebooks, whose files a run would replace.
        ChapterFailed: after everything was run and written, if a chapter failed.
    """
    profile = resolve_profile(profile)
    chosen = chapters(names, folder)
    target = Path(out)
    if any(target.resolve() == chapter.path.parent.resolve() for chapter in chosen):
        raise LabError(
            f"--out {out} holds the notebooks themselves, which a run would replace; "
            "give another folder, such as runs/course"
        )
    target.mkdir(parents=True, exist_ok=True)
    manager = kernels.manager_of(profile)
    results: dict[str, dict[str, Any]] = {}
    for chapter in chosen:
        results[chapter.name] = _run_one(chapter, profile, seed, target, progress, manager)
        write_json(target / "metrics.json", results)
        write_text(target / "index.html", report.index_page(chosen, results, profile))
    failed = [f"{name}: {it['error']}" for name, it in results.items() if "error" in it]
    if failed:
        raise ChapterFailed(f"{len(failed)} of {len(chosen)} chapters failed: " + "; ".join(failed))
    return results


def _run_one(
    chapter: Chapter, profile: str, seed: int, out: Path, progress: bool, manager: type
) -> dict[str, Any]:
    written = out / chapter.path.name
    written.unlink(missing_ok=True)  # an older run must not speak for this one
    began = time.perf_counter()
    error = _run_headlessly(chapter, written, profile, seed, progress, manager)
    result: dict[str, Any] = {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_rss_mb": None,
        "metrics": {},
    }
    if written.exists():
        try:
            payload = metrics_of(written) or {}
            result["peak_rss_mb"] = payload.get("peak_rss_mb")
            result["metrics"] = payload.get("metrics", {})
            write_text(written.with_suffix(".html"), report.to_html(written))
        except Exception as failure:
            # What the chapter shows cannot be made a page: the other chapters still run.
            error = error or f"its page failed with {type(failure).__name__}: {_one_line(failure)}"
    return {**result, "error": error} if error else result


def _run_headlessly(
    chapter: Chapter, written: Path, profile: str, seed: int, progress: bool, manager: type
) -> str | None:
    """Run a chapter into `written`, in a kernel of `manager`; return what went wrong."""
    import papermill
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    papermill_engines.register(_ENGINE, _engine())
    try:
        papermill.execute_notebook(
            str(chapter.path),
            str(written),
            parameters={"profile": profile, "seed": seed},
            engine_name=_ENGINE,
            kernel_name="python3",
            language="python",
            cwd=str(chapter.path.parent),
            progress_bar={"desc": chapter.name, "unit": "cell"} if progress else False,  # type: ignore[arg-type]
            log_output=False,
            extra_arguments=_KERNEL_ARGUMENTS,
            kernel_manager_class=manager,
        )
    except PapermillExecutionError as failure:
        # The parameters that papermill injects are a cell of their own, which the notebook has not.
        number = (failure.exec_count or 1) - 1
        first_line = failure.source.strip().splitlines()[0][:60]
        return f"cell [{number}] ({first_line}) raised {failure.ename}: {_one_line(failure.evalue)}"
    except Exception as failure:
        # The kernel died, the notebook is no notebook: the other chapters still run.
        return f"{type(failure).__name__}: {_one_line(failure)}"
    return None


_ENGINE = "labkit"

#: Seconds between two saves of a chapter that is being run.
SAVE_EVERY = 10


@functools.cache
def _engine() -> Any:
    """Papermill's engine, which writes the notebook now and then and at its end.

    Papermill writes it before and after every cell, of text or of code: 160 times a chapter.
    """
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            save = nb_man.save

            def save_now_and_then(**changes: Any) -> None:
                if (nb_man.now() - nb_man.last_save_time).total_seconds() >= SAVE_EVERY:
                    save(**changes)

            nb_man.save = save_now_and_then
            try:
                super().execute_managed_notebook(nb_man, kernel_name, **options)
            finally:
                nb_man.save = save  # what follows, papermill's last save, writes whatever there is

    return Engine


def _one_line(said: object) -> str:
    return " ".join(str(said).split())[:300]


#: The kernel keeps its own log to itself: ipykernel 7 warns at every start that local sockets carry
#: plain text, and calls it an error when it is told to end while it still answers. What a cell
#: raises, and a kernel that dies, are reported all the same.
#: Until `start`, which follows the imports of each chapter, nothing is searched for unused objects:
#: among the million that torch and transformers make, those searches are a fifth of their import.
_KERNEL_ARGUMENTS = [
    "--IPKernelApp.log_level=CRITICAL",
    "--IPKernelApp.exec_lines=import gc; gc.disable()",
]


def execute(path: Path | str, out: Path | str, profile: str = "cpu") -> dict[str, Any]:
    """Run a notebook top to bottom for committing (see `execute_notebook`).

    Args:
        path: the notebook; its parameters cell stays as it is.
        out: the notebook to write.
        profile: set as LABKIT_PROFILE, which `profile = "auto"` reads.

    Returns:
        Its metrics payload (see `metrics_of`).
    """
    return execute_notebook(read_notebook(Path(path)), Path(path).name, Path(out), profile)


def execute_notebook(
    notebook: Any, name: str, out: Path, profile: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a notebook in memory and write it: outputs, widget state, the fingerprint of the run.

    Nothing else of the run stays (times, versions), and nothing is written if a cell fails.

    Args:
        notebook: as nbformat reads it.
        name: what an error calls it.
        out: the notebook to write; the kernel runs in its folder.
        profile: set as LABKIT_PROFILE, which `profile = "auto"` reads.
        environment: further variables of the kernel.

    Returns:
        Its metrics payload (see `metrics_of`).

    Raises:
        ChapterFailed: a cell raised, or the kernel died or took an hour for one cell.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    profile = resolve_profile(profile)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    metadata: Any = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    notebook.metadata = metadata
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=3600,
        extra_arguments=_KERNEL_ARGUMENTS,
        record_timing=False,
        resources={"metadata": {"path": str(out.resolve().parent)}},
    )
    try:
        client.execute(env={**os.environ, **(environment or {}), "LABKIT_PROFILE": profile})
    except CellExecutionError as failure:
        raise ChapterFailed(f"{name}: {failure.ename}: {failure.evalue}") from failure
    except (CellTimeoutError, DeadKernelError) as failure:
        raise ChapterFailed(f"{name}: {_one_line(failure)}") from failure
    notebook.metadata["labkit"] = nbformat.from_dict(fingerprint(notebook))
    write_notebook(out, notebook)
    return metrics_of(out) or {}


def record(name: str, folder: Path | None = None, profile: str = "hour") -> list[Path]:
    """Run a chapter in the sizes of a profile; what it records goes into data/recorded/.

    Args:
        name: number or name of the chapter, or the path of a notebook.
        folder: where the records are kept; None takes `recorded_folder`.
        profile: "hour" or "gpu".

    Returns:
        The files written.

    Raises:
        ChapterFailed: a cell raised.
        LabError: the chapter records nothing in that profile.
    """
    chapter = one_chapter(name)
    place = folder or recorded_folder()
    with tempfile.TemporaryDirectory() as scratch:
        notebook = read_notebook(chapter.path)
        written = Path(scratch) / chapter.path.name
        execute_notebook(notebook, chapter.path.name, written, profile, {KEEP: scratch})
        made = sorted(Path(scratch).glob(f"{chapter.number}_*.jsonl"))
        if not made:
            raise LabError(
                f"{chapter.path.name} records nothing under {profile!r}: it has no "
                "lab.recorded(...) for it"
            )
        place.mkdir(parents=True, exist_ok=True)
        for path in made:
            write_text(place / path.name, path.read_text(encoding="utf-8"))
    return [place / path.name for path in made]

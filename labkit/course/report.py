"""The report of a run: every chapter as a page, and one page that links them.

out/NN_name.ipynb  ──>  out/NN_name.html      (`to_html`)
results            ──>  out/index.html        (`index_page`)
"""

import re
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import labkit
from labkit.course.chapter import Chapter, read_notebook
from labkit.course.pictures import PICTURES, described
from labkit.errors import LabError
from labkit.runtime import duration

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


def to_html(notebook: Path | str) -> str:
    """An executed notebook as one HTML page that needs no network and runs no script.

    Widgets show their static picture, formulas are MathML. The code of cells tagged `hide-input`
    is folded, as in the book.
    """
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    class Page(HTMLExporter):
        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            return with_mathml(super().markdown2html(context, source))

    config = Config({"NbConvertBase": {"display_data_priority": list(STATIC_PRIORITY)}})
    content = described(read_notebook(Path(notebook)))
    content.metadata.pop("widgets", None)
    page, _ = Page(config=config, raw_template=_TEMPLATE).from_notebook_node(content)
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    page = _with_alternatives(page, content)
    style = f"{_FONTS}{FORMULA_STYLE}{_FOLDED}{labels_style('.celltag_', 'summary')}"
    return page.replace("</head>", f"<style>{style}</style></head>", 1)


def _with_alternatives(page: str, notebook: Any) -> str:
    """The page whose pictures say in words what their outputs' plain text says."""
    said = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in PICTURES:
                if kind in data:
                    said["".join(data[kind].split())] = data["text/plain"]

    def with_words(found: re.Match[str]) -> str:
        picture = "".join(found["picture"].split())
        if picture not in said:
            return found[0]
        words = escape(said[picture], quote=True)
        return re.sub(r'alt="[^"]*"', "", found[0]).replace("<img", f'<img alt="{words}"', 1)

    embedded = r'<img\b[^>]*?src="data:image/(?:png|jpeg);base64,(?P<picture>[^"]+)"[^>]*>'
    return re.sub(embedded, with_words, page)


#: The button that unfolds the code of a cell, and the one that folds it again.
SHOW, HIDE = "Show the code", "Hide the code"
#: What a folded cell holds, by its tag: it stands behind those words.
LABELS = {
    "colab": "installation",
    "parameters": "parameters",
    "imports": "imports",
    "sizes": "sizes",
    "drawing": "drawing",
    "plot": "plot",
}


def labels_style(cell: str, button: str) -> str:
    """CSS that says on each button what its cell holds.

    Args:
        cell: how a page selects a cell by its tag, without the tag.
        button: how it selects the words of the button in it.

    >>> labels_style(".tag_", "summary").splitlines()[0]
    '.tag_colab > details summary::after { content: " · installation" }'
    """
    return "\n".join(
        f'{cell}{tag} > details {button}::after {{ content: " · {label}" }}'
        for tag, label in LABELS.items()
    )


_TEMPLATE = f"""{{% extends "lab/index.html.j2" %}}
{{% block input_group %}}
{{%- if "hide-input" in cell.metadata.get("tags", []) -%}}
<details><summary data-hide="{HIDE}">{SHOW}</summary>{{{{ super() }}}}</details>
{{%- else -%}}
{{{{ super() }}}}
{{%- endif -%}}
{{% endblock input_group %}}"""

_FOLDED = """
.jp-CodeCell > details > summary { cursor: pointer; color: #0072B2; font: 13px sans-serif;
  margin-left: var(--jp-cell-prompt-width, 64px); padding: 2px 8px }
.jp-CodeCell > details[open] > summary { font-size: 0 }
.jp-CodeCell > details[open] > summary::before { content: attr(data-hide); font-size: 13px }
.jp-CodeCell > details[open] > summary::after { font-size: 13px }
.jp-CodeCell:has(> details:only-child:not([open])) { display: inline-block }
"""

_NO_FORMULAS = re.compile(r"(<pre\b.*?</pre>|<code\b.*?</code>|<[^>]+>)", re.DOTALL)
_FORMULA = re.compile(
    r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$]*[^\s$])?)\$"
    r"|(?P<environment>\\begin\{(?P<name>\w+\*?)\}.*?\\end\{(?P=name)\})",
    re.DOTALL,
)


def with_mathml(html: str) -> str:
    """HTML with each formula between dollar signs as MathML; code stays as it is.

    A formula that cannot be converted stays as it is written, too.
    """
    parts = _NO_FORMULAS.split(html)  # every second one is a tag, or code
    return "".join(p if i % 2 else _FORMULA.sub(_mathml, p) for i, p in enumerate(parts))


def mathml(latex: str, block: bool) -> str:
    """A formula as MathML: the report's, and the web book's.

    Args:
        latex: without its dollar signs.
        block: whether it stands on a line of its own.

    Raises:
        Exception: whatever latex2mathml raises of LaTeX that it does not know.
    """
    from latex2mathml.converter import convert

    return convert(latex, display="block" if block else "inline")


def _mathml(found: re.Match[str]) -> str:
    latex = found["inline"] or found["block"] or found["environment"]
    try:
        return mathml(unescape(latex), block=not found["inline"])
    except Exception:  # whatever LaTeX it does not know: a reader of LaTeX can still read it
        return found[0]


#: nbconvert leaves fenced code inside outputs in the text font.
_FONTS = ".jp-RenderedMarkdown .highlight pre { font-family: monospace; font-size: 13px }"

#: Formulas look small beside text; on the pages of the report and of the book.
FORMULA_STYLE = """
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; font-size: 1.15em }
math[display=block] { margin: .6em 0 }
"""


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


def index_page(chosen: Sequence[Chapter], results: dict[str, dict], profile: str) -> str:
    """The page that lists chapters with their time, memory and metrics and links their pages.

    Args:
        chosen: the chapters of this run, in order.
        results: those that have run: name -> {"seconds", "peak_rss_mb", "metrics"} and maybe
            "error".
        profile: as shown to the reader.
    """
    longest = max((it["seconds"] for it in results.values()), default=1.0) or 1.0
    rows = []
    for chapter in chosen:
        if chapter.name not in results:
            rows.append(
                f"<tr><td>{escape(_title(chapter))}</td><td></td><td></td><td>waiting</td></tr>"
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
            f'<tr><td><a href="{chapter.name}.html">{escape(_title(chapter))}</a></td>'
            f'<td class="n">{duration(it["seconds"])}{bar}</td><td class="n">{memory}</td>'
            f"<td>{measured}</td></tr>"
        )
    total = sum(it["seconds"] for it in results.values())
    failed = sum("error" in it for it in results.values())
    summary = (
        f"{len(results)} of {len(chosen)} chapters run under the profile <b>{profile}</b> in "
        f"{duration(total)}"
        + (f", {failed} failed" if failed else "")
        + f" · labkit {labkit.__version__}"
    )
    return _PAGE.format(summary=summary, rows="\n".join(rows))


def _title(chapter: Chapter) -> str:
    try:
        return chapter.title
    except LabError:  # no notebook: its row says so
        return chapter.name


def _figure(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"

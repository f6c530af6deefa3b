"""Every chapter: one run under `smoke` serves every check on it; as committed, it is in order.

The run is kept in test-artefacts/chapters/NAME-HASH/, where HASH is of the notebook's code, its
recorded rows, the package, the pins and the Python version: a second call of pytest checks the
kept run. Remove the folder to force a new one.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbval.plugin import IPyNbCell, coalesce_streams

import labkit
from labkit import course
from labkit.course import kernels, stamping
from labkit.course.form import folded

ROOT = Path(__file__).resolve().parent.parent
LARGEST_MB = 1.5
WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST_CELL = 40
#: What nbval leaves out when it compares outputs: pictures and what is no output.
NOT_COMPARED = (
    "metadata", "traceback", "execution_count", "image/png",
    "application/vnd.jupyter.widget-view+json",
)  # fmt: skip
#: Executed by nbval itself: the two quickest chapters.
UNDER_NBVAL = ("03", "05")

CHAPTERS = course.chapters()
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)


def cells(chapter, kind="code"):
    notebook = nbformat.read(chapter.path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


def figures(chapter):
    """tests/chapters/chapter_NN.py: EXPECTED and CLAIMS of a chapter."""
    path = Path(__file__).parent / "chapters" / f"chapter_{chapter.number}.py"
    assert path.exists(), (
        f"{path.name} is missing: write what chapter {chapter.number} must measure"
    )
    spec = importlib.util.spec_from_file_location(f"figures_{chapter.number}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# One run, every check on it


def hash_of(chapter) -> str:
    """Of everything that a run depends on."""
    digest = hashlib.sha256(platform.python_version().encode())
    for cell in cells(chapter):
        digest.update(cell.source.encode())
    package = Path(labkit.__file__).parent
    for path in [*sorted(package.rglob("*.py*")), ROOT / "requirements.txt"]:
        if path.suffix in (".py", ".pyi", ".txt"):
            digest.update(path.read_bytes())
    for path in sorted((ROOT / "data" / "recorded").glob(f"{chapter.number}_*.jsonl")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_seconds() -> float:
    """CPU time of all that this process started and that has ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + kernels.cpu_seconds()


def smoke_run(chapter, artefacts) -> Path:
    """The folder of the chapter's run: a kept one, or a new one."""
    folder = artefacts / "chapters"
    kept = folder / f"{chapter.name}-{hash_of(chapter)}"
    if (kept / "cost.json").exists():
        cost = json.loads((kept / "cost.json").read_text())
        (kept / "cost.json").write_text(json.dumps({**cost, "kept": True}))
        return kept
    for older in folder.glob(f"{chapter.name}-*"):
        shutil.rmtree(older)
    kept.mkdir(parents=True)
    before, began = cpu_seconds(), time.perf_counter()
    results = course.run(
        [chapter.name], profile="smoke", out=kept, folder=chapter.path.parent, progress=False
    )
    cost = {
        "chapter": chapter.name,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - before,
        "peak_rss_mb": results[chapter.name]["peak_rss_mb"],
        "kept": False,
    }
    (kept / "cost.json").write_text(json.dumps(cost))
    return kept


def differs(executed, committed) -> str:
    """How the outputs of a cell differ by nbval's rules; empty if they agree."""
    said = []
    cell = SimpleNamespace(
        parent=SimpleNamespace(skip_compare=NOT_COMPARED),
        colors=SimpleNamespace(FAIL="", OKBLUE="", ENDC=""),
        sanitize=lambda text: text,
        format_output_compare=lambda key, left, right: said.append(f"{key}: {left!r} != {right!r}"),
        comparison_traceback=[],
    )
    both = (coalesce_streams(outputs) for outputs in deepcopy((executed, committed)))
    if IPyNbCell.compare_outputs(cell, *both):
        return ""
    return " ".join([*said, *map(str, cell.comparison_traceback)])


@pytest.mark.slow
@every_chapter
def test_a_run_of_the_chapter(chapter, artefacts, subtests):
    """papermill runs it headlessly under `smoke`, once; everything below reads that run."""
    folder = smoke_run(chapter, artefacts)
    result = json.loads((folder / "metrics.json").read_text())[chapter.name]
    executed = nbformat.read(folder / chapter.path.name, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    code = [cell for cell in code if "injected-parameters" not in tags(cell)]

    with subtests.test("it reports what it should"):
        assert result["metrics"], "no metrics: the last cell calls report({...})"
        for name, (expected, tolerance) in getattr(figures(chapter), "EXPECTED", {}).items():
            assert result["metrics"].get(name) == pytest.approx(expected, abs=tolerance), name

    with subtests.test("no cell raised or wrote to stderr"):
        assert "error" not in result
        outputs = [output for cell in code for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
        assert all(cell.execution_count for cell in code if cell.source.strip())

    with subtests.test("tagged outputs are as committed"):
        committed = cells(chapter)
        assert [c.source for c in code] == [c.source for c in committed]
        for cell, reference in zip(code, committed, strict=True):
            if "nbval-check-output" in tags(reference):
                assert not (how := differs(cell.outputs, reference.outputs)), how

    with subtests.test("its page shows every picture"):
        page = (folder / f"{chapter.name}.html").read_text()
        pictures = sum("image/png" in o.get("data", {}) for cell in code for o in cell.outputs)
        assert page.count("data:image/png") >= pictures > 0
        assert chapter.title.split(" · ")[1] in page

    with subtests.test("widgets carry a picture and their state"):
        assert_widgets(executed)


@pytest.mark.slow
@pytest.mark.parametrize("number", UNDER_NBVAL)
def test_every_cell_passes_under_nbval(number):
    """nbval executes it, as a reader's own CI would: no cell raises, tagged outputs agree."""
    (chapter,) = course.chapters([number])
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider"),
            *("--override-ini=addopts=", str(chapter.path)),
        ],
        env={**os.environ, "LABKIT_PROFILE": "smoke"},
        cwd=chapter.path.parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


def test_a_changed_output_of_a_tagged_cell_is_noticed():
    ours = [nbformat.v4.new_output("stream", name="stdout", text="3.14\n")]
    theirs = [nbformat.v4.new_output("stream", name="stdout", text="3.15\n")]
    assert not differs(ours, ours)
    assert "3.14" in differs(ours, theirs)
    assert differs(ours, [])
    slow = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("3.", "14\n")]
    assert not differs(slow, ours), "two pieces of one print"


# As committed


@every_chapter
def test_is_small(chapter):
    assert chapter.path.stat().st_size <= LARGEST_MB * 1e6


@every_chapter
def test_is_a_valid_notebook_that_names_its_kernel(chapter):
    notebook = course.read_notebook(chapter.path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@every_chapter
def test_has_the_cells_that_tools_rely_on(chapter):
    counts = Counter(tag for cell in cells(chapter) for tag in tags(cell))
    assert (counts["parameters"], counts["colab"], counts["imports"]) == (1, 1, 1)
    (parameters,) = [cell for cell in cells(chapter) if "parameters" in tags(cell)]
    assert parameters.source.split() == ["profile", "=", '"auto"', "seed", "=", "0"]


@every_chapter
def test_outputs_come_from_one_clean_run(chapter):
    code = cells(chapter)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    # A widget shows itself; as the value of a cell it would stand there twice.
    twice = [o for o in outputs if o.output_type == "execute_result" and WIDGET in o.data]
    assert not [o.data["text/plain"] for o in twice]
    assert course.metrics_of(chapter.path)["profile"] == "cpu"
    assert course.metrics_of(chapter.path)["chapter"] == chapter.number


@every_chapter
def test_the_committed_run_shows_what_the_text_claims(chapter):
    claims = getattr(figures(chapter), "CLAIMS", {})
    assert claims, f"chapter_{chapter.number}.py holds no CLAIMS: what does the text say?"
    metrics = course.metrics_of(chapter.path)["metrics"]
    for name, (lowest, highest) in claims.items():
        assert lowest <= metrics[name] <= highest, name


@every_chapter
def test_every_cell_fits_a_screen(chapter):
    """Of what is folded away a reader meets the output alone (see `course.form`)."""
    shown = [cell.source for cell in cells(chapter) if not folded(cell)]
    long = [source for source in shown if source.count("\n") >= LONGEST_CELL]
    assert not long, f"a cell of more than {LONGEST_CELL} lines:\n{long[0]}"


@every_chapter
def test_does_not_reach_around_the_package(chapter):
    for cell in cells(chapter):
        for forbidden in ("sys.path", "filterwarnings", "!pip", "import *"):
            assert forbidden not in cell.source


@every_chapter
def test_widgets_carry_a_picture_and_their_state(chapter):
    assert_widgets(nbformat.read(chapter.path, as_version=4))


def assert_widgets(notebook):
    """Every call of a widget left a static picture and the state of its model."""
    state = notebook.metadata.get("widgets", {}).get(
        "application/vnd.jupyter.widget-state+json", {}
    )
    models = state.get("state", {})
    for cell in notebook.cells:
        if not re.search(r"(?<![.\w])(explore|explore_text|chat)\(", cell.source):
            continue
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            view = output.get("data", {}).get(WIDGET)
            if view:
                assert view["model_id"] in models
                assert {"image/png", "text/html"} & set(output.data)
                break
        else:
            pytest.fail(f"no widget in the output of:\n{cell.source}")


def test_badges_install_cells_and_readme_agree_with_the_repository():
    stale = course.stamp(write=False)
    assert not stale, f"run `python -m labkit.course stamp`: {[path.name for path in stale]}"
    for chapter in CHAPTERS:
        text = "\n".join(cell.source for cell in [*cells(chapter), *cells(chapter, "markdown")])
        assert f"<!--colab-->{course.colab_badge(chapter)}<!--/colab-->" in text, chapter.name
        assert stamping.install_cell() in text, chapter.name

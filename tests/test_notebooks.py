"""Every chapter: runs end to end under `smoke`, and is in order as committed."""

import os
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest

import labkit
from labkit import course

#: Metrics that a chapter must report under `smoke` with seed 0: name -> (expected, tolerance). What
#: follows from mathematics has a tolerance of rounding; what is learned in a few steps, a wide one.
EXPECTED: dict[str, dict[str, tuple[float, float]]] = {
    "00": {
        "floor": (0.504, 0.02),
        "validation_loss": (6.02, 0.3),
    },
    "03": {
        "future leak of M = -10": (0.2964591, 1e-3),
        "variance at K = 64, scaled": (0.986, 0.02),
        "MiniLM mean entropy": (2.66, 0.1),
        "untrained mean entropy": (4.33, 0.1),
    },
    "05": {
        "coin_entropy_nats": (0.6108643, 1e-6),
        "test_accuracy": (0.9, 0.1),
        "naive_bayes_accuracy": (0.94, 0.04),
        "true_class_only_accuracy": (0.4, 0.3),
        "mean_of_means_gradient_error": (0.08, 0.05),
        "chunk_memory_ratio": (1.4, 0.4),
    },
    "08": {
        "resumed_tensors_equal": (56, 0),
    },
    "10": {
        "memory_error": (0.0, 0.15),
        "test_accuracy_bag_of_words": (0.9, 0.1),
        "test_accuracy_frozen": (0.9, 0.1),
    },
}

#: What the text of a chapter claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, dict[str, tuple[float, float]]] = {
    "00": {"exact_answers": (0.62, 1.0), "naming": (0.0, 0.55), "without_the_story": (0.0, 0.2)},
    "03": {"MiniLM mean entropy": (2.9, 3.1)},
    "05": {"test_accuracy": (0.9, 1.0)},
    "08": {
        "bits_per_byte_web_bible": (1.2, 1.6),
        "bits_per_byte_bbc_news": (1.6, 2.1),
        "bits_per_byte_python_source": (1.4, 1.85),
        "saved_against_5gram_python_source": (0.03, 1.0),
        "storyworld_bits_per_byte": (0.2195, 0.29),
        "live_curve_overhead": (0.0, 0.055),
        "resumed_tensors_equal": (56, 56),
    },
    "10": {
        "test_accuracy": (0.97, 1.0),
        "test_macro_f1": (0.97, 1.0),
        "memory_error": (0.0, 0.15),
        "live_curve_overhead": (0.0, 0.055),
    },
}

LARGEST_MB = 1.5
LONGEST_CELL = 40

CHAPTERS = course.chapters()
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)


def cells(chapter, kind="code"):
    notebook = nbformat.read(chapter.path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.slow
@every_chapter
def test_runs_headlessly_and_reports_what_it_should(chapter, tmp_path):
    results = course.run(
        [chapter.name], profile="smoke", out=tmp_path, folder=chapter.path.parent, progress=False
    )
    metrics = results[chapter.name]["metrics"]
    assert metrics, f"{chapter.name} reports no metrics: its last cell calls report({{...}})"
    for name, (expected, tolerance) in EXPECTED.get(chapter.number, {}).items():
        assert metrics.get(name) == pytest.approx(expected, abs=tolerance), name


@pytest.mark.slow
@every_chapter
def test_every_cell_passes_under_nbval(chapter):
    """No cell raises; the output of cells tagged nbval-check-output is as committed."""
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


# --- as committed ------------------------------------------------------------------------------


@every_chapter
def test_is_small(chapter):
    assert chapter.path.stat().st_size <= LARGEST_MB * 1e6


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
    assert course.metrics_of(chapter.path)["profile"] == "cpu"
    assert course.metrics_of(chapter.path)["chapter"] == chapter.number


@every_chapter
def test_the_committed_run_shows_what_the_text_claims(chapter):
    metrics = course.metrics_of(chapter.path)["metrics"]
    for name, (lowest, highest) in CLAIMS[chapter.number].items():
        assert lowest <= metrics[name] <= highest, name


@every_chapter
def test_every_cell_fits_a_screen(chapter):
    long = [cell.source for cell in cells(chapter) if cell.source.count("\n") >= LONGEST_CELL]
    assert not long, f"a cell of more than {LONGEST_CELL} lines:\n{long[0]}"


@every_chapter
def test_does_not_reach_around_the_package(chapter):
    for cell in cells(chapter):
        for forbidden in ("sys.path", "filterwarnings", "!pip", "import *"):
            assert forbidden not in cell.source


@every_chapter
def test_widgets_carry_a_picture_and_their_state(chapter):
    notebook = nbformat.read(chapter.path, as_version=4)
    state = notebook.metadata.get("widgets", {}).get(
        "application/vnd.jupyter.widget-state+json", {}
    )
    models = state.get("state", {})
    for cell in cells(chapter):
        if not re.search(r"\b(explore|explore_text|chat)\(", cell.source):
            continue
        for output in cell.outputs:
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
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
        assert course.colab_badge(chapter) in text, chapter.name
        assert f"git+{labkit.REPOSITORY}" in text, chapter.name

"""Running chapters headlessly, on small notebooks that the tests write."""

import json
import re
import shutil

import nbformat
import pytest

import labkit
from labkit import course
from labkit.course import listing
from labkit.errors import LabError

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/someone/else/blob/main/notebooks/old.ipynb)"
)


def write_chapter(folder, name, *cells, tag="parameters"):
    """A notebook: a title with a badge, an install cell, parameters, then the code cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    code = nbformat.v4.new_code_cell
    notebook.cells = [
        nbformat.v4.new_markdown_cell(
            f"# {name[:2]} · A title\n\n{BADGE}\n\nTakes <!--time-->?<!--/time-->"
        ),
        code("import sys", metadata={"tags": ["colab"]}),
        code('profile = "auto"\nseed = 0', metadata={"tags": [tag]}),
        *(code(text) for text in cells),
    ]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


START = "from labkit.notebook import *\nlab = start(profile, seed, chapter='01')"
REPORT = "report({'answer': 40 + 2, 'seed': lab.seed, 'share': 0.25})"
WIDGET = (
    "def draw(x=1.0):\n    fig, ax = plots.figure(height=2)\n    ax.plot([0, x])\n    return fig\n"
    "explorer = explore(draw, x=(0.0, 2.0))"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two chapters, the first of which fails: (out folder, the error)."""
    base = tmp_path_factory.mktemp("course")
    write_chapter(base / "notebooks", "01_bad", "broken = {}['key']")
    write_chapter(base / "notebooks", "02_good", START, WIDGET, REPORT)
    with pytest.raises(course.ChapterFailed) as error:
        course.run(
            profile="smoke", out=base / "out", seed=7, folder=base / "notebooks", progress=False
        )
    return base / "out", error.value


def test_a_failing_chapter_is_named_and_the_others_still_run(finished):
    out, error = finished
    assert error.exit_code == 1
    assert str(error) == (
        "1 of 2 chapters failed: 01_bad: cell [3] (broken = {}['key']) raised KeyError: 'key'"
    )
    results = json.loads((out / "metrics.json").read_text())
    assert list(results) == ["01_bad", "02_good"]
    assert results["01_bad"]["metrics"] == {}
    assert "KeyError" in results["01_bad"]["error"]


def test_metrics_hold_time_memory_and_what_the_chapter_reported(finished):
    out, _ = finished
    result = json.loads((out / "metrics.json").read_text())["02_good"]
    assert result["metrics"] == {"answer": 42, "seed": 7, "share": 0.25}
    assert result["seconds"] > 0
    assert result["peak_rss_mb"] > 50
    assert course.metrics_of(out / "02_good.ipynb")["profile"] == "smoke"


def test_the_report_is_one_page_that_links_every_chapter(finished):
    out, _ = finished
    page = (out / "index.html").read_text()
    for expected in ('href="02_good.html"', "KeyError", "2 of 2 chapters", "1 failed", ">42<"):
        assert expected in page
    assert "<script" not in page
    assert "data:image/png" in (out / "02_good.html").read_text()


def test_widget_state_is_saved(finished):
    out, _ = finished
    notebook = nbformat.read(out / "02_good.ipynb", as_version=4)
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    models = {model["model_name"] for model in state.values()}
    assert {"ImageModel", "FloatSliderModel", "VBoxModel"} <= models


def test_execute_leaves_no_traces_of_the_run(tmp_path):
    write_chapter(tmp_path, "01_good", START, WIDGET, REPORT)
    source = tmp_path / "01_good.ipynb"
    payload = course.execute(source, tmp_path / "out.ipynb", profile="smoke")
    assert payload["metrics"]["answer"] == 42
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == [
        cell.source for cell in nbformat.read(source, as_version=4).cells
    ]
    assert set(notebook.metadata) == {"kernelspec", "language_info", "widgets"}
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [1, 2, 3, 4, 5]
    assert all("execution" not in cell.metadata for cell in notebook.cells)


def test_execute_names_the_error(tmp_path):
    write_chapter(tmp_path, "01_bad", "1 / 0")
    with pytest.raises(course.ChapterFailed, match=r"01_bad\.ipynb: ZeroDivisionError"):
        course.execute(tmp_path / "01_bad.ipynb", tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_chapters_by_number_and_name(tmp_path):
    for name in ("00_start", "03_attention", "10_tuning"):
        write_chapter(tmp_path, name)
    every = course.chapters(folder=tmp_path)
    assert [it.number for it in every] == ["00", "03", "10"]
    assert every[1].title == "03 · A title"
    chosen = course.chapters(["10", "3", "03_attention"], folder=tmp_path)
    assert [it.name for it in chosen] == ["03_attention", "10_tuning"]
    with pytest.raises(LabError, match="no chapter '7'; there are 00_start"):
        course.chapters(["7"], folder=tmp_path)
    with pytest.raises(LabError, match="No chapters in"):
        course.chapters(folder=tmp_path / "nowhere")


def test_without_a_checkout_the_error_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(labkit, "__file__", str(tmp_path / "site" / "labkit" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=f"clone {labkit.REPOSITORY}"):
        course.notebooks_folder()


def test_stamp_writes_address_and_figures_everywhere_then_rests(finished, tmp_path, monkeypatch):
    path = tmp_path / "notebooks" / "03_attention.ipynb"
    path.parent.mkdir()
    shutil.copy(finished[0] / "02_good.ipynb", path)
    readme = tmp_path / "README.md"
    readme.write_text(
        f"git clone https://github.com/old/place\n{course.TABLE_BEGIN}\nold\n{course.TABLE_END}\nend\n"
    )
    monkeypatch.setattr(labkit, "REPOSITORY", "https://github.com/new/home")
    assert course.stamp(tmp_path, write=False) == [path, readme]
    assert course.stamp(tmp_path) == [path, readme]
    assert course.stamp(tmp_path) == []
    notebook = nbformat.read(path, as_version=4)
    assert re.search(r"Takes <!--time-->\d+ s<!--/time-->", notebook.cells[0].source)
    assert "github/new/home/blob/main/notebooks/03_attention.ipynb" in notebook.cells[0].source
    assert "git+https://github.com/new/home" in notebook.cells[1].source
    text = readme.read_text()
    assert "git clone https://github.com/new/home\n" in text
    assert "| [02 · A title](notebooks/03_attention.ipynb) |" in text
    assert "GB" in text
    assert text.endswith("end\n")


def test_stamp_renews_what_a_chapter_shows_of_the_package(finished, tmp_path):
    path = tmp_path / "notebooks" / "03_attention.ipynb"
    path.parent.mkdir()
    shutil.copy(finished[0] / "02_good.ipynb", path)
    course.stamp(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    old = nbformat.v4.new_output(
        "display_data",
        data={"text/plain": "# labkit/muon.py, line 7\nold", "text/markdown": "old"},
        metadata={"labkit": {"shows": "labkit.optim.Muon.step", "docstring": False}},
    )
    notebook.cells.append(nbformat.v4.new_code_cell("show(Muon.step)", outputs=[old]))
    nbformat.write(notebook, path)
    assert course.stamp(tmp_path) == [path]
    data = nbformat.read(path, as_version=4).cells[-1].outputs[0].data
    assert data == listing.rendered(labkit.optim.Muon.step, docstring=False)
    assert "def step" in data["text/markdown"]
    assert course.stamp(tmp_path) == []

"""Running chapters headlessly, on small notebooks that the tests write."""

import copy
import doctest
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap

import nbformat
import pytest
from papermill import engines

import labkit
from labkit import course
from labkit.course import editing, listing, running, syntax
from labkit.course.__main__ import main
from labkit.course.report import HIDE, SHOW, with_mathml
from labkit.errors import LabError

BADGE = "<!--colab-->an old badge<!--/colab-->"


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
        *(
            code(text, metadata={"tags": ["imports"]} if number == 0 else {})
            for number, text in enumerate(cells)
        ),
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
    assert set(notebook.metadata) == {"kernelspec", "language_info", "widgets", "labkit"}
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [1, 2, 3, 4, 5]
    assert all("execution" not in cell.metadata for cell in notebook.cells)


def test_execute_names_the_error(tmp_path):
    write_chapter(tmp_path, "01_bad", "1 / 0")
    with pytest.raises(course.ChapterFailed, match=r"01_bad\.ipynb: ZeroDivisionError"):
        course.execute(tmp_path / "01_bad.ipynb", tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_a_chapter_that_makes_no_page_does_not_end_the_run(tmp_path):
    odd = (
        "from IPython.display import display\n"
        "display({'image/png': 'AAAA'}, raw=True, metadata={'image/png': 5})"
    )
    write_chapter(tmp_path / "notebooks", "01_odd", odd)
    write_chapter(tmp_path / "notebooks", "02_good", "40 + 2")
    (tmp_path / "notebooks" / "03_torn.ipynb").write_text("{")
    with pytest.raises(course.ChapterFailed, match=r"^2 of 3 .*01_odd: its page failed with"):
        course.run(
            profile="smoke", out=tmp_path / "out", folder=tmp_path / "notebooks", progress=False
        )
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert ["error" in it for it in results.values()] == [True, False, True]
    assert (tmp_path / "out" / "02_good.html").exists()
    assert "3 of 3 chapters" in (tmp_path / "out" / "index.html").read_text()


def test_a_run_does_not_replace_the_notebooks_it_reads(tmp_path):
    write_chapter(tmp_path / "notebooks", "01_mine", "40 + 2")
    before = (tmp_path / "notebooks" / "01_mine.ipynb").read_bytes()
    for out in (tmp_path / "notebooks", tmp_path / "notebooks" / ".." / "notebooks"):
        with pytest.raises(LabError, match="holds the notebooks themselves"):
            course.run(profile="smoke", out=out, folder=tmp_path / "notebooks", progress=False)
    assert [it.name for it in (tmp_path / "notebooks").iterdir()] == ["01_mine.ipynb"]
    assert (tmp_path / "notebooks" / "01_mine.ipynb").read_bytes() == before


def test_a_kernel_that_dies_is_said_in_one_sentence(tmp_path, capsys):
    write_chapter(tmp_path, "01_dies", "import os\nos._exit(1)")
    assert main(["execute", str(tmp_path / "01_dies.ipynb")]) == 1
    assert re.fullmatch(r"01_dies\.ipynb: .*[Kk]ernel died.*\n", capsys.readouterr().err)


def test_a_run_whose_kernel_dies_keeps_what_it_had_shown(tmp_path):
    shown = "print(6 * 7, 'shown')"
    write_chapter(tmp_path / "notebooks", "01_dies", shown, "import os\nos._exit(1)")
    with pytest.raises(course.ChapterFailed, match="01_dies: DeadKernelError"):
        course.run(
            profile="smoke", out=tmp_path / "out", folder=tmp_path / "notebooks", progress=False
        )
    assert "42 shown" in (tmp_path / "out" / "01_dies.html").read_text()


def test_a_run_writes_its_notebook_now_and_then_and_at_its_end(tmp_path, monkeypatch):
    written = []
    write = engines.write_ipynb
    monkeypatch.setattr(
        engines, "write_ipynb", lambda notebook, path: (write(notebook, path), written.append(path))
    )
    write_chapter(tmp_path / "notebooks", "01_long", *["40 + 2"] * 30)

    def outputs_after_a_run(name):
        out = tmp_path / name
        course.run(profile="smoke", out=out, folder=tmp_path / "notebooks", progress=False)
        cells = nbformat.read(out / "01_long.ipynb", as_version=4).cells
        return sum("42" in str(cell.get("outputs")) for cell in cells)

    assert outputs_after_a_run("out") == 30
    assert len(written) <= 3  # it takes a second or two
    monkeypatch.setattr(running, "SAVE_EVERY", 0)
    assert outputs_after_a_run("often") == 30
    assert len(written) > 60


def test_imports_are_set_aside_from_the_search_for_unused_objects(tmp_path):
    before = "import gc\nassert not gc.isenabled()"
    after = "assert gc.isenabled()\nassert gc.get_freeze_count() > 100_000"
    write_chapter(tmp_path, "01_good", before, START, after)
    course.execute(tmp_path / "01_good.ipynb", tmp_path / "out.ipynb", profile="smoke")


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
    assert course.one_chapter(tmp_path / "03_attention.ipynb") == every[1]
    with pytest.raises(LabError, match="There is no notebook"):
        course.one_chapter(tmp_path / "07_none.ipynb")


def test_without_a_checkout_the_error_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(labkit, "__file__", str(tmp_path / "site" / "labkit" / "__init__.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "data"))
    monkeypatch.setattr("site.getuserbase", lambda: str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LabError, match="install labkit again, from a checkout of the lab or a wheel"
    ):
        course.notebooks_folder()


def test_stamp_writes_address_and_figures_everywhere_then_rests(finished, tmp_path, monkeypatch):
    path = tmp_path / "notebooks" / "03_attention.ipynb"
    path.parent.mkdir()
    shutil.copy(finished[0] / "02_good.ipynb", path)
    readme = tmp_path / "README.md"
    readme.write_text(f"the beginning\n{course.TABLE_BEGIN}\nold\n{course.TABLE_END}\nend\n")
    monkeypatch.setattr(labkit, "REPOSITORY", "")
    assert course.stamp(tmp_path) == [path, readme]
    without = nbformat.read(path, as_version=4)
    assert "<!--colab--><!--/colab-->" in without.cells[0].source
    assert "git+" not in without.cells[1].source
    assert "/content/llm_lab_course-*.whl" in without.cells[1].source
    assert "colab" not in readme.read_text()
    monkeypatch.setattr(labkit, "REPOSITORY", "https://github.com/new/home")
    assert course.stamp(tmp_path, write=False) == [path, readme]
    assert course.stamp(tmp_path) == [path, readme]
    assert course.stamp(tmp_path) == []
    notebook = nbformat.read(path, as_version=4)
    assert re.search(r"Takes <!--time-->\d+ s<!--/time-->", notebook.cells[0].source)
    assert "github/new/home/blob/main/notebooks/03_attention.ipynb" in notebook.cells[0].source
    assert "git+https://github.com/new/home" in notebook.cells[1].source
    text = readme.read_text()
    assert text.startswith("the beginning\n")
    assert "https://colab.research.google.com/github/new/home/blob" in text
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
        data={"text/plain": "# labkit/muon.py\nold", "text/markdown": "old"},
        metadata={"labkit": {"shows": "labkit.optim.Muon.step", "docstring": False}},
    )
    gone = copy.deepcopy(old)
    gone.metadata.labkit.shows = "labkit.optim.Gone"
    notebook.cells.append(nbformat.v4.new_code_cell("show(Muon.step)", outputs=[old, gone]))
    nbformat.write(notebook, path)
    assert course.stamp(tmp_path) == [path]
    data = nbformat.read(path, as_version=4).cells[-1].outputs[0].data
    assert data == listing.rendered(labkit.optim.Muon.step, docstring=False)
    assert "def step" in data["text/markdown"]
    kept = nbformat.read(path, as_version=4).cells[-1].outputs[1].data
    assert kept == gone.data  # only a run can mend it, and `stale` says so
    assert course.stamp(tmp_path) == []


# What code means, and outputs tied to it.

SIZES = "n = lab.sizes(smoke=dict(n={smoke}), cpu=dict(n={cpu}), gpu=dict(n=3)).n"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = sqrt(2)", "x = sqrt(3)", False),
        ("x = sqrt(2)", "x = sqrt( 2 )  # the diagonal", True),
        ("f(1,\n  2)", "f(1, 2)", True),
        ("'one'", '"one"', True),
        ("'one'", "'two'", False),
        ("x = 1", "y = 1", False),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("f(None)", "f()", False),
        ("{**a, 'b': 1}", "{a: a, 'b': 1}", False),
        ("lambda *, a=1, b: 0", "lambda *, a, b=1: 0", False),
        ("f'{x}' 'y'", "f'{x}y'", True),
        ("f'{x!r}'", "f'{x}'", False),
        ("%matplotlib inline\nx = 1", "%matplotlib inline  # here\nx = 1  # there", True),
        ("%matplotlib inline\nx = 1", "%matplotlib widget\nx = 1", False),
        ("if x:\n    !ls", "if x:\n    !ls -a", False),
        ("x = !ls", "x = !ls -a", False),
        ("x = (7\n% 2)", "x = (7 % 2)", True),
        (SIZES.format(smoke=1, cpu=2), SIZES.format(smoke=9, cpu=2), True),
        (SIZES.format(smoke=1, cpu=2), SIZES.format(smoke=1, cpu=9), False),
        ("sizes(hour=1, cpu=2)", "sizes(cpu=2)", True),
        ("pick(gpu=1, cpu=2)", "pick(cpu=2)", False),
    ],
)
def test_what_counts_as_the_same_code(one, other, same):
    assert (syntax.canonical(one) == syntax.canonical(other)) == same


def test_docstrings_count_where_asked():
    bare = "def f():\n    return 1"
    told = 'def f():\n    """Says one."""\n    return 1'
    assert syntax.canonical(bare) != syntax.canonical(told)
    assert syntax.canonical(bare, docstrings=False) == syntax.canonical(told, docstrings=False)
    assert doctest.testmod(syntax).failed == 0


def test_the_canonical_text_is_that_of_every_version():
    """Python 3.11, 3.12 and 3.13 give one text, where their trees differ."""
    code = (
        "class A(B, k=1):\n"
        "    def f(self, /, a: int = 1, *b, c=None, **d) -> None:\n"
        "        return f'{a:>{b}}' f'{c=!r}' '\U0001fae8', b'\\xff', ..., 1e400, {**d}\n"
    )
    assert syntax.canonical(code) == (
        "Module(body=[ClassDef(name='A',bases=[Name(id='B',ctx=Load())],"
        "keywords=[keyword(arg='k',value=Constant(value=1))],body=[FunctionDef(name='f',"
        "args=arguments(posonlyargs=[arg(arg='self')],args=[arg(arg='a',"
        "annotation=Name(id='int',ctx=Load()))],vararg=arg(arg='b'),kwonlyargs=[arg(arg='c')],"
        "kw_defaults=[Constant(value=None)],kwarg=arg(arg='d'),defaults=[Constant(value=1)]),"
        "body=[Return(value=Tuple(elts=[JoinedStr(values=[FormattedValue(value=Name(id='a',"
        "ctx=Load()),conversion=-1,format_spec=JoinedStr(values=[Constant(value='>'),"
        "FormattedValue(value=Name(id='b',ctx=Load()),conversion=-1)])),Constant(value='c='),"
        "FormattedValue(value=Name(id='c',ctx=Load()),conversion=114),"
        "Constant(value='\\U0001fae8')]),Constant(value=b'\\xff'),Constant(value=Ellipsis),"
        "Constant(value=inf),Dict(keys=[None],values=[Name(id='d',ctx=Load())])],ctx=Load()))],"
        "returns=Constant(value=None))])])"
    )


@pytest.fixture
def tied(tmp_path, monkeypatch):
    """A function of a module, and a notebook that shows it, as a run would leave them.

    Gives (write the function's body, the notebook's path).
    """
    module = tmp_path / "shown.py"

    def write(body):
        module.write_text(f"def double(x):\n{textwrap.indent(body, '    ')}\n")
        spec = importlib.util.spec_from_file_location("shown", module)
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "shown", made)
        exec(compile(module.read_text(), str(module), "exec"), vars(made))
        monkeypatch.setattr(listing, "find", lambda name: getattr(made, name.split(".")[-1]))
        return made.double

    cells = ["%matplotlib inline", "x = sqrt(2)", SIZES.format(smoke=1, cpu=2), "show(double)"]
    write_chapter(tmp_path, "03_tied", *cells)
    path = tmp_path / "03_tied.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [
        nbformat.v4.new_output(
            "display_data",
            data=listing.rendered(write('"""Twice x."""\nreturn 2 * x'), docstring=False),
            metadata={"labkit": {"shows": "labkit.shown.double", "docstring": False}},
        )
    ]
    notebook.metadata["labkit"] = course.fingerprint(notebook)
    course.write_notebook(path, notebook)
    assert course.stale(path) == []
    return write, path


def change(path, old, new):
    """Edit the cells of a notebook, as an author would."""
    notebook = nbformat.read(path, as_version=4)
    assert any(old in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    course.write_notebook(path, notebook)


@pytest.mark.parametrize(
    ("old", "new", "agrees"),
    [
        ("sqrt(2)", "sqrt(3)", False),
        ("sqrt(2)", "sqrt( 2 )  # the diagonal", True),
        ("dict(n=1)", "dict(n=7)", True),
        ("dict(n=2)", "dict(n=7)", False),
        ("matplotlib inline", "matplotlib widget", False),
        ("import sys", "import os", True),  # the cell tagged colab
        ("# 03 · A title", "# 03 · Another", True),
        ("show(double)", "show(double)\n1 +", False),
    ],
)
def test_outputs_are_stale_when_the_code_cells_mean_something_else(tied, old, new, agrees):
    _, path = tied
    change(path, old, new)
    said = (
        "03_tied: the code cells are not those that made the outputs: "
        "run `python -m labkit.course execute 03`, then `stamp`."
    )
    assert course.stale(path) == ([] if agrees else [said])


def test_a_cell_moved_or_deleted_is_other_code(tied):
    _, path = tied
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3], notebook.cells[4] = notebook.cells[4], notebook.cells[3]
    course.write_notebook(path, notebook)
    assert len(course.stale(path)) == 1
    del notebook.cells[3]
    course.write_notebook(path, notebook)
    assert len(course.stale(path)) == 1


def test_outputs_are_stale_when_what_they_show_means_something_else(tied, monkeypatch):
    write, path = tied
    write('"""Said otherwise."""\nreturn 2 * x  # and why')
    assert course.stale(path) == []
    write("return x + x")
    (said,) = course.stale(path)
    assert said.startswith("03_tied: labkit.shown.double is not what the run showed: run ")

    def gone(name):
        raise LabError(f"{name} does not exist")

    monkeypatch.setattr(listing, "find", gone)
    assert len(course.stale(path)) == 1


def test_an_output_that_no_run_showed_is_stale(tied):
    _, path = tied
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.labkit.shown = {}
    course.write_notebook(path, notebook)
    assert len(course.stale(path)) == 1
    del notebook.metadata["labkit"]
    course.write_notebook(path, notebook)
    (said,) = course.stale(path)
    assert said.startswith("03_tied has no fingerprint of its run: run ")


def test_only_a_run_ties_and_stamping_keeps_what_it_tied(tmp_path):
    write_chapter(tmp_path / "notebooks", "01_ties", "x = 1")
    path = tmp_path / "notebooks" / "01_ties.ipynb"
    course.stamp(tmp_path)
    assert len(course.stale(path)) == 1
    course.execute(path, path, profile="smoke")
    tied = nbformat.read(path, as_version=4).metadata.labkit
    assert set(tied) == {"cells", "shown"}
    change(path, "/content/", "/elsewhere/")
    assert course.stamp(tmp_path) == [path]
    assert nbformat.read(path, as_version=4).metadata.labkit == tied
    assert course.stale(path) == []
    course.run(profile="smoke", out=tmp_path / "out", folder=path.parent, progress=False)


@pytest.mark.parametrize("chapter", course.chapters(), ids=lambda it: it.name)
def test_committed_outputs_belong_to_the_code(chapter):
    assert course.stale(chapter.path) == []


# Chapters as text, and the shell.


@pytest.mark.parametrize("chapter", course.chapters(), ids=lambda it: it.name)
def test_a_chapter_comes_back_from_text_as_it_is(chapter, tmp_path):
    file = course.edit(chapter.path, tmp_path)
    notebook = nbformat.read(chapter.path, as_version=4)
    back = editing.from_text(file.read_text(), notebook)
    nbformat.validate(back)
    for read in (
        lambda it: it.source,
        lambda it: it.cell_type,
        lambda it: it.id,
        lambda it: it.metadata.get("tags"),
    ):
        assert [*map(read, back.cells)] == [*map(read, notebook.cells)]


def test_text_keeps_metadata_and_pictures_and_tells_copies_apart():
    notebook = nbformat.v4.new_notebook()
    picture = nbformat.v4.new_markdown_cell("![](attachment:a.png)")
    picture["attachments"] = {"a.png": {"image/png": "AAAA"}}
    code = nbformat.v4.new_code_cell("1", metadata={"tags": ["exercise"], "deep": {"a": [1, "b"]}})
    notebook.cells = [picture, code, nbformat.v4.new_raw_cell("raw")]
    text = editing.to_text(notebook)
    back = editing.from_text(f'{text}\n# %% id="{code.id}"\n2\n\n# %%\n3\n', notebook)
    assert back.cells[0].attachments == picture.attachments
    assert back.cells[1].metadata == code.metadata
    assert [cell.cell_type for cell in back.cells] == ["markdown", "code", "raw", "code", "code"]
    assert [cell.id for cell in back.cells[:3]] == [cell.id for cell in notebook.cells]
    assert len({cell.id for cell in back.cells}) == 5
    nbformat.validate(back)


def test_edit_refuses_to_lose_something(tmp_path):
    write_chapter(tmp_path, "01_good", "x = 1")
    file = course.edit(tmp_path / "01_good.ipynb", tmp_path / "build")
    assert course.edit(tmp_path / "01_good.ipynb", tmp_path / "build") == file
    file.write_text(file.read_text() + "\n# %%\nmine = 1\n")
    with pytest.raises(LabError, match=r"01_good\.py holds other text than the notebook"):
        course.edit(tmp_path / "01_good.ipynb", tmp_path / "build")
    assert "mine" in file.read_text()
    write_chapter(tmp_path, "02_odd", "x = 1", "# %% no cell\ny = 1")
    with pytest.raises(LabError, match=r"cell 4 of .* would not come back from text"):
        course.edit(tmp_path / "02_odd.ipynb", tmp_path / "build")


def test_a_chapter_is_edited_and_committed_from_the_shell(tmp_path, monkeypatch, capsys):
    cells = (
        "from labkit import course\nfrom labkit.notebook import report, show, start",
        "lab = start(profile, seed)",
        "show(course.install_cell)",
        "x = 1",
        REPORT,
    )
    write_chapter(tmp_path / "notebooks", "01_small", *cells)
    readme = tmp_path / "README.md"
    readme.write_text(f"{course.TABLE_BEGIN}\n{course.TABLE_END}\n")
    path = tmp_path / "notebooks" / "01_small.ipynb"
    monkeypatch.chdir(tmp_path)

    def shell(*arguments):
        command = [sys.executable, "-m", "labkit.course", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert shell("edit", "notebooks/01_small.ipynb") == "build/01_small.py\n"
    text = tmp_path / "build" / "01_small.py"
    text.write_text(text.read_text().replace("40 + 2", "40 + 3"))
    said = shell("commit", "notebooks/01_small.ipynb", "--profile", "smoke")
    assert re.fullmatch(
        r"notebooks/01_small\.ipynb: \d+ s, peak memory \d\.\d GB\n"
        r"its metrics are in build/01_small\.json\n",
        said,
    )
    metrics = course.metrics_of(path)
    assert metrics["metrics"]["answer"] == 43
    assert metrics == json.loads((tmp_path / "build" / "01_small.json").read_text())
    assert course.stale(path) == []
    assert list(nbformat.read(path, as_version=4).metadata.labkit.shown) == [
        "labkit.course.stamping.install_cell"
    ]
    assert "| [01 · A title](notebooks/01_small.ipynb) |" in readme.read_text()
    assert shell("edit", "notebooks/01_small.ipynb") == "build/01_small.py\n"

    # In this process: nothing is left to stamp; then a cell changes, and the address.
    monkeypatch.setattr(course.shows, "SENTENCES", {"01": ""})  # the real 01 says other figures
    monkeypatch.setattr(labkit, "__file__", str(tmp_path / "site" / "labkit" / "__init__.py"))
    assert main(["stamp", "--check"]) == 0
    change(path, "x = 1", "x = 2")
    assert main(["stamp", "--check"]) == 1
    assert capsys.readouterr().err.startswith("01_small: the code cells are not those")
    before = path.read_bytes()
    monkeypatch.setattr(labkit, "REPOSITORY", "https://github.com/new/home")
    assert main(["stamp", "--check"]) == 1
    assert f"{path} is stale: run `python -m labkit.course stamp`." in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main(["stamp"]) == 0
    assert f"stamped {path}" in capsys.readouterr().out


def test_a_commit_that_cannot_be_leaves_the_notebook(tmp_path, monkeypatch, capsys):
    write_chapter(tmp_path / "notebooks", "01_small", "x = 1")
    path = tmp_path / "notebooks" / "01_small.ipynb"
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    assert main(["commit", str(path)]) == 2
    missing = "There is no build/01_small.py: run `python -m labkit.course edit"
    assert missing in capsys.readouterr().err
    text = course.edit(path)
    good = text.read_text()
    for tag in ("colab", "parameters", "imports"):
        text.write_text(good.replace(f' tags=["{tag}"]', ""))
        assert main(["commit", str(path)]) == 2
        said = capsys.readouterr().err
        assert f"build/01_small.py has 0 cells tagged '{tag}', there must be 1" in said
        assert said.count("\n") == 1
    text.write_text(good + '\n# %% tags=["imports"]\nimport os\n')
    assert main(["commit", str(path)]) == 2
    text.write_text(good.replace("x = 1", "x = 1 / 0"))
    assert main(["commit", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_without_jupytext_one_sentence_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    write_chapter(tmp_path, "01_small", "x = 1")
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert main(["edit", str(tmp_path / "01_small.ipynb"), "--out", str(tmp_path)]) == 2
    said = "jupytext is not installed: run pip install jupytext\n"
    assert capsys.readouterr().err == said


def test_the_address_is_set_by_one_command(tmp_path, monkeypatch, capsys):
    write_chapter(tmp_path / "notebooks", "01_small", "x = 1")
    (tmp_path / "labkit").mkdir()
    file = tmp_path / "labkit" / "__init__.py"
    file.write_text('before = 1\nREPOSITORY = ""\nafter = 2\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labkit, "__file__", str(tmp_path / "site" / "labkit" / "__init__.py"))
    monkeypatch.setattr(labkit, "REPOSITORY", "")

    def stamped(address):
        assert main(["stamp", "--repository", address]) == 0
        notebook = (tmp_path / "notebooks" / "01_small.ipynb").read_text()
        badge = "blob/main/notebooks/01_small.ipynb" in notebook
        return file.read_text().splitlines()[1].removeprefix("REPOSITORY = "), badge

    assert stamped("https://github.com/some/one") == ('"https://github.com/some/one"', True)
    assert stamped("") == ('""', False)
    subprocess.run(["git", "init", "-q"], check=True)
    assert main(["stamp", "--repository", "origin"]) == 2
    assert "has no remote named origin" in capsys.readouterr().err
    remote = ["git", "remote", "add", "origin", "git@github.com:some/fork.git"]
    subprocess.run(remote, check=True)
    assert stamped("origin") == ('"https://github.com/some/fork"', True)
    for wrong in ("http://github.com/a/b", "https://example.org/a/b", 'x"\nimport os\n"'):
        assert main(["stamp", "--repository", wrong]) == 2
        assert "is not one of GitHub" in capsys.readouterr().err
    assert file.read_text().startswith("before = 1\n")


# --- the pages need no network -----------------------------------------------------------------


def test_a_page_has_its_formulas_and_asks_nobody_for_anything():
    """Of every committed chapter: each formula is MathML, and nothing is a script or a link out."""
    for chapter in course.chapters():
        source = "\n".join(
            c.source for c in course.read_notebook(chapter.path).cells if c.cell_type == "markdown"
        )
        page = course.to_html(chapter.path)
        assert page.count("<math") >= source.count("$$") // 2
        if source.count("$") > 4:
            assert page.count("<math") > source.count("$") // 4
        assert "<script" not in page
        assert not re.findall(r'<(?:img|link|iframe)[^>]+(?:src|href)="https?:', page)
        assert not re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", page)
        text = re.sub(r"<(pre|code|style)\b.*?</\1>|<[^>]+>", "", page, flags=re.DOTALL)
        assert not re.findall(r"\\(?:frac|sum|sqrt|text|mathbb)\b", text), chapter.name


def test_a_page_folds_the_code_of_folded_cells(tmp_path):
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("hidden = 1", metadata={"tags": ["imports", "hide-input"]}),
            nbformat.v4.new_code_cell("shown = 2"),
        ]
    )
    nbformat.write(made, tmp_path / "a.ipynb")
    page = course.to_html(tmp_path / "a.ipynb")
    folded, plain = re.findall(
        r'<div class="jp-Cell jp-CodeCell.*?(?=<div class="jp-Cell |</body>)', page, re.DOTALL
    )
    button = f'<details><summary data-hide="{HIDE}">{SHOW}</summary>'
    assert folded.index(button) < folded.index("hidden") < folded.index("</details>")
    assert "<details" not in plain
    assert "celltag_imports" in folded.split(">")[0]
    assert '.celltag_imports > details summary::after { content: " · imports" }' in page


def test_code_and_prices_are_no_formulas():
    html = "<p>$x < y$ costs $5 and $6</p><code>$HOME/$x$</code><pre>$$a$$</pre>"
    shown = with_mathml(html.replace("x < y", "x &lt; y"))
    assert shown.count("<math") == 1
    assert "&#x0003C;" in shown or "&lt;" in shown
    assert "costs $5 and $6" in shown
    assert "<code>$HOME/$x$</code><pre>$$a$$</pre>" in shown


def test_a_formula_that_cannot_be_converted_stays_as_it_is_written(monkeypatch):
    def convert(*_, **__):
        raise ValueError("no such command")

    monkeypatch.setattr("latex2mathml.converter.convert", convert)
    assert with_mathml("<p>$a$ $$b$$</p>") == "<p>$a$ $$b$$</p>"


def test_a_page_has_no_badge_from_the_network(finished, tmp_path):
    """Chapters have one as soon as the project has an address."""
    notebook = nbformat.read(finished[0] / "02_good.ipynb", as_version=4)
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/x.ipynb)"
    notebook.cells[0].source += f"\n\n<!--colab-->\n{badge}\n<!--/colab-->"
    nbformat.write(notebook, tmp_path / "a.ipynb")
    page = course.to_html(tmp_path / "a.ipynb")
    assert 'href="https://colab.example/x.ipynb"' in page
    assert "badge.svg" not in page


def test_a_stamped_badge_is_markdown_and_not_part_of_a_comment(finished, tmp_path, monkeypatch):
    """A line that begins with `<!--` is HTML to its end: what follows there is mere text."""
    from markdown_it import MarkdownIt

    path = tmp_path / "notebooks" / "03_attention.ipynb"
    path.parent.mkdir()
    shutil.copy(finished[0] / "02_good.ipynb", path)
    monkeypatch.setattr(labkit, "REPOSITORY", "https://github.com/new/home")
    course.stamp(tmp_path)
    html = MarkdownIt().render(nbformat.read(path, as_version=4).cells[0].source)
    assert re.search(r'<a href="https://colab[^"]*03_attention.ipynb"><img ', html)
    assert course.stamp(tmp_path) == []

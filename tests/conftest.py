"""What every test shares: no network, one thread, one place for artefacts."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# One thread, also in child processes: how a sum is split among threads moves its last bit. The
# cores are for several tests at a time (-n 2).
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
CHAPTER_RUNS = ROOT / "test-artefacts" / "chapters"


@pytest.fixture
def artefacts() -> Path:
    """Folder for screenshots and logs that outlive the run."""
    folder = ROOT / "test-artefacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _every_device():
    """A chapter's `start` says that what comes after it is on the CPU: not so the next test."""
    yield
    os.environ.pop("LABKIT_DEVICE", None)


def pytest_collection_modifyitems(items):
    without_gpu = pytest.mark.skip(reason="needs a CUDA device, this machine has none")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(without_gpu)


def pytest_terminal_summary(terminalreporter):
    """What each chapter's run cost: a chapter should stay under fifteen seconds of CPU time."""
    costs = [json.loads(f.read_text()) for f in sorted(CHAPTER_RUNS.glob("*/cost.json"))]
    if not costs or not terminalreporter.stats.get("passed"):
        return
    terminalreporter.section("chapters under smoke")
    row = "{:<28} {:>8} {:>8} {:>8}"
    terminalreporter.line(row.format("chapter", "seconds", "CPU", "MB"))
    for cost in costs:
        line = row.format(
            cost["chapter"],
            f"{cost['seconds']:.1f}",
            f"{cost['cpu_seconds']:.1f}",
            f"{cost['peak_rss_mb'] or 0:,.0f}",
        )
        terminalreporter.line(line + ("   kept" if cost["kept"] else ""))
    total = sum(cost["cpu_seconds"] for cost in costs)
    terminalreporter.line(row.format("all", "", f"{total:.1f}", ""))

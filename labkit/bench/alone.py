"""A contestant in a process of its own, so that its peak of memory is its own.

    measure(module, name)  ->  python -m MODULE NAME  ->  {"peak_gb": ..., "seconds": ...}

Peak is what the process held at most, Python and torch included; on a GPU, what torch allocated
there.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from labkit import runtime
from labkit.errors import LabError


def measure(module: str, name: str, smaller: bool = False) -> dict[str, float]:
    """Run a contestant in a process of its own.

    Args:
        module: the workload's module; run with the name, it calls `print_figures`.
        name: of the contestant.
        smaller: a small problem, to see that it runs.

    Returns:
        `peak_gb` (10^9 bytes) and `seconds`, the median of an update after the first.

    Raises:
        LabError: the process failed; with the last line that it wrote.
    """
    command = [sys.executable, "-m", module, name, *(["--smaller"] * smaller)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was written"])[-1]
        raise LabError(f"measuring {name!r} ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_figures(moments: Sequence[float]) -> None:
    """Print this process's peak and the median seconds between moments, but for the first."""
    import torch

    device = runtime.pick_device()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = runtime.peak_rss_bytes()
    print(json.dumps({"peak_gb": peak / 1e9, "seconds": float(np.median(np.diff(moments)[1:]))}))

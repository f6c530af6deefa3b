"""The machine under a run: device, number format, ranks, random numbers.

Everything here follows from the hardware and never changes the optimisation problem: the same
config gives the same global batches on a laptop, on Colab and on eight ranks.

Sources: Micikevicius et al. 2018, "Mixed Precision Training"; PyTorch notes on reproducibility.
"""

import ctypes
import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.distributed as dist

from labkit.errors import LabError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- device and precision ----------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """Return the device by name; `auto` takes CUDA where there is one, else the CPU.

    The environment variable LABKIT_DEVICE (cpu or cuda) says what `auto` means, in this process and
    in those that it starts.

    Raises:
        LabError: the device is unknown or absent on this machine.
    """
    if name == "auto":
        cuda = torch.cuda.is_available()
        name = os.environ.get("LABKIT_DEVICE") or ("cuda" if cuda else "cpu")
        if name == "cuda" and cuda:
            name = f"cuda:{world().local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LabError(f"device {name!r} is unknown: choose auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LabError(f"device {name!r} is absent: this machine has no CUDA GPU, choose cpu")
    return device


def matmul_rate(
    dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 2048, repeats: int = 7
) -> float:
    """Measure this machine's square-matmul rate in FLOP/s (median over `repeats`).

    Cost: 2 * size^3 FLOPs a repeat, after one warm-up.
    """
    device = torch.device(device)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    torch.mm(a, b)
    wait()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(seconds))


def _bf16_pays() -> bool:
    """Whether a CPU's products in bf16 take less time than 1 / 1.2 of fp32's.

    Some CPUs emulate bf16 far slower than fp32: believe a measurement, not a flag. The two are
    timed in turns, and of each the quickest counts, because other programs disturb a clock in one
    direction only. What seems not to pay by little is timed again a moment later, up to three
    times: one burst of other work can last as long as all turns.
    """
    fp32, bf16 = torch.float32, torch.bfloat16
    squares = {dtype: torch.randn(512, 512).to(dtype) for dtype in (fp32, bf16)}
    best = dict.fromkeys(squares, math.inf)
    for pause in (0.0, 0.1, 0.2, 0.4):
        time.sleep(pause)
        for turn in range(12):
            for dtype, x in squares.items():
                start = time.perf_counter()
                torch.mm(x, x)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
            if turn > 1 and best[bf16] > 10 * best[fp32]:
                return False  # the emulation can take a second for a few products
        if not best[fp32] / 1.2 <= best[bf16] <= 2 * best[fp32]:
            break
    return 1.2 * best[bf16] < best[fp32]


@functools.cache
def _probed_precision(device_type: str) -> str:
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device_type == "cpu":
        return "bf16" if _bf16_pays() else "fp32"
    return "fp32"


def pick_precision(device: torch.device | str, name: str = "auto") -> str:
    """Return the number format of the forward and backward pass; weights stay fp32.

    `auto` probes: bf16 where it is natively fast (measured on CPUs), fp16 with loss scaling on
    GPUs without bf16, else fp32.

    Raises:
        LabError: the name is none of `PRECISIONS` or `auto`, or the device cannot do it.
    """
    device = torch.device(device)
    if name == "auto":
        return _probed_precision(device.type)
    if name not in PRECISIONS:
        raise LabError(f"precision {name!r} is unknown: choose auto, {', '.join(PRECISIONS)}")
    return name


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager:
    """Run matmuls in `precision`; a no-op for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process ever had, in bytes.

    Linux's getrusage would not do: across exec it keeps the peak of the process that started this
    one.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next tensor; done once per process.

    By default glibc gives every large block back to the kernel, and the next step of training
    faults the same pages in again, one by one. Affects CPU tensors on Linux with glibc only.

    Returns:
        Whether this platform took the setting.

    Source: mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    taken = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


# --- random numbers ----------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and CUDA) and NumPy's legacy generator.

    Raises:
        LabError: the seed is outside 0 .. 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise LabError(f"seed {seed} is out of range: choose 0 to {2**32 - 1}")
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - transformers and friends draw from the legacy generator


def rng_state() -> dict[str, Any]:
    """Capture every generator that training draws from, as plain tensors and numbers."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(cached)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` captured."""
    torch.set_rng_state(state["torch"].cpu())
    position, has_gauss, cached = state["numpy_rest"]
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


# --- ranks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    """This process among all, 0 .. size - 1."""
    local_rank: int = 0
    """This process among those on this machine."""
    size: int = 1
    """How many processes train together."""


def world() -> World:
    """Return this process's place, as `torchrun` gave it in the environment."""
    rank, local, size = (int(os.environ.get(k, d)) for k, d in _WORLD_VARIABLES)
    return World(rank, local, size)


_WORLD_VARIABLES = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and prints (rank 0)."""
    return world().rank == 0


@contextmanager
def distributed() -> Iterator[World]:
    """Join the process group for the block: NCCL on GPUs, gloo on CPUs; alone, do nothing."""
    here = world()
    ours = here.size > 1 and not dist.is_initialized()
    if ours:
        if torch.cuda.is_available():
            torch.cuda.set_device(here.local_rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield here
    finally:
        if ours:
            dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place; alone, return it unchanged."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def is_sharded(tensor: torch.Tensor) -> TypeGuard["DTensor"]:
    """Whether each rank holds a part of this tensor (torch's DTensor)."""
    if not dist.is_initialized():
        return False  # there are none; and the import below takes 0.4 s
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor whose parts the ranks hold, on every rank; any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(75)
    '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 10:
        return f"{minutes} min {rest:02} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"

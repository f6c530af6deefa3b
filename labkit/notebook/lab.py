"""`start`: the first call of a chapter. It chooses the device, seeds everything and says so."""

import atexit
import functools
import gc
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from types import SimpleNamespace
from typing import Any

import torch
from IPython.display import display

import labkit
from labkit import runtime
from labkit.course import profiles
from labkit.course.recorded import KEEP, Recorded, read_recorded, write_recorded
from labkit.notebook import plots
from labkit.notebook.tables import Table

#: In JupyterLab's dark theme a white figure is turned to dark and its colours back to their hues:
#: blue stays blue.
DARK = (
    '[data-jp-theme-light="false"] .jp-OutputArea-output img '
    "{ filter: invert(0.93) hue-rotate(180deg) }"
)

#: When the current chapter started (seconds of `time.perf_counter`; `computed`: of
#: `time.process_time`) and which one it is.
_current: dict[str, Any] = {
    "started": time.perf_counter(),
    "computed": time.process_time(),
    "chapter": "",
    "profile": "",
    "sizes": {},
    "chose_device": False,
}


@dataclass(frozen=True)
class Lab:
    """Where this chapter runs."""

    profile: str
    """"smoke", "cpu", "hour" or "gpu"."""
    device: torch.device
    """Where tensors live."""
    precision: str
    """"bf16", "fp16" or "fp32": what autocast computes matrix products in."""
    seed: int
    """The seed of every generator."""
    chapter: str
    """Two digits, such as "03"."""

    def sizes(
        self, *, smoke: dict, cpu: dict, gpu: dict, hour: dict | None = None
    ) -> SimpleNamespace:
        """The sizes of this profile; a chapter writes all openly (`hour`: what is not as `cpu`)."""
        chosen = profiles.sizes(self.profile, smoke=smoke, cpu=cpu, gpu=gpu, hour=hour)
        _current["sizes"] = vars(chosen)
        return chosen

    def recorded(
        self, name: str, rows: Sequence[Mapping[str, Any]], profile: str = "hour"
    ) -> Recorded:
        """The recorded run of an experiment; under its profile the live run is that run.

        Its header says how long the chapter took up to here. On a CPU that is
        `cpu_seconds_per_thread`, the CPU time of this process divided by its threads: it stays
        true when the run was stopped for a while, or gave way to others. On a GPU it is
        `wall_seconds`.

        Args:
            name: of the experiment in this chapter.
            rows: what the run that is live now found, as it would be recorded.
            profile: whose sizes it is recorded in, "hour" or "gpu".

        Returns:
            What was recorded; show its `label` beside it. `labkit.course record` keeps it.

        Raises:
            LabError: there is no record, or the rows cannot be one.
        """
        if self.profile != profile:
            return read_recorded(self.chapter, name)
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            clock = "cpu_seconds_per_thread"
            seconds = (time.process_time() - _current["computed"]) / threads
        else:
            clock, seconds = "wall_seconds", seconds_since_start()
        header = {
            "chapter": self.chapter,
            "name": name,
            "profile": profile,
            "command": f"labkit run {self.chapter} --profile {profile}",
            "sizes": _current["sizes"],
            "seed": self.seed,
            "device": _device_name(self.device),
            "precision": self.precision,
            "threads": threads,
            clock: round(seconds),
            "date": time.strftime("%Y-%m-%d"),
            "torch": metadata.version("torch"),
        }
        if keep := os.environ.get(KEEP):
            write_recorded(Path(keep), header, rows)
        return Recorded(header, [dict(row) for row in rows])

    def autocast(self) -> Any:
        """Context in which matrix products run in this lab's precision."""
        return runtime.autocast(self.device, self.precision)


def start(profile: str = "auto", seed: int = 0, chapter: str = "") -> Lab:
    """Seed every generator, choose device and precision, set the figure style, print one card.

    The device is the CPU, under `gpu` a GPU where there is one; LABKIT_DEVICE chooses another.

    Args:
        profile: "auto" (reads LABKIT_PROFILE), "smoke", "cpu" or "gpu".
        seed: of Python, NumPy and torch.
        chapter: two digits, such as "03".

    Returns:
        The Lab: profile, device, precision, seed, chapter.
    """
    profile = profiles.resolve_profile(profile)
    _set_imports_aside()
    runtime.seed_everything(seed)
    device = _device_of(profile)
    lab = Lab(profile, device, runtime.pick_precision(device), seed, chapter)
    plots.use_style()
    _current.update(
        started=time.perf_counter(),
        computed=time.process_time(),
        chapter=chapter,
        profile=profile,
    )
    card = {
        "profile": profile,
        "device": f"{device} ({_device_name(device)})",
        "precision": lab.precision,
        "threads": str(torch.get_num_threads()),
        "seed": str(seed),
    }
    names = ("torch", "transformers", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    versions = f"labkit {labkit.__version__}, {versions}"
    shown = Table(
        list(card), [list(card.values())], set(), f"Python {python_version()}, {versions}"
    )
    html = f"<style>{DARK}</style>{shown._repr_html_()}"
    display({"text/html": html, "text/plain": repr(shown)}, raw=True)
    return lab


@functools.cache
def _set_imports_aside() -> None:
    """From now on no search for unused objects goes through those of the imports.

    They are a million by now. Where a chapter runs headlessly nothing searched while they came
    (`labkit.course.running`), and nothing has to when the process ends.
    """
    gc.enable()
    gc.freeze()
    atexit.register(gc.freeze)


def _device_of(profile: str) -> torch.device:
    """Where a profile runs, and what `auto` means after it, in the processes of a chapter too."""
    if _current["chose_device"]:  # by an earlier `start`, maybe of another profile
        os.environ.pop("LABKIT_DEVICE", None)
    _current["chose_device"] = profile != "gpu" and "LABKIT_DEVICE" not in os.environ
    if _current["chose_device"]:
        os.environ["LABKIT_DEVICE"] = "cpu"
    return runtime.pick_device()


def seconds_since_start() -> float:
    """Seconds since `start()` was called in this kernel."""
    return time.perf_counter() - _current["started"]


def current_chapter() -> tuple[str, str]:
    """(chapter, profile) of the last `start()`; empty before it."""
    return _current["chapter"], _current["profile"]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()

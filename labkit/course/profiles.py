"""Profiles: the sizes of a chapter on the machine at hand.

smoke   seconds: does it run?
cpu     minutes on two cores: what is committed
hour    up to an hour on the same cores: recorded once, shown beside `cpu` (see `recorded`)
gpu     minutes on one GPU: the same experiments, larger
"""

import os
from types import SimpleNamespace

import torch

from labkit.errors import LabError

PROFILES = ("smoke", "cpu", "hour", "gpu")


def resolve_profile(profile: str = "auto") -> str:
    """Return which sizes a chapter uses: `smoke`, `cpu`, `hour` or `gpu`.

    Args:
        profile: one of `PROFILES`, or `auto`: the environment variable `LABKIT_PROFILE` if it is
            set, else `gpu` where CUDA is available, else `cpu`.

    Raises:
        LabError: the name is none of these.
    """
    if profile == "auto":
        profile = os.environ.get("LABKIT_PROFILE", "auto")
    if profile == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if profile not in PROFILES:
        raise LabError(f"profile {profile!r} is unknown: choose one of {', '.join(PROFILES)}, auto")
    return profile


def sizes(
    profile: str, *, smoke: dict, cpu: dict, gpu: dict, hour: dict | None = None
) -> SimpleNamespace:
    """Pick one profile's sizes; all stand in the open in the chapter's cell.

    Args:
        profile: as in `resolve_profile`.
        smoke, cpu, gpu: every size in each.
        hour: what differs from `cpu` in an hour; None: nothing.

    >>> sizes("cpu", smoke=dict(steps=2), cpu=dict(steps=300), gpu=dict(steps=5000)).steps
    300

    Raises:
        LabError: smoke, cpu and gpu do not name the same sizes, or hour names another.
    """
    choices = {"smoke": smoke, "cpu": cpu, "gpu": gpu, "hour": {**cpu, **(hour or {})}}
    names = set().union(*choices.values())
    for key, value in choices.items():
        if missing := names - set(value):
            raise LabError(f"profile {key!r} lacks {sorted(missing)}: give every size in each")
    return SimpleNamespace(**choices[resolve_profile(profile)])

"""Profiles: by name, by environment, by machine; sizes for all of them."""

import doctest
import os

import pytest
import torch

from labkit import course, runtime
from labkit.course import profiles
from labkit.errors import LabError
from labkit.notebook import start


def test_profile_comes_from_the_name_then_the_environment(monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", "smoke")
    assert course.resolve_profile() == "smoke"
    assert course.resolve_profile("cpu") == "cpu"
    monkeypatch.delenv("LABKIT_PROFILE")
    assert course.resolve_profile() == ("gpu" if torch.cuda.is_available() else "cpu")


def test_a_profile_chooses_the_device_of_all_that_follows(monkeypatch):
    """On a machine with a GPU: `auto` is where the chapter runs, in its processes too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(runtime, "pick_precision", lambda *_: "fp32")
    monkeypatch.delenv("LABKIT_DEVICE", raising=False)
    for profile, expected in (
        ("smoke", "cpu"),
        ("gpu", "cuda:0"),
        ("cpu", "cpu"),
        ("gpu", "cuda:0"),
    ):
        lab = start(profile, 0, "00")
        assert str(lab.device) == str(runtime.pick_device()) == expected, profile
        assert os.environ.get("LABKIT_DEVICE") == (None if profile == "gpu" else "cpu")
    monkeypatch.setenv("LABKIT_DEVICE", "cuda")
    assert str(start("smoke", 0, "00").device) == "cuda:0", "unless the reader says otherwise"
    assert os.environ["LABKIT_DEVICE"] == "cuda"


def test_an_unknown_profile_is_named():
    with pytest.raises(LabError, match="profile 'huge' is unknown: choose one of smoke, cpu, hour"):
        course.resolve_profile("huge")


def test_sizes_must_be_named_in_all_profiles():
    for profile, n in (("smoke", 1), ("cpu", 2), ("hour", 2), ("gpu", 3)):
        assert course.sizes(profile, smoke={"n": 1}, cpu={"n": 2}, gpu={"n": 3}).n == n
    with pytest.raises(LabError, match="profile 'gpu' lacks"):
        course.sizes("smoke", smoke={"n": 1}, cpu={"n": 2}, gpu={})


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_a_size_that_smoke_alone_has_or_lacks_is_noticed_in_any_run(profile):
    """The fingerprint of outputs leaves `smoke` out, so the run itself must notice."""
    with pytest.raises(LabError, match=r"profile 'cpu' lacks \['m'\]"):
        course.sizes(profile, smoke={"n": 1, "m": 1}, cpu={"n": 2}, gpu={"n": 3})
    with pytest.raises(LabError, match=r"profile 'smoke' lacks \['n'\]"):
        course.sizes(profile, smoke={}, cpu={"n": 2}, gpu={"n": 3})


def test_examples_in_docstrings():
    assert doctest.testmod(profiles).failed == 0

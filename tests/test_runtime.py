"""runtime: devices, precision, random numbers, ranks."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from labkit import runtime
from labkit.errors import LabError


def test_unknown_names_are_named():
    with pytest.raises(LabError, match="device 'toaster' is unknown"):
        runtime.pick_device("toaster")
    with pytest.raises(LabError, match="precision 'fp8' is unknown"):
        runtime.pick_precision("cpu", "fp8")
    with pytest.raises(LabError, match="seed -1 is out of range"):
        runtime.seed_everything(-1)


def test_the_environment_says_what_auto_means(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.pick_device() == torch.device("cuda:0")
    for said, found in (("cpu", "cpu"), ("cuda", "cuda:0"), ("", "cuda:0")):
        monkeypatch.setenv("LABKIT_DEVICE", said)
        assert runtime.pick_device() == torch.device(found), said
        assert runtime.pick_device("cuda:1") == torch.device("cuda:1"), "a name is a name"
    monkeypatch.setenv("LABKIT_DEVICE", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert runtime.pick_device() == torch.device("cuda:1"), "each rank has its own"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match="device 'cuda' is absent"):
        runtime.pick_device()
    monkeypatch.setenv("LABKIT_DEVICE", "toaster")
    with pytest.raises(LabError, match="device 'toaster' is unknown"):
        runtime.pick_device()


def test_random_state_round_trip():
    runtime.seed_everything(5)
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    state = runtime.rng_state()
    expected = torch.rand(4), np.random.rand(4)  # noqa: NPY002
    runtime.seed_everything(6)
    runtime.set_rng_state(state)
    assert torch.equal(torch.rand(4), expected[0])
    assert np.array_equal(np.random.rand(4), expected[1])  # noqa: NPY002


def test_autocast_runs_matmuls_in_the_named_format():
    a = torch.ones(2, 2)
    with runtime.autocast("cpu", "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with runtime.autocast("cpu", "fp32"):
        assert (a @ a).dtype == torch.float32


def test_alone_there_is_one_rank_and_sums_are_unchanged():
    assert runtime.world() == runtime.World(0, 0, 1)
    assert runtime.is_main()
    values = torch.tensor([1.0, 2.0])
    assert runtime.sum_over_ranks(values) is values


def test_ranks_come_from_torchrun(monkeypatch):
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert runtime.world() == runtime.World(3, 1, 4)
    assert not runtime.is_main()


def test_measured_rates_and_memory_are_positive():
    assert runtime.matmul_rate(torch.float32, size=64, repeats=3) > 0
    assert runtime.peak_rss_bytes() > 10 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child may inherit the peak")
def test_peak_memory_is_that_of_the_process_not_of_its_parent():
    """The parent holds 600 MB when it starts a child that holds next to nothing."""
    child = "from labkit import runtime; print(runtime.peak_rss_bytes())"
    parent = (
        "import subprocess, sys; held = bytearray(b'1') * 600_000_000;"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True)
    assert int(done.stdout) < 500e6


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_on_linux():
    assert runtime.keep_freed_memory()


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(2.0, 0.8, "bf16"), (2.0, 1.9, "fp32"), (2.0, 300.0, "fp32")]
)
def test_other_programs_do_not_change_the_number_format(monkeypatch, fp32, bf16, expected):
    """Two thirds of the products are disturbed, by up to fifty times what they take alone."""
    chance, now, asked = random.Random(0), [0.0], []

    def mm(a, b):
        own = fp32 if a.dtype == torch.float32 else bf16
        asked.append(a.dtype)
        now[0] += own * (1 if len(asked) % 6 > 3 else chance.uniform(1, 50))
        return a

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    runtime._probed_precision.cache_clear()
    try:
        assert runtime.pick_precision("cpu") == expected
    finally:
        runtime._probed_precision.cache_clear()
    if bf16 > 10 * fp32:
        assert len(asked) < 24  # emulated products are not repeated for long


def test_a_burst_of_other_work_during_the_first_probe_does_not_hide_bf16(monkeypatch):
    now, asked = [0.0], []

    def mm(a, b):
        asked.append(a.dtype)
        disturbed = now[0] < 0.12  # seconds: all of the first turns
        now[0] += (0.002 if a.dtype == torch.float32 else 0.001) * (2 if disturbed else 1)
        if disturbed and a.dtype == torch.bfloat16:
            now[0] += 0.002
        return a

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(runtime.time, "sleep", sleep)
    runtime._probed_precision.cache_clear()
    try:
        assert runtime.pick_precision("cpu") == "bf16"
    finally:
        runtime._probed_precision.cache_clear()

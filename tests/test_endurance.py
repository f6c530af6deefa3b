"""A run that is killed again and again, and two runs that want the same folder."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import config, ragged_batches, tiny_model

from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.training import checkpoint, train

STEPS, KILLS = 600, 20
SETTINGS = {"steps": STEPS, "save_every": 7, "optimizer": "adamw"}
CHILD = f"""
import sys
import torch
from pathlib import Path
from training import config, ragged_batches, tiny_model
from labkit.objectives import causal_lm
from labkit.training import train

torch.set_num_threads(1)
print("ready", flush=True)
settings = config(**{SETTINGS!r}, out=Path(sys.argv[1]), resume=True)
train(tiny_model(dropout=0.1), causal_lm, ragged_batches(), settings)
"""


def begin(out: Path) -> subprocess.Popen:
    """A process of its own that continues the run, at the moment when it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def saved_step(run: Path) -> int:
    newest = checkpoint.newest(run / "checkpoints") if run.exists() else None
    return newest.step if newest else 0


def recorded(run: Path) -> int:
    """Updates in the log of metrics."""
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_run_ends_bit_equal(tmp_path):
    """SIGKILL while it restores, trains, saves or prunes: the end is that of an undisturbed run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = tiny_model(dropout=0.1)
        settings = config(**SETTINGS, out=tmp_path / "whole")
        train(whole, causal_lm, ragged_batches(), settings)
    finally:
        torch.set_num_threads(threads)
    moments = random.Random(0)
    run, found = tmp_path / "run", []
    for kill in range(KILLS):
        process = begin(run)
        # More than a kill loses, and so few that all lives together do not end the run.
        target = saved_step(run) + moments.randrange(SETTINGS["save_every"] + 1, STEPS // KILLS)
        # Every second life may end earlier, perhaps while it still restores.
        deadline = time.monotonic() + (60.0 if kill % 2 else moments.uniform(0.0, 1.0))
        while recorded(run) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        found.append(saved_step(run))
    assert found == sorted(found), "a kill cost more than the steps since the last checkpoint"
    assert len(set(found)) > KILLS // 4, f"the kills fell on too few different moments: {found}"
    last = begin(run)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    ours = checkpoint.newest(run / "checkpoints")
    theirs = checkpoint.newest(tmp_path / "whole" / "checkpoints")
    assert ours.step == theirs.step == STEPS
    for group, tensors in theirs.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(ours.tensors[group][name], tensor), f"{group}/{name} differs"
    lines = [
        (folder / "metrics.jsonl").read_text().count("\n") for folder in (run, tmp_path / "whole")
    ]
    assert lines == [STEPS, STEPS]


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(tmp_path):
    first = begin(tmp_path / "run")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        settings = config(**SETTINGS, out=tmp_path / "run", resume=True)
        with pytest.raises(LabError, match="in use by another run: choose another `out`"):
            train(tiny_model(dropout=0.1), causal_lm, ragged_batches(), settings)
        assert first.poll() is None, "the first run must not notice"
    finally:
        first.kill()
        first.communicate()

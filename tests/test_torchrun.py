"""Several processes as torchrun starts them: nodes, a killed rank, another number of ranks."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from commands import SMALL, environment, here, losses, write_text

pytestmark = [pytest.mark.multi, pytest.mark.slow]


def launch(arguments: list, *launcher: str, **variables: str) -> subprocess.Popen:
    """Start `torchrun LAUNCHER -m labkit ARGUMENTS`."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "labkit"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {**environment(), **variables}
    return subprocess.Popen([*torchrun, *map(str, arguments)], env=env, **pipes)


def two_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of two of this machine's network interfaces."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    found = [
        (name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if name in up and address.family == socket.AF_INET
    ]
    if len(dict(found)) < 2:
        pytest.skip("this machine has one network interface")
    return list(dict(found).items())[:2]


def rank_of(process: psutil.Process) -> str | None:
    """RANK of a process of torchrun's, None of another."""
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def listens_at(process: subprocess.Popen, address: str) -> bool:
    """Whether a rank of this torchrun waits for others at the address."""
    try:
        children = psutil.Process(process.pid).children()
        links = [x.net_connections() for x in children if rank_of(x) is not None]
    except psutil.Error:
        return False
    return any(link.laddr.ip == address for own in links for link in own if link.laddr)


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(2400):
        if condition():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"it never came so far: {process.communicate()[1][-2000:]}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, Path]:
    """A text and the run folder of one process."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_text(folder / "a.txt")
    assert here("pretrain", "--data", folder / "a.txt", "--out", folder / "run", *SMALL) == 0
    return folder / "a.txt", folder / "run"


def test_two_nodes_with_addresses_of_their_own_learn_what_one_process_learns(alone, tmp_path):
    text, run = alone
    addresses = two_addresses()
    with socket.socket() as free:
        free.bind((addresses[0][1], 0))
        port = free.getsockname()[1]
    out = tmp_path / "run"
    nodes = [
        launch(
            ["pretrain", "--data", text, "--out", out, *SMALL, "--parallel", "ddp"],
            *("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"),
            *("--master-addr", addresses[0][1], "--master-port", str(port)),
            *("--local-addr", address),
            GLOO_SOCKET_IFNAME=interface,
        )
        for node, (interface, address) in enumerate(addresses)
    ]
    for node, (_, address) in zip(nodes, addresses, strict=True):
        wait_for(partial(listens_at, node, address), node)
    said = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert losses(out) == pytest.approx(losses(run), rel=1e-5)


def test_a_killed_rank_ends_the_run_in_a_sentence_and_another_number_of_ranks_goes_on(
    alone, tmp_path
):
    text, _ = alone
    long = [*SMALL, "--steps", 120, "--eval-every", 0, "--save-every", 5]
    arguments = ["pretrain", "--data", text, "--out", tmp_path / "two", *long, "--parallel", "fsdp"]
    assert here("pretrain", "--data", text, "--out", tmp_path / "one", *long) == 0
    process = launch(arguments, "--standalone", "--nproc-per-node", "2")
    saved = tmp_path / "two" / "checkpoints"
    wait_for(lambda: list(saved.glob("step-*")), process)
    ranks = {rank_of(child): child for child in psutil.Process(process.pid).children()}
    os.kill(ranks["1"].pid, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    ours = [line for line in err.splitlines() if line.startswith(("labkit: ", "labkit ("))]
    assert len(ours) == 1, err
    assert "was killed" in ours[0]
    assert "--resume" in ours[0]
    done = len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines())
    assert 5 <= done < 120, "it was killed on the way"
    assert here("pretrain", "--resume", "--out", tmp_path / "two") == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)

"""Kernels forked from a process that has imported what chapters import (`--profile smoke`).

They must be what ordinary kernels are, and none may stay behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_course import START, write_chapter

from labkit import course
from labkit.course import kernels
from labkit.course.profiles import PROFILES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")

WHERE = """
import os, subprocess, sys, time
import torch, numpy as np
child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
time.sleep(1)  # it ends while nobody waits for it
began_by = open(f"/proc/{os.getppid()}/cmdline").read()
facts = {
    "forked": "labkit.course.kernels" in began_by,
    "cwd": os.getcwd(),
    "said": os.environ.get("SAID_LATER", ""),
    "pid": os.getpid(),
    "session": os.getsid(0) == os.getpid(),
    "stdin": len(sys.stdin.read()) if not hasattr(sys.stdin, "isatty") else 0,
    "child": child.wait(),
    "product": float((np.ones((300, 300)) @ np.ones((300, 300))).sum()),
    "threads": torch.get_num_threads(),
    "drawn": [float(torch.rand(())), float(np.random.rand()), float(torch.randn(64, 64).sum())],
    "layer": float(torch.nn.Linear(400, 400)(torch.rand(400, 400)).sum()),
}
"""
PICTURE = "fig, ax = plots.figure(height=2)\nax.plot([0, 1])\nfig"
PLAIN = "import matplotlib.pyplot as plt\nplt.plot([0, 1]);"
TELL = "import json\nopen('../told.json', 'w').write(json.dumps(facts))"


def run(folder: Path, *cells: str) -> dict:
    """A chapter of these cells, run under smoke; the `facts` that it told."""
    folder.mkdir(exist_ok=True)
    write_chapter(folder / "notebooks", "01_toy", START, *cells, TELL)
    course.run(profile="smoke", out=folder / "out", folder=folder / "notebooks", progress=False)
    return json.loads((folder / "told.json").read_text())


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_forked_kernel_is_what_an_ordinary_one_is(tmp_path, monkeypatch):
    kernels.manager_of("smoke")
    monkeypatch.setenv("SAID_LATER", "after the server began")
    forked = run(tmp_path / "a", WHERE, PICTURE, PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_forked", lambda *_: None)
        ordinary = run(tmp_path / "b", WHERE, PICTURE, PLAIN)
    assert (forked.pop("forked"), ordinary.pop("forked")) == (True, False)
    assert forked.pop("cwd") == str(tmp_path / "a" / "notebooks")
    assert ordinary.pop("cwd") == str(tmp_path / "b" / "notebooks")
    pids = forked.pop("pid"), ordinary.pop("pid")
    assert forked == ordinary
    assert forked["said"] == "after the server began"
    assert forked["child"] == 3, "it waits for its own children"
    assert wait_until(lambda: not any(map(is_running, pids))), "the kernels ended"
    pages = [(tmp_path / it / "out" / "01_toy.html").read_text() for it in "ab"]
    assert pages[0].count("data:image/png") == pages[1].count("data:image/png") > 0


def test_the_time_of_kernels_that_have_ended_is_known(tmp_path):
    kernels.manager_of("smoke")
    before = kernels.cpu_seconds()
    burn = (
        "import time\nbegan = time.process_time()\nwhile time.process_time() < began + 1.5:\n"
        "    sum(range(1000))\nfacts = {}"
    )
    run(tmp_path, burn)
    assert 1.5 < kernels.cpu_seconds() - before < 6


def test_only_smoke_on_the_cpu_forks(monkeypatch):
    monkeypatch.delenv("LABKIT_DEVICE", raising=False)
    forks = {name: kernels.manager_of(name) is kernels.ForkedKernelManager for name in PROFILES}
    assert forks == {"smoke": True, "cpu": False, "hour": False, "gpu": False}
    monkeypatch.setenv("LABKIT_DEVICE", "cuda")
    assert kernels.manager_of("smoke") is not kernels.ForkedKernelManager


def test_files_where_it_was_started_are_not_taken_for_modules(tmp_path):
    (tmp_path / "random.py").write_text("raise RuntimeError('not this one')")
    program = (
        "from labkit.course import kernels; kernels.manager_of('smoke')\n"
        "print(kernels.cpu_seconds(), kernels._server.cache_info().currsize)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "0.0 1\n", done.stderr


def test_two_kernels_share_nothing(tmp_path):
    mark = "import csv\nfacts = {'seen': hasattr(csv, 'mark')}\ncsv.mark = 1"
    assert [run(tmp_path / it, mark)["seen"] for it in "ab"] == [False, False]


def test_a_forked_kernel_that_dies_is_said_in_one_sentence(tmp_path):
    with pytest.raises(course.ChapterFailed, match=r"01_toy: DeadKernelError: Kernel died$"):
        run(tmp_path, "import os\nos._exit(1)")


def test_without_the_server_chapters_run_all_the_same(tmp_path, monkeypatch):
    kernels.manager_of("smoke")
    server = kernels._server()._process
    server.kill()
    server.wait()
    assert run(tmp_path / "a", WHERE)["forked"], "another one was started"
    monkeypatch.setattr(kernels, "_Server", Mock(side_effect=OSError("no room")))
    kernels._server.cache_clear()
    kernels.manager_of("smoke")
    assert not run(tmp_path / "b", WHERE)["forked"]


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
    ids=["killed", "stopped", "interrupted"],
)
def test_no_kernel_outlives_the_run(tmp_path, number):
    """The process of `labkit run` is killed while a chapter computes."""
    note = tmp_path / "pid"
    cell = (
        f"import os, time\nopen({str(note)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} ')\n"
        "time.sleep(600)"
    )
    write_chapter(tmp_path / "notebooks", "01_long", START, cell)
    program = (
        "from labkit import course; course.run(profile='smoke', progress=False,"
        f" out={str(tmp_path / 'out')!r}, folder={str(tmp_path / 'notebooks')!r})"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        assert wait_until(lambda: note.exists() and len(note.read_text().split()) == 2, 120)
        kernel, server = map(int, note.read_text().split())
        assert is_running(kernel)
        assert is_running(server)
        os.killpg(owner.pid, number)  # as a terminal does
        _, said = owner.communicate(timeout=60)
        assert "kernels.py" not in said, "the server has nothing to say"
        assert wait_until(lambda: not is_running(kernel) and not is_running(server))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(owner.pid, signal.SIGKILL)

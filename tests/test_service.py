"""`Service`: a service that a cell starts answers, and never outlives whoever started it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
from commands import environment, sentences
from training import tiny_model

from labkit.errors import LabError
from labkit.models.huggingface import save_pretrained
from labkit.notebook import Service
from labkit.text import train_bpe

pytestmark = pytest.mark.multi

KERNEL = """
import sys, time
from labkit.notebook import Service
service = Service(sys.argv[1])
print(service.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_bpe(sentences(200), 320)
    model = tiny_model(vocab_size=tokenizer.vocab_size, context_length=64)
    return save_pretrained(model, tmp_path_factory.mktemp("served") / "tiny", tokenizer)


def gone(pid: int, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_it_answers_and_ends_when_it_is_closed(folder):
    with Service(folder, "--slots", 2) as service:
        asked = urllib.request.Request(
            f"{service.address}/v1/models", headers={"Authorization": f"Bearer {service.token}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert b'"tiny"' in answer.read()
        pid = service.pid
    assert gone(pid)
    service.close()  # twice does nothing
    with pytest.raises(LabError, match=r"did not begin: .*slots"):
        Service(folder, "--slots", 0)


def test_it_ends_when_its_notebook_is_killed(folder):
    """kill -9: nobody has the time to stop anything."""
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert kernel.stdout is not None
    pid = int(kernel.stdout.readline())
    assert not gone(pid, seconds=0.5)
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.wait()
    assert gone(pid)

"""Kernels that begin with the imports done: how `smoke` runs chapter after chapter.

A smoke run takes seconds, and five of them went into importing torch, transformers and the rest,
for every chapter again. Here one process imports them once and forks itself for each chapter:

    labkit run ── a line of JSON ──> server ── fork ──> kernel of a chapter
                <── its process id ──┘                  (IPython's own kernel application)

The server computes nothing, so a kernel is what it would be after the same imports. It ends when
the process that started it does, and its kernels with it. Linux only: elsewhere, where the kernel
is of another Python, and where the server cannot run, kernels begin as Jupyter begins them.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

#: What chapters import, or what a first optimizer or model imports behind them; not pyplot's inline
#: backend, which must find the kernel running when it is imported.
IMPORTED = (
    "torch._dynamo",
    "datasets",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "ipywidgets",
    "ipykernel.kernelapp",
    "labkit.notebook.lab",
    "labkit.notebook.checks",
    "labkit.generation.loaded",
    "labkit.training.loop",
    "labkit.text.corpora",
)
_LAUNCHER = "ipykernel_launcher"
#: Without the current folder: a file random.py in it must not be taken for Python's.
_BEGIN = f"import sys; sys.path.pop(0); from {__name__} import serve; serve(int(sys.argv[1]))"


class ForkedKernelManager(AsyncKernelManager):
    """Starts kernels by forking a process that has imported what chapters import."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        provisioner: Any = self.provisioner
        ordinary = provisioner.launch_kernel

        async def launch_kernel(command: list[str], **options: Any) -> Any:
            cwd = str(options.get("cwd") or Path.cwd())
            process = None
            if _is_ours(command):
                arguments = command[command.index(_LAUNCHER) + 1 :]
                process = _forked(arguments, cwd, options.get("env") or dict(os.environ))
            if process is None:
                return await ordinary(command, **options)
            provisioner.process = process
            provisioner.pid = provisioner.pgid = process.pid
            provisioner.cwd = cwd
            return provisioner.connection_info

        provisioner.launch_kernel = launch_kernel
        await super()._async_launch_kernel(kernel_cmd, **options)

    _launch_kernel = _async_launch_kernel  # what older ones of jupyter_client call


def _is_ours(command: list[str]) -> bool:
    """Whether a kernel's command runs IPython's kernel in this very Python."""
    same = os.path.realpath(command[0]) == os.path.realpath(sys.executable)
    return same and _LAUNCHER in command


class _Forked:
    """A process that is not our child, with what Jupyter asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._handle)

    def poll(self) -> int | None:
        """None while it runs; then 0: how it ended, its parent alone is told."""
        return 0 if select.select([self._handle], [], [], 0)[0] else None

    def wait(self) -> int:
        select.select([self._handle], [], [])
        return 0

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Server:
    """The process that forks, as its user sees it."""

    def __init__(self) -> None:
        os.close(os.pidfd_open(os.getpid()))  # an OSError where the system has no such thing
        answers, theirs = os.pipe()
        self._answers = open(answers)  # noqa: SIM115 - open as long as the server is
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, str(theirs)],
            stdin=subprocess.PIPE,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C is for the process that asks
            text=True,
        )
        os.close(theirs)
        self._answer()

    def fork(self, arguments: list[str], cwd: str, environment: dict[str, str]) -> _Forked:
        request = {"arguments": arguments, "cwd": cwd, "environment": environment}
        return _Forked(int(self._ask(request)))

    def cpu_seconds(self) -> float:
        return float(self._ask({}))

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        """Its next line.

        Raises:
            OSError: it has ended.
        """
        said = self._answers.readline()
        if not said:
            raise OSError("the process that forks kernels has ended")
        return said


@functools.cache
def _server() -> _Server:
    """The server of this process, started when it is first asked for."""
    return _Server()


def _forked(arguments: list[str], cwd: str, environment: dict[str, str]) -> _Forked | None:
    """A new kernel; None if there is no server, and none can be started."""
    for _ in range(2):
        try:
            return _server().fork(arguments, cwd, environment)
        except OSError:  # none could be started, or it was killed since
            _server.cache_clear()
    return None


def manager_of(profile: str) -> type[AsyncKernelManager]:
    """What starts the kernels of a profile; under `smoke` its server begins now.

    Other profiles compute for minutes, and a process that uses a GPU is not to be forked.
    """
    device = os.environ.get("LABKIT_DEVICE") or "cpu"
    if sys.platform != "linux" or profile != "smoke" or device != "cpu":
        return AsyncKernelManager
    with contextlib.suppress(OSError):  # kernels then begin as Jupyter begins them
        _server()
    return ForkedKernelManager


def cpu_seconds() -> float:
    """CPU time of the forked kernels that have ended, and of what they started and waited for."""
    return _server().cpu_seconds() if _server.cache_info().currsize else 0.0


def serve(answers: int) -> None:
    """Import, then fork a kernel for each line of stdin, until there is none."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel sets it
    gc.disable()
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # a chapter that needs it will say so
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, _bury)
    os.write(answers, b"ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            _bury()
            spent = os.times()
            answer = spent.children_user + spent.children_system
        elif (answer := os.fork()) == 0:
            os.close(answers)
            _become_kernel(**request)
        os.write(answers, f"{answer}\n".encode())


def _bury(*_: Any) -> None:
    """Take note of every kernel that has ended, so that none stays as a zombie."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_kernel(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """What `python -m ipykernel_launcher` does, in a process that has begun."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [_LAUNCHER, *arguments]

    from ipykernel import kernelapp

    # It ends when its parent does: said here, because the variable that Jupyter uses is read when
    # ipykernel is imported.
    kernelapp.launch_new_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    sys.exit()

"""The command line: `labkit COMMAND`, or `python -m labkit COMMAND`, also under torchrun.

    arguments -> options.<Command> -> the module that does the work -> exit code

0: done. 1: a chapter failed, something essential is missing, or a run needs mending. 2: bad input,
one sentence on stderr. 130: stopped by hand. Modules load when their command runs.
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib.util
import inspect
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

import labkit
from labkit.commands import options as commands
from labkit.errors import LabError

DESCRIPTION = """LLM Lab: learn how large language models work by training them.

Begin with `labkit run 00` (five minutes) or `labkit lab`; `labkit doctor` says what is missing."""


def parse(arguments: Sequence[str]) -> Any:
    """Arguments to the options of one command; a resumed run starts from its saved options.

    Raises:
        SystemExit: with code 2 after an unknown option or value was named, 0 after --help.
        LabError: the run folder to resume cannot be used.
    """
    resuming = "--resume" in arguments  # the saved options may have a switch on: let it go off
    chosen = _cli(arguments, commands.COMMANDS, both_ways=resuming)
    if getattr(chosen, "resume", False):
        name = next(n for n, default in commands.COMMANDS.items() if type(default) is type(chosen))
        from labkit.training.run_folder import began

        saved = began(chosen.out, name)
        if saved is not None:
            start = commands.from_dict(type(chosen), saved["options"])
            start = dataclasses.replace(start, resume=False, overwrite=False)  # given again, or not
            chosen = _cli(arguments, {**commands.COMMANDS, name: start}, both_ways=True)
    return chosen


def _cli(arguments: Sequence[str], defaults: dict[str, Any], both_ways: bool = False) -> Any:
    """Parse; `both_ways`: each switch may be set and unset, whatever its default has become."""
    pairs = () if both_ways else (tyro.conf.FlagCreatePairsOff,)
    # The list of commands gives each a line, the help of one command all that it says of itself.
    said = {name: inspect.getdoc(type(default)) or "" for name, default in defaults.items()}
    if not arguments or arguments[0] not in defaults:
        said = {name: text.split("\n")[0] for name, text in said.items()}
    kinds = tyro.extras.subcommand_type_from_defaults(defaults, said, prefix_names=False)
    return tyro.cli(
        kinds,
        args=list(arguments),
        prog="labkit",
        description=DESCRIPTION,
        config=(*pairs, tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
    )


def _help(arguments: Sequence[str]) -> str:
    """What `labkit` prints when it is asked for help."""
    from labkit.commands.manual import WIDTH

    columns = os.environ.get("COLUMNS")
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # with boxes, wherever it runs
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            parse(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    said.seek(0)
    return said.read()


# --- one function a command --------------------------------------------------------------------


def _run(options: commands.Run) -> int:
    from labkit import course

    course.run(options.chapters, options.profile, options.out, seed=options.seed)
    print(f"the report is in {options.out / 'index.html'}")
    return 0


def _clean(options: commands.Clean) -> int:
    from labkit.commands import own_text

    own_text.clean(options)
    return 0


def _instruct(options: commands.Instruct) -> int:
    from labkit.commands import own_text

    own_text.instruct(options)
    return 0


def _card(options: commands.Card) -> int:
    from labkit.commands import project

    project.card(options)
    return 0


def _pretrain(options: commands.Pretrain) -> int:
    from labkit.commands.pretraining import pretrain

    pretrain(options)
    return 0


def _finetune(options: commands.Finetune) -> int:
    from labkit.commands.finetuning import finetune

    finetune(options)
    return 0


def _generate(options: commands.Generate) -> int:
    from labkit.commands import inspecting

    inspecting.generate(options)
    return 0


def _evaluate(options: commands.Evaluate) -> int:
    from labkit.commands import inspecting

    inspecting.evaluate(options)
    return 0


def _classify(options: commands.Classify) -> int:
    from labkit.commands import inspecting

    inspecting.classify(options)
    return 0


def _serve(options: commands.Serve) -> int:
    gc.disable()  # until it serves: clients wait for its imports
    try:
        from labkit.commands import serving

        serving.serve(options)
    finally:
        gc.enable()
    return 0


def _collect(options: commands.Collect) -> int:
    from labkit.commands import serving

    serving.collect(options)
    return 0


def _export(options: commands.Export) -> int:
    from labkit.commands import exporting

    exporting.export(options)
    return 0


def _bench(options: commands.Bench) -> int:
    from labkit import bench

    bench.main(options.json, options.quick, only=options.only)
    return 0


def _lab(options: commands.Lab) -> int:
    from labkit import course

    commands.check(1 <= options.port <= 65535, options, "port", "1 to 65535")
    if importlib.util.find_spec("jupyterlab") is None:
        raise LabError("JupyterLab is not installed: run pip install jupyterlab")
    copied = course.copy_notebooks(options.folder)
    new = f"{len(copied)} chapters were copied there" if copied else "nothing there was changed"
    print(f"your chapters are in {options.folder} ({new})", flush=True)
    command = [
        *(sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={options.folder.resolve()}"),
        f"--LabApp.default_url=/lab/tree/{course.chapters()[0].path.name}",
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={options.port}"),
        *(() if options.browser else ("--no-browser",)),
        *(("--allow-root",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()),
    ]
    os.execv(sys.executable, command)


def _progress(options: commands.Progress) -> int:
    from labkit.commands import progress

    progress.progress(options)
    return 0


def _book(options: commands.Book) -> int:
    from labkit import course
    from labkit.commands import manual

    commands_page = manual.page(list(commands.COMMANDS), _help)
    for warning in course.build_book(options.out, commands=commands_page):
        print(warning, file=sys.stderr)
    print(f"the book is in {options.out / 'index.html'}")
    return 0


def _doctor(options: commands.Doctor) -> int:
    from labkit.commands import doctor

    if options.run is not None:
        return doctor.read_run(options.run)
    return doctor.main(measure=not options.quick)


WORK: dict[type, Callable[[Any], int]] = {
    commands.Run: _run,
    commands.Clean: _clean,
    commands.Instruct: _instruct,
    commands.Card: _card,
    commands.Pretrain: _pretrain,
    commands.Finetune: _finetune,
    commands.Generate: _generate,
    commands.Evaluate: _evaluate,
    commands.Classify: _classify,
    commands.Serve: _serve,
    commands.Collect: _collect,
    commands.Export: _export,
    commands.Bench: _bench,
    commands.Lab: _lab,
    commands.Progress: _progress,
    commands.Book: _book,
    commands.Doctor: _doctor,
}


# --- errors in one sentence --------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"labkit {labkit.__version__}")
        return 0
    warnings.showwarning = _show_warning
    atexit.register(gc.freeze)  # an ending process needs no search through a million objects
    _end_tidily()
    try:
        chosen = parse(given)
        return WORK[type(chosen)](chosen)
    except LabError as error:
        _complain(str(error))
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        _complain("stopped by hand")
        return 130
    except BrokenPipeError:  # the reader of our output has left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("RANK") == "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one sentence is enough
        sentence = _foreseen(error, getattr(locals().get("chosen"), "out", None))
        if sentence is None:
            raise
        _complain(sentence)
        return 2


def _end_tidily() -> None:
    """A request to end unwinds the stack, so that nothing half-written stays; as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def stop_rank(number: int, frame: Any) -> None:
        _complain(
            "torchrun ended this run, because a rank was killed or it was told to stop: continue "
            "from the newest checkpoint with --resume, on any number of ranks that divides the "
            "batch"
        )
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return
    if os.environ.get("RANK") == "0":
        signal.signal(signal.SIGTERM, stop_rank)
    elif "RANK" not in os.environ:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)


#: What gloo, NCCL and the sockets say when the other end of a connection is gone.
LOST_RANK = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "Socket closed",
)


def _foreseen(error: Exception, out: Path | None) -> str | None:
    """A sentence for errors of the machine that any command may meet."""
    from labkit.atomic import is_disk_full

    if is_disk_full(error):
        where = f" of {str(out)!r}" if out is not None else ""
        return f"the disk{where} is full: free some space and resume, older checkpoints are intact"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and isinstance(error, RuntimeError) and any(x in str(error) for x in LOST_RANK):
        return (
            f"another of the {size} ranks was killed or cannot be reached, so this one stopped: "
            "continue from the newest checkpoint with --resume, on any number of ranks that "
            "divides the batch"
        )
    # By name: torch, whose error it is on a GPU, may never have been imported here.
    gpu_full = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if gpu_full or isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        where = " on the GPU" if gpu_full else ""
        return (
            f"there is not enough memory{where}: choose a smaller model, or fewer examples at a "
            "time (--micro-batch-size, which changes no result)"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): check path and rights"
    return None


def _complain(sentence: str) -> None:
    rank = os.environ.get("RANK", "0")
    who = "labkit" if rank == "0" else f"labkit (rank {rank})"
    print(f"{who}: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
) -> None:
    if Path(__file__).parent in Path(filename).parents:
        _complain(str(message))
    else:
        print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())

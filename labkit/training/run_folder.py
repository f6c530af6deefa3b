"""The folder of a run, and everything that is written into it: one owner, however a run began.

runs/<name>/
    config.json       "train": the loop's settings; "command", "options": how the run was started
    metrics.jsonl     one record per update
    checkpoints/      step-N/, enough to resume to the bit (see `checkpoint`)
    best/             weights of the best evaluation
    model/            opens with transformers.AutoModel*.from_pretrained (written at the end)
    adapter/          what a strategy trained, where that is little (see `adapting.saving`)
    data/, evaluation.json, errors.csv        what a command adds

`labkit generate` and `labkit evaluate` take the folder as it is, whether a command or a call of
`train` made it.
"""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn

from labkit import runtime
from labkit.atomic import claim, write_json, write_text
from labkit.errors import LabError
from labkit.models.adapting import strategies
from labkit.models.adapting.lora import merged
from labkit.models.adapting.peft_format import task_type
from labkit.models.adapting.saving import is_adapter, read_adapter, save_adapter
from labkit.models.adapting.settings import INSEPARABLE, SMALL
from labkit.models.huggingface.saving import expressible, save_pretrained, save_tokenizer
from labkit.text import pretrained
from labkit.training import checkpoint
from labkit.training.config import FREE_ON_RESUME, TrainConfig
from labkit.training.distributed.data import whole
from labkit.training.records import Progress, Record

#: What a run writes into its folder, besides its lock.
ENTRIES = (
    "config.json", "metrics.jsonl", "evaluation.json", "errors.csv", "data", "checkpoints", "best",
    "model", "adapter",
)  # fmt: skip


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run: its config.json is one that `begin` or `train` wrote."""
    try:
        saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and ("command" in saved or "train" in saved)


def check_free(
    out: Path,
    resume: bool,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
) -> None:
    """Make sure that a run may write into a folder: nothing there is anybody else's.

    Args:
        out: the folder to be.
        resume: an older run in it goes on.
        inputs: files and folders that the run reads; names that are no path do not matter.
        overwrite: a run in it is removed: what runs write, no other file, and none that runs now.

    Raises:
        LabError: it is a file, holds something that no run wrote, holds a run that is not to be
            resumed, or lies inside an input.
    """
    if resume and overwrite:
        raise LabError("resume and overwrite exclude each other: give one of them")
    if out.exists() and not out.is_dir():
        raise LabError(f"{out} is a file: choose another --out")
    for source in inputs:
        if source is not None and Path(source).resolve() in (out.resolve(), *out.resolve().parents):
            raise LabError(
                f"{out} lies inside {source}, which the run reads: choose an --out elsewhere"
            )
    if is_run(out):
        if overwrite:
            _remove_run(out)
        elif not resume:
            raise LabError(
                f"{out} already holds a run: continue it with --resume, begin anew with "
                "--overwrite, or choose another --out"
            )
    elif out.exists() and (found := sorted(p.name for p in out.iterdir() if p.name != ".lock")):
        raise LabError(
            f"{out} holds {found[0]}, which no run wrote, and is left alone: choose an --out that "
            "is new or empty"
        )


def _remove_run(out: Path) -> None:
    lock = _lock(out)  # not while it runs
    try:
        for name in ENTRIES:
            entry = out / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    finally:
        lock.release()


def begin(out: Path, command: str, options: dict[str, Any], **facts: Any) -> None:
    """Write into config.json how a command started this run, and what it found out."""
    write_json(out / "config.json", {"command": command, "options": options, **facts})


def began(out: Path, command: str) -> dict[str, Any] | None:
    """What `begin` wrote, or None where there is no run.

    Raises:
        LabError: the folder holds a run of another command, or its config.json is damaged.
    """
    file = out / "config.json"
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        owner, values = saved.get("command"), saved.get("options")
    except (ValueError, AttributeError) as error:
        raise LabError(f"{file} is damaged ({error}): choose another --out") from error
    if owner is None and "train" in saved:
        raise LabError(
            f"{out} holds a run that Python code began: continue it there, with "
            "TrainConfig(resume=True), or choose another --out"
        )
    if owner != command or not isinstance(values, dict):
        raise LabError(
            f"{out} holds a run of {owner or 'another program'}, not of labkit {command}: choose "
            "another --out"
        )
    return saved


def check_same(given: dict[str, Any], saved: dict[str, Any], out: Path) -> None:
    """Raise a LabError where a resumed run would learn something else than it began with."""
    for name, value in given.items():
        if name not in FREE_ON_RESUME and name in saved and saved[name] != value:
            raise LabError(
                f"{name} {value} differs from {saved[name]}, with which {out} began: resume with "
                f"{saved[name]}, or choose another --out"
            )


def model_folder(name: str | Path) -> Path:
    """The folder with the weights: minilm, smollm2, a model folder, or `model/` of a run folder.

    Of a run whose result no plain model computes it is `adapter/`; an adapter's folder is one, too.

    Raises:
        LabError: there is no model; the message says what is there instead.
    """
    if str(name) in pretrained.FOLDERS:
        return pretrained.folder_of(str(name))
    path = Path(name)
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if is_adapter(path / "adapter"):
        return path / "adapter"
    if is_adapter(path):
        return path
    if (path / "checkpoints").is_dir():
        raise LabError(
            f"the run in {path} holds no model/: it has not finished (continue it with --resume), "
            "or no transformers class can express its model"
        )
    if not path.is_dir():
        raise LabError(f"{path} is no folder: give a run folder, a model folder, minilm or smollm2")
    if not (path / "config.json").is_file():
        raise LabError(f"{path} holds no config.json: give a run folder or a model folder")
    return path


def whole_model_folder(name: str | Path) -> Path:
    """`model_folder`, where training is to begin: not an adapter, whose base would be trained.

    Raises:
        LabError: there is no model, or an adapter instead of one.
    """
    folder = model_folder(name)
    if is_adapter(folder):
        base = read_adapter(folder).get("base_model_name_or_path")
        raise LabError(
            f"{name} holds an adapter for {base}, and training begins from a whole model: give "
            "that one, or a run of another strategy"
        )
    return folder


class RunFolder:
    """runs/<name>/: config.json, metrics.jsonl, checkpoints/, best/; without `out`, nothing."""

    def __init__(self, config: TrainConfig, here: runtime.World):
        self.config, self.here = config, here
        self.path = None if config.out is None else Path(config.out)
        self.best_weights: checkpoint.Tensors | None = None
        self._lock: FileLock | None = None
        self._log: IO[str] | None = None

    def open(self) -> None:
        if self.path is None:
            return
        if self.here.rank == 0:
            self._check_owner(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
            self._write_config(self.path)
            self._log = (self.path / "metrics.jsonl").open("a", buffering=1)
        runtime.sum_over_ranks(torch.zeros(1))  # nobody reads before rank 0 has written

    def _check_owner(self, path: Path) -> None:
        foreign = [name for name in ENTRIES if (path / name).exists()]
        if foreign and not is_run(path):
            raise LabError(
                f"{path} holds {foreign[0]}, which no run wrote, and is left alone: choose an "
                "`out` that is new or empty"
            )

    def _write_config(self, path: Path) -> None:
        file = path / "config.json"
        saved = json.loads(file.read_text()) if file.exists() else {}
        ours = json.loads(json.dumps(dataclasses.asdict(self.config), default=str))
        if any((path / "checkpoints").glob("step-*")):
            if not self.config.resume:
                raise LabError(
                    f"run folder {str(path)!r} holds checkpoints: resume it, or choose "
                    "another `out`"
                )
            for name, value in saved.get("train", {}).items():
                if name not in FREE_ON_RESUME and ours.get(name) != value:
                    raise LabError(
                        f"{name} {ours.get(name)} differs from {value}, with which "
                        f"{str(path)!r} began: resume with {value}, or choose another `out`"
                    )
        write_json(file, {**saved, "train": ours})

    def log(self, record: Record) -> None:
        if self._log is not None:
            self._log.write(json.dumps(dataclasses.asdict(record)) + "\n")

    def save(self, model, optimizer, scaler, progress: Progress) -> None:
        if self.path is None:
            return
        weights = checkpoint.model_tensors(model)  # all ranks: FSDP gathers
        moments = checkpoint.optimizer_tensors(model, optimizer)
        rng = runtime.rng_state()
        states: list[Any] = [rng]
        if self.here.size > 1:
            states = [None] * self.here.size
            dist.all_gather_object(states, rng)
        if self.here.rank:
            return
        if self._log is not None:  # a checkpoint must not outlive the records before it
            self._log.flush()
            os.fsync(self._log.fileno())
        tensors = {
            f"{rank}/{key}": value
            for rank, state in enumerate(states)
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        folder = self.path / "checkpoints"
        checkpoint.save(
            checkpoint.step_folder(folder, progress.step),
            progress.step,
            {"model": weights, "optimizer": moments, "rng": tensors},
            {
                "progress": dataclasses.asdict(progress),
                "scaler": scaler.state_dict(),
                "numpy_rest": [state["numpy_rest"] for state in states],
            },
        )
        checkpoint.prune(folder, self.config.keep)

    def save_best(self, model: nn.Module, progress: Progress) -> None:
        if self.path is None and not self.config.restore_best:
            return
        weights = checkpoint.model_tensors(model)
        if self.config.restore_best:
            self.best_weights = {name: t.clone() for name, t in weights.items()}
        if self.path is not None and self.here.rank == 0:
            state = {"validation": progress.best}
            checkpoint.save(self.path / "best", progress.step, {"model": weights}, state)

    def restore(self, model, optimizer, scaler) -> Progress | None:
        if self.path is None:
            raise LabError("resume needs a run folder: set `out` to the folder of the run")
        saved = checkpoint.newest(self.path / "checkpoints")
        if saved is None:
            if self.here.rank == 0:
                self._forget_after(self.path, 0)
            return None
        checkpoint.load_model(model, saved.tensors["model"])
        checkpoint.load_optimizer(model, optimizer, saved.tensors["optimizer"])
        scaler.load_state_dict(saved.state["scaler"])
        progress = Progress(**saved.state["progress"])
        rank = self.here.rank
        if rank < len(saved.state["numpy_rest"]):
            prefix = f"{rank}/"
            rng: dict[str, Any] = {
                key.removeprefix(prefix): value
                for key, value in saved.tensors["rng"].items()
                if key.startswith(prefix)
            }
            runtime.set_rng_state({**rng, "numpy_rest": saved.state["numpy_rest"][rank]})
        if self.config.restore_best and (self.path / "best").exists():
            self.best_weights = checkpoint.load(self.path / "best").tensors["model"]
        if rank == 0:
            self._forget_after(self.path, progress.step)
        return progress

    def _forget_after(self, path: Path, step: int) -> None:
        """Drop records of updates that the killed run did after its last checkpoint."""
        file = path / "metrics.jsonl"
        kept, damaged = [], 0
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step and line.endswith("\n"):
                    kept.append(line)
            except (ValueError, TypeError, KeyError):
                damaged += bool(line.strip("\0\n"))
        if damaged > 1:  # the last one may have been cut by the kill
            warnings.warn(f"{file} lost {damaged} damaged records", stacklevel=2)
        if self._log is not None:
            self._log.close()
        write_text(file, "".join(kept))
        self._log = file.open("a", buffering=1)

    def export(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Write model/: the trained weights, LoRA folded in, and the tokenizer beside them.

        adapter/ holds what a strategy trained, where that is little; where no plain model computes
        the same, it stands alone, with the tokenizer. Nothing is written without `out`, and model/
        not where no transformers class can express the model.
        """
        strategy = strategies.of(model)
        small = strategy is not None and strategy.name in SMALL
        alone = strategy is not None and strategy.name in INSEPARABLE
        if self.path is None or not (small or expressible(model)):
            return
        full = whole(model, self.here, self.config.parallel)  # all ranks: FSDP gathers
        if self.here.rank:
            return
        if small:
            with claim(self.path / "adapter", replace=True) as folder:
                save_adapter(full, folder)
                if alone:
                    save_tokenizer(tokenizer, folder, task_type(full) == "CAUSAL_LM")
        if not alone and expressible(full):
            with claim(self.path / "model", replace=True) as folder, merged(full):
                save_pretrained(full, folder, tokenizer)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()


def _lock(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LabError(
            f"run folder {str(path)!r} is in use by another run: choose another `out`"
        ) from None
    return lock

"""A run: its settings, the record of each update, and the folder that it leaves.

runs/<name>/
    config.json       resolved settings
    metrics.jsonl     one record per update
    checkpoints/      step-N/, enough to resume to the bit (see `checkpoint`)
    best/             weights of the best evaluation
    model/            opens with transformers.AutoModel*.from_pretrained (written at the end)
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit import runtime
from labkit.errors import LabError
from labkit.optim.optimizers import OPTIMIZERS, SCHEDULES
from labkit.training import checkpoint

# --- settings and records ----------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """One run. Every number is global: over all micro-batches and ranks."""

    steps: int = 1000
    """Updates in the whole run, at least 1."""
    optimizer: str = "adamw"
    """adamw; adam (decay as L2 in the loss); sgd (the same, with momentum betas[0]); muon (for the
    matrices of the blocks; AdamW for the rest, at the same rate); or adamw8bit (moments of a byte
    each)."""
    learning_rate: float = 3e-4
    """Peak rate, above 0."""
    min_learning_rate_ratio: float = 0.1
    """Lowest rate after warm-up / peak rate, 0 to 1."""
    warmup_steps: int = 100
    """Updates of linear warm-up, 0 or more."""
    schedule: str = "cosine"
    """After warm-up: cosine, linear, constant, or range_test (rising: see `probes`)."""
    weight_decay: float = 0.1
    """Decay of matrices, 0 or more; biases and norms never decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-8
    """AdamW's epsilon, above 0."""
    grad_clip: float = 1.0
    """Largest L2 norm of the whole gradient; 0 leaves it unclipped."""
    micro_batch_size: int | None = None
    """Examples at a time on one rank (never changes the result); None: the rank's whole part."""
    step_in_backward: bool = False
    """Update each parameter as soon as its gradient is complete and free it: the same result, less
    memory. Needs grad_clip 0, no micro-batches, one rank, and not fp16."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16 (with loss scaling); weights stay fp32."""
    device: str = "auto"
    """auto, cpu or cuda."""
    compile: bool = False
    """Compile forward and backward (about 20 s at the start on a CPU)."""
    parallel: str = "ddp"
    """How several ranks train: ddp copies the weights, fsdp shards them. Alone: neither."""
    seed: int = 0
    """Of everything random during training (dropout), 0 to 2^32 - 1."""
    eval_every: int = 0
    """Updates between evaluations; 0: only at the end."""
    patience: int = 0
    """Evaluations without a better validation loss before stopping; 0: never stop early."""
    restore_best: bool = False
    """End with the weights of the best evaluation instead of the last."""
    save_every: int = 0
    """Updates between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints to keep, at least 1."""
    out: Path | None = None
    """Run folder; None writes nothing."""
    resume: bool = False
    """Continue from the newest good checkpoint in `out`."""

    def __post_init__(self) -> None:
        def demand(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise LabError(f"{name} {getattr(self, name)} is out of range: choose {allowed}")

        demand("steps", self.steps >= 1, "at least 1")
        demand("optimizer", self.optimizer in OPTIMIZERS, ", ".join(OPTIMIZERS))
        demand("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0")
        demand("min_learning_rate_ratio", 0 <= self.min_learning_rate_ratio <= 1, "0 to 1")
        demand("warmup_steps", self.warmup_steps >= 0, "0 or more")
        demand("schedule", self.schedule in SCHEDULES, ", ".join(SCHEDULES))
        demand("weight_decay", self.weight_decay >= 0, "0 or more")
        demand("betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        demand("eps", self.eps > 0, "a number above 0")
        demand("grad_clip", self.grad_clip >= 0, "0 (off) or more")
        demand("micro_batch_size", (self.micro_batch_size or 1) >= 1, "at least 1, or None")
        demand(
            "precision", self.precision in ("auto", *runtime.PRECISIONS), "auto, fp32, bf16 or fp16"
        )
        demand("parallel", self.parallel in ("ddp", "fsdp"), "ddp or fsdp")
        demand(
            "optimizer",
            self.optimizer != "muon" or self.parallel != "fsdp",
            "adamw with parallel fsdp: muon needs whole matrices (parallel ddp)",
        )
        demand(
            "optimizer",
            self.optimizer != "adamw8bit" or self.parallel != "fsdp",
            "adamw with parallel fsdp: adamw8bit needs whole tensors (parallel ddp)",
        )
        demand(
            "grad_clip",
            not (self.step_in_backward and self.grad_clip),
            "0 with step_in_backward: the norm of all gradients is known too late",
        )
        demand(
            "optimizer",
            not (self.step_in_backward and self.optimizer == "muon"),
            "adamw, adam, sgd or adamw8bit with step_in_backward: muon steps stacks of matrices",
        )
        demand("keep", self.keep >= 1, "at least 1")
        for name in ("eval_every", "patience", "save_every"):
            demand(name, getattr(self, name) >= 0, "0 (off) or more")


#: Fields that may differ between a run and its continuation: they do not change what is learned.
FREE_ON_RESUME = {
    "micro_batch_size", "device", "compile", "parallel", "save_every", "keep", "out", "resume",
    "step_in_backward",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What one update did; `on_step` receives it, metrics.jsonl keeps it."""

    step: int
    """Updates done, from 1."""
    total_steps: int
    loss: float
    """Mean loss per valid target over the whole update, nats."""
    learning_rate: float
    grad_norm: float
    """L2 norm before clipping."""
    tokens: int
    """Real input tokens seen so far on all ranks."""
    tokens_per_second: float
    """Of this update alone, without evaluation and saving."""
    elapsed: float
    """Seconds of training so far, earlier sessions included."""
    remaining: float
    """Estimated seconds to the end."""
    validation: dict[str, float] | None = None
    """`loss` (nats per target) and what `metrics` returned, when this update was evaluated."""


@dataclass
class Result:
    """What `train` returns."""

    steps: int
    stopped: str
    """`finished`, `early` (patience ran out) or `interrupted` (Ctrl-C, SIGTERM)."""
    history: list[Record] = field(default_factory=list)
    """Records of this session."""
    best: dict[str, float] | None = None
    """Validation of the best evaluation, with its `step`."""
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Median over this session's updates."""
        rates = sorted(r.tokens_per_second for r in self.history)
        return rates[len(rates) // 2] if rates else math.nan


@dataclass
class Progress:
    """What the loop remembers between updates; all of it is in the checkpoint."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    best: dict[str, float] | None = None
    bad_evaluations: int = 0

    def note(self, evaluation: dict[str, float]) -> None:
        loss = evaluation.get("loss")
        if loss is None or self.best is None or loss < self.best["loss"]:
            self.best = {**evaluation, "step": self.step}
            self.bad_evaluations = 0
        else:
            self.bad_evaluations += 1


# --- the run folder ----------------------------------------------------------------------------


def _lock(path: Path) -> IO[str]:
    import fcntl

    handle = (path / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise LabError(
            f"run folder {str(path)!r} is in use by another run: choose another `out`"
        ) from None
    return handle


class RunFolder:
    """runs/<name>/: config.json, metrics.jsonl, checkpoints/, best/; without `out`, nothing."""

    def __init__(self, config: TrainConfig, here: runtime.World):
        self.config, self.here = config, here
        self.path = None if config.out is None else Path(config.out)
        self.best_weights: checkpoint.Tensors | None = None
        self._lock: IO[str] | None = None
        self._log: IO[str] | None = None

    def open(self) -> None:
        if self.path is None:
            return
        if self.here.rank == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
            self._write_config(self.path)
            self._log = (self.path / "metrics.jsonl").open("a", buffering=1)
        runtime.sum_over_ranks(torch.zeros(1))  # nobody reads before rank 0 has written

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
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({**saved, "train": ours}, indent=1))
        temporary.replace(file)

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
        lines = file.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if self._log is not None:
            self._log.close()
        temporary = file.with_suffix(".tmp")
        temporary.write_text("".join(x for x in whole if json.loads(x)["step"] <= step))
        temporary.replace(file)
        self._log = file.open("a", buffering=1)

    def close(self) -> None:
        for handle in (self._log, self._lock):
            if handle is not None:
                handle.close()

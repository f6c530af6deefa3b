"""Checkpoints that are whole or absent, verified on load, and hold all that resuming needs.

    checkpoints/step-00000200/
        model.safetensors      weights and buffers, unsharded, by name
        optimizer.safetensors  moments by parameter name
        rng.safetensors        generators of every rank
        state.json             step, early stopping, loss scaler, history of the best
        manifest.json          bytes and SHA-256 of each file above

A checkpoint is written to a temporary folder, flushed to disk, then renamed: `kill -9` at any
moment leaves either the old state or the new one. `newest` skips what is torn or altered, by name.

Sources: POSIX rename(2) is atomic; safetensors holds tensors only, so loading runs no code.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit import runtime
from labkit.atomic import is_disk_full
from labkit.errors import LabError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    step: int
    """Updates done when it was written."""
    tensors: dict[str, Tensors]
    """By file name without suffix: model, optimizer, rng."""
    state: dict[str, Any]
    """Everything that is not a tensor."""


# --- files -------------------------------------------------------------------------------------


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def save(path: str | os.PathLike, step: int, tensors: dict[str, Tensors], state: dict) -> Path:
    """Write one checkpoint folder, atomically.

    Args:
        path: the folder to appear; an older one of this name is replaced.
        step: updates done.
        tensors: named groups; each becomes one safetensors file.
        state: whatever JSON can hold.

    Returns:
        The folder.

    Raises:
        LabError: the disk is full; nothing half-written stays, older checkpoints are untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            contiguous = {k: t.detach().cpu().contiguous() for k, t in group.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}))
        files = sorted(temporary.iterdir())
        manifest = {file.name: _digest(file) for file in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for file in [*files, temporary / "manifest.json", temporary]:
            _flush(file)
        older = path.with_name(f".{path.name}.tmp-older")
        shutil.rmtree(older, ignore_errors=True)
        if path.exists():
            os.replace(path, older)
        os.replace(temporary, path)
        _flush(path.parent)
        shutil.rmtree(older, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not is_disk_full(error):
            raise
        size = sum(t.nbytes for group in tensors.values() for t in group.values())
        raise LabError(
            f"the disk is full: checkpoint {path.name} needs {size / 1e6:.1f} MB in "
            f"{str(path.parent)!r}; free some space and resume, older checkpoints are intact"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def load(path: str | os.PathLike) -> Checkpoint:
    """Read one checkpoint after verifying the length and hash of every file.

    Raises:
        LabError: the folder is missing, torn or altered; the message names the file.
    """
    path = Path(path)
    manifest_path = path / "manifest.json"
    if not manifest_path.exists():
        raise LabError(f"checkpoint {str(path)!r} has no manifest.json: it is torn, use another")
    try:
        manifest = json.loads(manifest_path.read_text())
        for name, facts in manifest.items():
            file = path / name
            if not file.exists():
                raise LabError(f"checkpoint {str(path)!r} lacks {name}: it is torn, use another")
            if _digest(file) != facts:
                raise LabError(
                    f"checkpoint {str(path)!r}: {name} does not match its SHA-256 of "
                    f"{facts['bytes']} bytes: it is corrupted, use another"
                )
        state = json.loads((path / "state.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise LabError(
            f"checkpoint {str(path)!r} cannot be read ({error}): it is corrupted, use another"
        ) from error
    tensors = {f.stem: load_file(f) for f in sorted(path.glob("*.safetensors"))}
    return Checkpoint(path, state.pop("step"), tensors, state)


def step_folder(folder: str | os.PathLike, step: int) -> Path:
    """Return where the checkpoint of `step` stands."""
    return Path(folder) / f"step-{step:08d}"


def newest(folder: str | os.PathLike) -> Checkpoint | None:
    """Load the newest good checkpoint below `folder`, skipping bad ones by name; else None."""
    for path in sorted(Path(folder).glob("step-*"), reverse=True):
        try:
            return load(path)
        except LabError as error:
            warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
    return None


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and temporary folders of killed writers."""
    folders = sorted(Path(folder).glob("step-*"))
    for path in [*folders[: max(0, len(folders) - keep)], *Path(folder).glob(".step-*.tmp-*")]:
        shutil.rmtree(path, ignore_errors=True)


# --- what a training run is made of ------------------------------------------------------------


@torch.no_grad()
def _assign(target: Tensor, value: Tensor, name: str) -> None:
    if target.shape != value.shape:
        raise LabError(
            f"{name} has shape {tuple(value.shape)} in the checkpoint and {tuple(target.shape)} in "
            "the model: use the config that the checkpoint was trained with"
        )
    value = value.to(device=target.device, dtype=target.dtype)
    if runtime.is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)


def _named_tensors(model: nn.Module) -> Tensors:
    """Parameters (tied ones once) and the buffers that belong to the state."""
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: b for name, b in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def model_tensors(model: nn.Module) -> Tensors:
    """Return the unsharded state by name; under FSDP every rank must call it."""
    named = _named_tensors(model).items()
    return {name: runtime.whole_tensor(tensor.detach()) for name, tensor in named}


def load_model(model: nn.Module, tensors: Tensors) -> None:
    """Copy a saved state into the model, in place.

    Raises:
        LabError: a name is missing or unexpected, or a shape differs.
    """
    targets = _named_tensors(model)
    if missing := sorted(set(targets) ^ set(tensors)):
        where = "checkpoint" if missing[0] not in tensors else "model"
        raise LabError(
            f"{missing[0]} and {len(missing) - 1} more names are missing in the {where}: use the "
            "config that the checkpoint was trained with"
        )
    for name, target in targets.items():
        _assign(target, tensors[name], name)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimiser's tensors as `<parameter name>/<entry>`; unsharded."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}/{entry}": runtime.whole_tensor(torch.as_tensor(value))
        for p, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore what `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        p = parameters[name]
        if value.shape == p.shape and value.is_floating_point():
            target = torch.zeros_like(p)
            _assign(target, value, key)
        else:
            # Codes live beside the parameter, as does the step counter of a fused kernel; any other
            # counter stays on the CPU.
            beside = value.ndim or p in fused
            target = value.to(p.device, copy=True) if beside else value.clone()
        optimizer.state[p][entry] = target

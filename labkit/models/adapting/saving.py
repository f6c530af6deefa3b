"""What a strategy trained, in a folder of its own: often some hundred kilobytes.

    model ── save_adapter ──> adapter_config.json         whose base model, which method
                              adapter_model.safetensors   the trained tensors, nothing else
                              labkit.json                 the strategy, and what else is known
    model <── load_adapter ── such a folder, or one that `peft` wrote

LoRA, prompts and prefixes are written as `peft` writes them (`peft_format`), wherever transformers
has the model; the rest by the model's own names.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.atomic import write_json
from labkit.errors import LabError
from labkit.models.adapting import peft_format, strategies
from labkit.models.adapting.settings import Strategy
from labkit.text import pretrained

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "labkit.json"


def save_adapter(
    model: nn.Module, folder: str | Path, base: str | Path | None = None, **facts: Any
) -> Path:
    """Write what the strategy of a model trains, and nothing else.

    Args:
        model: after `strategies.apply`.
        folder: where to; made if needed.
        base: name or folder of the model that it began from, for who opens it; None: where
            transformers says that it opened it.
        facts: further entries of labkit.json.

    Returns:
        The folder.

    Raises:
        LabError: no strategy was applied to the model.
    """
    settings = strategies.of(model)
    if settings is None:
        raise LabError(
            f"{type(model).__name__} has no strategy: apply one (`strategies.apply`), or save the "
            "whole model"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.name in peft_format.KINDS.values() and peft_format.fits(model):
        config, tensors = peft_format.written(model)
    else:
        config = {"task_type": peft_format.task_type(model)}
        tensors = {
            name: p.detach().cpu().contiguous()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
    write_json(folder / OURS, {"strategy": dataclasses.asdict(settings)})
    name_base(folder, base or getattr(model.config, "_name_or_path", None) or None, **facts)
    return folder


def name_base(folder: Path, base: str | Path | None, **facts: Any) -> None:
    """Say afterwards for which base model an adapter is; arguments as in `save_adapter`."""
    named = {"base_model_name_or_path": None if base is None else str(base)}
    write_json(folder / CONFIG, read_adapter(folder) | named)
    write_json(folder / OURS, about(folder) | facts)


def load_adapter(model: nn.Module, folder: str | Path) -> list[str]:
    """Put an adapter on the model that it was trained on, in place.

    Args:
        model: the base model, labkit's or transformers'.
        folder: of `save_adapter`, or of `peft` with LoRA, prompt or prefix tuning.

    Returns:
        The names of the trained parameters, as `strategies.apply` gives them.

    Raises:
        LabError: no adapter in the folder, or it is not for this model.
    """
    folder = Path(folder)
    config, facts, tensors = read_adapter(folder), about(folder), _tensors(folder)
    if "peft_type" in config:
        return peft_format.read(model, config, tensors)
    try:
        values = {**facts["strategy"], "targets": tuple(facts["strategy"]["targets"])}
        settings = Strategy(**values)
    except (KeyError, TypeError) as error:
        raise LabError(f"{folder / OURS} is damaged ({error}): save the adapter again") from error
    trained = strategies.apply(model, settings)
    parameters = dict(model.named_parameters())
    if odd := sorted(set(trained) ^ set(tensors)):
        raise LabError(
            f"{odd[0]} is in only one of the adapter in {folder} and {type(model).__name__}: give "
            "the base model that it was trained on"
        )
    for name in trained:
        if parameters[name].shape != tensors[name].shape:
            raise LabError(
                f"{name} has shape {tuple(tensors[name].shape)} in {folder} and "
                f"{tuple(parameters[name].shape)} in the model: give the base model that the "
                "adapter was trained on"
            )
        with torch.no_grad():
            parameters[name].copy_(tensors[name])
    return trained


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        LabError: there is none, or it is damaged.
    """
    return _read(folder / CONFIG)


def about(folder: Path) -> dict[str, Any]:
    """labkit.json; {} of an adapter that another program wrote."""
    return _read(folder / OURS) if (folder / OURS).is_file() else {}


def base_folder(folder: Path) -> Path:
    """The folder of the model that an adapter is for.

    Raises:
        LabError: the adapter names none, or none that is there.
    """
    name = read_adapter(folder).get("base_model_name_or_path")
    if name in pretrained.FOLDERS:
        return pretrained.folder_of(name)
    for path in (Path(name), folder / name) if name else ():
        if (path / "config.json").is_file():
            return path
    raise LabError(
        f"the adapter in {folder} is for the base model {name!r}, which is no folder with a model: "
        f"write the right one into {CONFIG}"
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({error}): give the folder of an adapter") from error
    if not isinstance(found, dict):
        raise LabError(f"{file} is damaged (no names and values): save the adapter again")
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise LabError(
            f"{folder / WEIGHTS} is missing or damaged ({error}): save the adapter again"
        ) from error

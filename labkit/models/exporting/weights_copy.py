"""A model folder in another number format: the same files, the same names, other bits.

    model.safetensors (one file or several) ── each tensor cast ──> model.safetensors
    config.json ── "dtype" ──> config.json
    everything else (tokenizer, chat template, generation config, crf.safetensors, ...) ── as it is

No model is built, so every architecture can be copied. What is stored once (tied weights) stays
stored once. fp16 keeps 11 bits of a number and goes to 65,504; bf16 keeps 8 and goes as far as
fp32.

Source: the safetensors format; Kalamkar et al. 2019, arXiv:1905.12322 (bf16).
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from labkit.atomic import write_json
from labkit.errors import LabError
from labkit.models.huggingface.reading import read_config, read_tensors

Type = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Endings of files that hold weights or code, of which a copy gets none.
LEFT_OUT = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".py")


def copy_in(folder: Path, target: Path, dtype: Type = "fp16") -> int:
    """Write a model folder's copy, its weights in another number format.

    Args:
        folder: config.json and safetensors.
        target: an existing empty folder.
        dtype: of the weights; integers in the file stay what they are.

    Returns:
        The number of tensors.

    Raises:
        LabError: a file is missing or damaged, or the format cannot hold a number.
    """
    tensors = read_tensors(folder)
    cast = {name: _cast(name, value, dtype) for name, value in tensors.items()}
    copy_beside(folder, target)
    details = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    details.pop("torch_dtype", None)  # what earlier versions of transformers called it
    write_json(target / "config.json", details | {"dtype": str(DTYPES[dtype]).split(".")[1]})
    save_file(cast, target / "model.safetensors", metadata={"format": "pt"})
    return len(cast)


def copy_beside(folder: Path, target: Path) -> list[str]:
    """Copy what stands beside a model's weights: config, tokenizer, chat template, a CRF's scores.

    Neither code nor weights in other formats; folders (checkpoints) stay behind, too.

    Returns:
        The names of the copied files.
    """
    read_config(folder)
    copied = []
    for file in sorted(folder.iterdir()):
        weights = file.name.startswith("model") and ".safetensors" in file.name
        if file.is_file() and not weights and file.suffix not in LEFT_OUT:
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied


def _cast(name: str, value: Tensor, dtype: Type) -> Tensor:
    if not value.is_floating_point():
        return value
    cast = value.to(DTYPES[dtype])
    if not bool(cast.isfinite().all()):
        largest = float(value.abs().max())
        if not bool(value.isfinite().all()):
            raise LabError(f"{name} holds numbers that are not finite: the model is damaged")
        raise LabError(
            f"{name} holds {largest:.3g}, and {dtype} keeps numbers up to "
            f"{torch.finfo(DTYPES[dtype]).max:.0f}: choose --dtype bf16 or fp32"
        )
    return cast.contiguous()

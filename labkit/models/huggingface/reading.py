"""What a model folder holds, read with care: config.json, safetensors, nothing that runs.

A folder from elsewhere may be cut, edited or made to harm: pickles are not opened, code in it does
not run, nothing is fetched, and whatever does not fit is said in one sentence.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from labkit.errors import LabError

INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder with safetensors; "architectures" is a list of names.

    Raises:
        LabError: there is no such file, or no safetensors beside it, or it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise LabError(f"{folder} has no config.json; give a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no safetensors weights; other formats are not read")
    try:
        details = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LabError(f"{file} is damaged ({error}): save the model again") from error
    names = details.get("architectures") if isinstance(details, dict) else None
    if not isinstance(details, dict) or not isinstance(names, list | None):
        raise LabError(f"{file} is damaged (no names and values): save the model again")
    return {**details, "architectures": [str(name) for name in names or []]}


def architecture(folder: Path) -> str:
    """The name of the transformers class that a folder is for; "" if it names none."""
    return next(iter(read_config(folder)["architectures"]), "")


def auto_config(folder: Path) -> Any:
    """The transformers config of a folder.

    Raises:
        LabError: config.json says something that transformers cannot read.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever stands in the file, in whatever library it fails
        said = " ".join(str(error).split())[:200]
        raise LabError(f"{folder / 'config.json'} cannot be read ({said})") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its name, in one file or in several with an index.

    Raises:
        LabError: a file is missing or damaged.
    """
    files = ["model.safetensors"]
    if not (folder / files[0]).is_file() and (folder / INDEX).is_file():
        try:
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{folder / INDEX} is damaged: save the model again") from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            tensors |= load_file(folder / Path(str(name)).name)
        except (OSError, SafetensorError) as error:
            raise LabError(
                f"{folder / str(name)} is missing or damaged ({error}): save the model again"
            ) from error
    return tensors


def open_complete(
    opener: Any, folder: Path, fresh: Callable[[str], bool] | None = None, **options: Any
) -> Any:
    """A transformers model all of whose weights come from the folder: none random in silence.

    Args:
        opener: a class with `from_pretrained`.
        folder: config.json and safetensors; nothing is fetched, no code of the folder runs.
        fresh: which parameters may be missing, because a new task begins with random ones.
        options: for `from_pretrained`.

    Raises:
        LabError: no safetensors, a tensor that is missing or has another shape.
    """
    if not any(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no safetensors weights; other formats are not read")
    model, found = opener.from_pretrained(
        str(folder),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    lacking = sorted(n for n in found["missing_keys"] if fresh is None or not fresh(n))
    if lacking:
        raise LabError(
            f"the weights in {folder} lack {', '.join(lacking[:3])}; the file is not complete: "
            "save the model again"
        )
    return model

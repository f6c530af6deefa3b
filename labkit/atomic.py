"""Files and folders that appear whole or not at all: write beside, then rename.

claim(folder)        a folder that is complete once it has its name
write_text, write_json        the same for one file
is_disk_full(error)  whether an error, however wrapped, says that the disk is full
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from labkit.errors import LabError


@contextmanager
def claim(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` at the end of the block, or vanishes.

    Parents made for it vanish too when the block fails.

    Args:
        folder: the name that it gets; there must be nothing yet, or an empty folder.
        replace: an older folder of this name is removed. Only for what this program wrote itself:
            whoever asks for it has made sure of that.

    Raises:
        LabError: something stands there already, and `replace` is False.
    """
    made = [p for p in (folder.parent, *folder.parent.parents) if not p.exists()]
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.tmp-*"):
            if not psutil.pid_exists(int(stale.name.rpartition("-")[2])):  # its writer was killed
                shutil.rmtree(stale)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            if not replace and any(folder.iterdir()):
                raise LabError(f"{folder} is not empty: choose a new folder, or empty it yourself")
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; its folder is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; its folder is made if it is missing."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that a disk or a quota is full.

    Python gives a number, the tensor and tokenizer libraries a sentence, `ndarray.tofile` only how
    much it could write.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in text or ("requested and" in text and "written" in text):
            return True
        error = error.__cause__ or error.__context__
    return False

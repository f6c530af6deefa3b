"""What the commands share: progress on stderr, run folders, model folders, exact text scores.

    claim(out)          nothing half-written: a folder appears whole, or not at all
    first(work)         rank 0 works while the others wait, then all know the result or stop
    Progress            one bar (a terminal) or one line now and then (a log file)
    open_lm, open_classifier      a run folder, a model folder or `minilm`
    Contexts, score_text          bits per byte over every token of a text, none dropped

Legend: T context length.
"""

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from labkit import runtime
from labkit.batches import IGNORE_INDEX, Batches, Example
from labkit.errors import LabError
from labkit.evaluation import classification as evaluate
from labkit.objectives.tasks import causal_lm
from labkit.text.tokenizers import ASSISTANT, USER, Tokenizer
from labkit.training import checkpoint
from labkit.training.loop import mean_loss
from labkit.training.run_folder import Record

if TYPE_CHECKING:
    from tqdm import tqdm

R = TypeVar("R")
SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print a result once, whatever the number of processes."""
    if runtime.is_main():
        print(text, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as aligned columns: text to the left, numbers to the right."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    numeric = [not isinstance(rows[0][head], str) for head in heads]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(75)
    '1 min 15 s'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


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


# --- folders -----------------------------------------------------------------------------------


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` at the end of the block, or vanishes.

    It replaces an older `folder`. Parents made for it vanish too when the block fails.
    """
    made = [p for p in (folder.parent, *folder.parent.parents) if not p.exists()]
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.tmp-*"):  # of killed writers
            shutil.rmtree(stale)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_free(out: Path, resume: bool) -> None:
    """Raise a LabError where a new run would mix with an older one."""
    if out.exists() and not out.is_dir():
        raise LabError(f"{out} is a file: choose another --out")
    if (out / "config.json").exists() and not resume:
        raise LabError(f"{out} already holds a run: continue it with --resume or choose --out")


# --- several processes -------------------------------------------------------------------------


def first(here: runtime.World, work: Callable[[], R]) -> R:
    """Let rank 0 work while the others wait, as long as it takes; all get its (small) result.

    Raises:
        What `work` raised, on rank 0; SystemExit(2) on the others, without words.
    """
    if here.size == 1:
        return work()
    failure: BaseException | None = None
    shared: list[Any] = [None, False]
    if here.rank == 0:
        try:
            shared = [work(), True]
        except Exception as error:
            failure = error
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    dist.broadcast_object_list(shared, src=0, group=patient)
    if failure is not None:
        raise failure
    if not shared[1]:
        raise SystemExit(2)
    return shared[0]


def whole(
    model: nn.Module, here: runtime.World, parallel: str, build: Callable[[], nn.Module]
) -> nn.Module:
    """The trained model with all its weights in this process: gathered, if FSDP sharded them."""
    if here.size == 1 or parallel != "fsdp":
        return model
    tensors = checkpoint.model_tensors(model)  # every rank must take part
    if here.rank:
        return model
    fresh = build()
    checkpoint.load_model(fresh, tensors)
    return fresh.eval()


# --- progress ----------------------------------------------------------------------------------


class Progress:
    """`on_step` of the loop: loss, speed and time left, on stderr."""

    def __init__(self, unit: str = "update"):
        self.unit = unit
        self.bar: tqdm | None = None
        self.validation = math.nan
        self._printed = -math.inf

    def __call__(self, record: Record) -> None:
        if record.validation is not None:
            self.validation = record.validation.get("loss", math.nan)
        if sys.stderr.isatty():
            self._draw(record)
        elif (
            record.validation is not None
            or record.step == record.total_steps
            or time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES
        ):
            self._printed = time.monotonic()
            print(self._line(record), file=sys.stderr, flush=True)

    def _draw(self, record: Record) -> None:
        from tqdm import tqdm

        if self.bar is None:
            shape = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
            self.bar = tqdm(
                total=record.total_steps,
                initial=record.step - 1,
                bar_format=shape,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        self.bar.set_postfix_str(self._numbers(record), refresh=False)
        self.bar.update(1)

    def _line(self, record: Record) -> str:
        return f"{self.unit} {record.step}/{record.total_steps}  {self._numbers(record)}"

    def _numbers(self, record: Record) -> str:
        parts = [f"loss {record.loss:.3f}"]
        if not math.isnan(self.validation):
            parts.append(f"validation {self.validation:.3f}")
        parts.append(f"{record.tokens_per_second:,.0f} tokens/s")
        parts.append(f"{duration(record.remaining)} left")
        return "  ".join(parts)

    def close(self) -> None:
        """Leave the finished bar on its own line."""
        if self.bar is not None:
            self.bar.close()


# --- models ------------------------------------------------------------------------------------


def quiet_libraries() -> None:
    """Keep progress bars and notices of the Hugging Face libraries out of ours."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def model_folder(name: str | Path) -> Path:
    """The folder with the weights: `minilm`, a model folder, or `model/` of a run folder.

    Raises:
        LabError: there is no model; the message says what is there instead.
    """
    if str(name) == "minilm":
        from labkit.text import corpora

        return corpora.minilm_folder()
    path = Path(name)
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise LabError(f"the run in {path} has not finished: continue it with --resume")
    if not path.is_dir():
        raise LabError(f"{path} is no folder: give a run folder, a model folder or minilm")
    if not (path / "config.json").is_file():
        raise LabError(f"{path} holds no config.json: give a run folder or a model folder")
    return path


def is_classifier(folder: Path) -> bool:
    """Whether a model folder names a classifier."""
    return any("SequenceClassification" in name for name in _config(folder)["architectures"])


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return {**config, "architectures": config.get("architectures") or []}
    except (ValueError, AttributeError, TypeError) as error:
        raise LabError(f"{file} is damaged ({error}): save the model again") from error


def open_lm(folder: Path) -> nn.Module:
    """A language model as labkit's own where its shape is known (faster), else transformers'.

    Raises:
        LabError: the folder holds no model that predicts the next token.
    """
    from labkit.models.huggingface import weights as interop

    if any("CausalLM" in name or "LMHead" in name for name in _config(folder)["architectures"]):
        try:
            return interop.load_pretrained(folder)
        except LabError:
            return _from_pretrained("AutoModelForCausalLM", folder)
    found = ", ".join(_config(folder)["architectures"]) or "no architecture"
    raise LabError(
        f"{folder} holds {found}, which does not predict the next token: give a causal language "
        "model"
    )


def open_classifier(folder: Path, classes: Sequence[str] | None = None) -> nn.Module:
    """A transformers classifier; with `classes`, a new last layer for them where they differ."""
    if classes is None:
        return _from_pretrained("AutoModelForSequenceClassification", folder)
    return _from_pretrained(
        "AutoModelForSequenceClassification",
        folder,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
        ignore_mismatched_sizes=True,
    )


def _from_pretrained(kind: str, folder: Path, **options: Any) -> Any:
    import transformers

    try:
        opener = getattr(transformers, kind)
        return opener.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise LabError(f"{folder} does not open as {kind} ({said}): save it again") from error


def longest_context(model: nn.Module, default: int = 1024) -> int:
    """Tokens that a labkit or transformers model can see at once."""
    config: Any = model.config
    for name in ("context_length", "max_position_embeddings", "n_positions"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    return default


# --- text --------------------------------------------------------------------------------------


class Contexts:
    """Contexts of T tokens that hold each token of a stream but the first once as a target.

    The last one is filled up with padding whose labels do not count; a causal model does not look
    ahead, so it needs no mask. Item: input_ids (T,), labels (T,).
    """

    def __init__(self, tokens: np.ndarray, context_length: int, pad_id: int):
        self.tokens, self.context_length, self.pad_id = tokens, context_length, pad_id

    def __len__(self) -> int:
        return math.ceil((len(self.tokens) - 1) / self.context_length)

    def __getitem__(self, index: int) -> Example:
        T = self.context_length
        chunk = torch.from_numpy(self.tokens[index * T : index * T + T + 1].astype(np.int64))
        ids = torch.full((T,), self.pad_id)
        labels = torch.full((T,), IGNORE_INDEX)
        ids[: len(chunk) - 1], labels[: len(chunk) - 1] = chunk[:-1], chunk[1:]
        return {"input_ids": ids, "labels": labels}


def score_text(
    model: nn.Module,
    tokens: np.ndarray,
    num_bytes: int,
    context_length: int,
    *,
    batch_size: int = 16,
    precision: str = "fp32",
) -> dict[str, float]:
    """Bits per byte and perplexity of a causal language model on a token stream.

    Args:
        model: labkit or transformers language model, on its device.
        tokens: the stream; begins with an end-of-text token, so that all text is predicted.
        num_bytes: UTF-8 bytes of the text behind it, at least 1.
        context_length: T; each context is read alone.
    """
    examples: Any = Contexts(tokens, context_length, pad_id=0)
    mean, count = mean_loss(
        model, causal_lm, Batches(examples, batch_size), precision=precision, batch_size=batch_size
    )
    return {
        "bits_per_byte": evaluate.bits_per_byte(mean * count, num_bytes),
        "perplexity": evaluate.perplexity(mean * count, count),
        "tokens": count,
        "bytes": num_bytes,
    }


def chat_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as a turn of a conversation, up to where the answer begins."""
    try:
        user, assistant = tokenizer.special_id(USER), tokenizer.special_id(ASSISTANT)
    except LabError:  # another family's tokenizer: say it in words
        return tokenizer.encode(f"User: {prompt}\nAssistant: ")
    return [user, *tokenizer.encode(prompt), assistant]


def token_stream(
    tokenizer: Tokenizer, texts: Sequence[str], batch: int = 256
) -> Iterator[list[int]]:
    """Documents as token ids, an empty one first: `write_tokens` ends each by end-of-text, so even
    the first token of the text has one before it to be predicted from."""
    yield []
    for start in range(0, len(texts), batch):
        yield from tokenizer.encode_batch(texts[start : start + batch])

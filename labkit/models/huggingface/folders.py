"""Open a model folder, one way for every command: by what the model is for.

config.json, safetensors ──> open_lm                labkit's own where it knows the shape
                         ├─> open_seq2seq           labkit's own
                         ├─> open_classifier        transformers'
                         ├─> open_token_classifier  transformers'
                         └─> open_reader            transformers', for answers that are spans
adapter_config.json      ──> the same of its base model, then what was trained beside it
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from labkit.errors import LabError
from labkit.models.adapting.mean_block import add_mean_block
from labkit.models.adapting.saving import (
    about,
    base_folder,
    is_adapter,
    load_adapter,
    read_adapter,
)
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.reading import open_complete, read_config
from labkit.models.huggingface.saving import knows, load_pretrained

#: What a new task puts on top of an encoder: it may begin with random weights.
HEADS = ("classifier", "score", "pooler", "pre_classifier", "out_proj", "classification_head")


def quiet_libraries() -> None:
    """Keep progress bars and notices of the Hugging Face libraries out of ours."""
    from transformers.utils import logging

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # `datasets` reads it when it is imported
    if "datasets" in sys.modules:  # to import it just for this would take half a second
        sys.modules["datasets"].disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def architectures(folder: Path) -> list[str]:
    """The classes that config.json names; of an adapter's folder what its task is for."""
    if is_adapter(folder):
        kind = str(read_adapter(folder).get("task_type"))
        return {"SEQ_CLS": ["SequenceClassification"], "CAUSAL_LM": ["CausalLM"]}.get(kind, [])
    return read_config(folder)["architectures"]


def is_classifier(folder: Path) -> bool:
    """Whether a model folder, or that of an adapter, names a classifier."""
    return any("SequenceClassification" in name for name in architectures(folder))


def is_seq2seq(folder: Path) -> bool:
    """Whether a model folder names an encoder-decoder that answers a source."""
    return any("ForConditionalGeneration" in name for name in architectures(folder))


def is_reader(folder: Path) -> bool:
    """Whether a model folder names a reader whose answers are spans of a text."""
    return any("QuestionAnswering" in name for name in architectures(folder))


def open_seq2seq(folder: Path) -> EncoderDecoder:
    """An encoder-decoder, as labkit's own.

    Raises:
        LabError: the folder holds none, or one whose shape labkit does not have.
    """
    if is_seq2seq(folder) and knows(folder):
        return load_pretrained(folder)
    found = ", ".join(read_config(folder)["architectures"]) or "no architecture"
    raise LabError(
        f"{folder} holds {found}, which is no encoder-decoder of BART's shape: give a folder with"
        " BartForConditionalGeneration"
    )


def open_reader(folder: Path, fresh: bool = False) -> nn.Module:
    """A question answerer of transformers; with `fresh` its head may begin with random weights."""
    return _from_pretrained(
        "AutoModelForQuestionAnswering",
        folder,
        fresh=(lambda name: "qa_outputs" in name.split(".")) if fresh else None,
    )


def open_lm(folder: Path) -> nn.Module:
    """A language model as labkit's own where its shape is known (faster), else transformers'.

    Raises:
        LabError: the folder holds no model that predicts the next token, or its weights are not
            complete.
    """
    if is_adapter(folder):
        model = open_lm(base_folder(folder))
        load_adapter(model, folder)
        return model.eval()
    if any("CausalLM" in name or "LMHead" in name for name in read_config(folder)["architectures"]):
        if knows(folder):
            return load_pretrained(folder)
        return _from_pretrained("AutoModelForCausalLM", folder)
    found = ", ".join(read_config(folder)["architectures"]) or "no architecture"
    raise LabError(
        f"{folder} holds {found}, which does not predict the next token: give a causal language "
        "model"
    )


def open_classifier(folder: Path, classes: Sequence[str] | None = None) -> nn.Module:
    """A transformers classifier; with `classes`, a new last layer for them where they differ."""
    if is_adapter(folder):
        return _with_adapter(folder, classes)
    if classes is None:
        return _from_pretrained("AutoModelForSequenceClassification", folder)
    return _from_pretrained("AutoModelForSequenceClassification", folder, **_fresh_head(classes))


def open_token_classifier(folder: Path, classes: Sequence[str] | None = None) -> nn.Module:
    """`open_classifier` of each token."""
    if classes is None:
        return _from_pretrained("AutoModelForTokenClassification", folder)
    return _from_pretrained("AutoModelForTokenClassification", folder, **_fresh_head(classes))


def _fresh_head(classes: Sequence[str]) -> dict[str, Any]:
    """Options of `from_pretrained`: these classes, and a layer for them that may be new."""
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
        "ignore_mismatched_sizes": True,
        "fresh": lambda name: any(part in HEADS for part in name.split(".")),
    }


def _with_adapter(folder: Path, classes: Sequence[str] | None) -> nn.Module:
    facts, known = about(folder), classes or about(folder).get("classes")
    model = open_classifier(base_folder(folder), known)
    if facts.get("mean_block"):
        add_mean_block(model)
    load_adapter(model, folder)
    return model.eval()


def _from_pretrained(kind: str, folder: Path, **options: Any) -> Any:
    import transformers

    try:
        return open_complete(getattr(transformers, kind), folder, **options)
    except LabError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise LabError(f"{folder} does not open as {kind} ({said}): save it again") from error

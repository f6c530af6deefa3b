"""Model folders: written so that transformers opens them and they behave there, and read back.

    labkit model, tokenizer ── save_pretrained ──> config.json       with our config under "labkit"
                                                   generation_config.json     where a text ends
                                                   model.safetensors, tokenizer, chat template
    labkit model <── load_pretrained ── such a folder, or any that `from_huggingface` reads

The block "labkit" in config.json gives back the exact model, but only while it is true: somebody
may have trained on in transformers, which keeps the block and changes what it describes. Where the
block and the folder disagree, the folder is read as what transformers would see in it.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.atomic import write_text
from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.configs import hf_config, our_config
from labkit.models.huggingface.families import FAMILIES, SUPPORTED
from labkit.models.huggingface.reading import architecture, auto_config, read_config, read_tensors
from labkit.models.huggingface.weights import (
    TIED,
    filled,
    from_huggingface,
    transformers_model,
    used_names,
    with_position_tables,
    with_prefix,
)
from labkit.models.spans import SpanReader
from labkit.models.transformer import Transformer
from labkit.text.tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.*",
    "merges.txt",
)  # fmt: skip
#: The same tensor under a second name.
TWINS = {
    "model.shared.weight": "model.encoder.embed_tokens.weight",
    "cls.predictions.bias": "cls.predictions.decoder.bias",
}
#: What config.json says about the shape, in the words of all families; the rest changes no logit.
SHAPE = {
    "vocab_size", "tie_word_embeddings", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
    "activation_function", "layer_norm_epsilon", "scale_attn_weights", "hidden_size",
    "scale_attn_by_inverse_layer_idx", "max_position_embeddings", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_act", "rms_norm_eps",
    "attention_bias", "mlp_bias", "rope_parameters", "layer_norm_eps", "type_vocab_size", "d_model",
    "is_decoder", "scale_embedding", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
    "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim",
}  # fmt: skip


def knows(folder: Path) -> bool:
    """Whether labkit has the shape of the model in a folder, so that `load_pretrained` is for it.

    Whether the weights are complete is another question: `load_pretrained` answers it.
    """
    details = read_config(folder)
    name = architecture(folder)
    if "labkit" in details:
        return True
    if name not in SUPPORTED:
        return False
    hf = auto_config(folder)
    try:
        our_config(name, hf)
    except LabError:
        return False
    return True


def expressible(model: nn.Module) -> bool:
    """Whether `save_pretrained` can write a model: a transformers class computes the same."""
    if isinstance(model, SpanReader):
        model = model.encoder
    if not isinstance(model, Transformer | EncoderDecoder):
        return hasattr(model, "save_pretrained")
    try:
        hf_config(model.config)
    except LabError:
        return False
    return True


# writing


def save_pretrained(model: nn.Module, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write a folder that transformers' Auto classes open with the same outputs.

    config.json also carries the labkit config under "labkit", so that `load_pretrained` gives back
    the exact model. With a tokenizer, `generate` and `pipeline` of transformers stop where a text
    or an answer ends, and its chat template is there. A classifier on mean pooling, which no
    transformers class has, is written as its bare BERT (AutoModel opens it) with the classifier's
    tensors beside it.

    Args:
        model: A labkit or a transformers model.
        folder: Where to; made if needed.
        tokenizer: A labkit or a transformers tokenizer to put beside it, or the folder of one.

    Returns:
        The folder.

    Raises:
        LabError: No transformers class can express the shape.
    """
    folder = Path(folder)
    if isinstance(model, SpanReader):
        model = model.to_huggingface()
    if isinstance(model, Transformer | EncoderDecoder):
        theirs = transformers_model(model)
        theirs.config.labkit = dataclasses.asdict(model.config)
        _name_tokens(theirs, tokenizer, replace=True)
        with _no_bar():
            theirs.save_pretrained(folder)
        if isinstance(model, Transformer) and model.classifier is not None and not model.pooler:
            path = folder / "model.safetensors"
            extra = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
            save_file(load_file(path) | extra, path, metadata={"format": "pt"})
        writes = model.config.kind != "encoder"
        save_tokenizer(tokenizer, folder, writes, model.config.context_length)
    else:
        _name_tokens(model, tokenizer, replace=False)
        with _no_bar():
            model.save_pretrained(folder)  # type: ignore[operator]
        save_tokenizer(tokenizer, folder, model.can_generate())  # type: ignore[operator]
    return folder


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without the bar that transformers shows for each file, in every training that saves."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _name_tokens(model: Any, tokenizer: Any, replace: bool) -> None:
    """Put the ids that begin, end and pad a text where transformers looks for them."""
    if tokenizer is None:
        return
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.from_pretrained(tokenizer)
    if isinstance(tokenizer, Tokenizer):
        begin = tokenizer.special_id(tokenizer.begin_of_text)
        turn, text, pad = tokenizer.end_of_turn_id, tokenizer.end_of_text_id, tokenizer.pad_id
    else:
        begin, turn, pad = (
            getattr(tokenizer, f"{n}_token_id", None) for n in ("bos", "eos", "pad")
        )
        text = turn
    ids = {"bos_token_id": begin, "eos_token_id": turn, "pad_token_id": pad}
    if getattr(model.config, "is_encoder_decoder", False):  # as `batches.source_target` begins one
        ids["decoder_start_token_id"] = text
    for name, value in ids.items():
        if replace or getattr(model.config, name, None) is None:
            setattr(model.config, name, value)
    generation = getattr(model, "generation_config", None)
    if generation is None or turn is None:
        return
    for name, value in (ids | {"eos_token_id": turn if turn == text else [turn, text]}).items():
        if replace or getattr(generation, name, None) is None:
            setattr(generation, name, value)


def save_tokenizer(
    tokenizer: Any, folder: Path, writes: bool, context_length: int | None = None
) -> None:
    """Put the tokenizer beside the model; one that `writes` gets a chat template in any case."""
    if isinstance(tokenizer, str | Path):
        for pattern in TOKENIZER_FILES:
            for file in Path(tokenizer).glob(pattern):
                shutil.copy(file, folder / file.name)
        if writes and not (folder / "chat_template.jinja").exists():
            chat = Tokenizer.from_pretrained(folder).chat_template
            write_text(folder / "chat_template.jinja", chat)
    elif isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder, context_length)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


# reading


def load_pretrained(folder: str | Path) -> Any:
    """Read back what `save_pretrained` wrote, or any folder that `from_huggingface` reads.

    Args:
        folder: With config.json and safetensors, in one file or several.

    Returns:
        The `Transformer` or `EncoderDecoder`, in evaluation mode.

    Raises:
        LabError: Not such a folder, an unknown architecture, or weights that are not complete.
    """
    folder = Path(folder)
    details = read_config(folder)
    block = details.get("labkit")
    if block is None:
        return from_huggingface(folder)
    try:
        config = TransformerConfig(**block)
        family, theirs = hf_config(config)
    except (LabError, TypeError) as error:
        raise LabError(
            f'the block "labkit" in {folder / "config.json"} is damaged ({error}): take it out to '
            "read the folder as transformers does"
        ) from error
    if family == details.get("model_type") and not _disagrees(theirs.to_dict(), details):
        tensors = with_prefix(read_tensors(folder), family)
        model = filled(config, family, tensors, TIED if config.tied_embeddings else ())
        if _says_all(model, family, tensors):
            return model
    if config.num_labels and architecture(folder) == FAMILIES[family].bare:
        raise LabError(
            f'config.json in {folder} contradicts its block "labkit", which describes a classifier '
            "that no transformers class has: save the model again"
        )
    return from_huggingface(folder)


def _disagrees(expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether config.json describes another shape than the block beside it."""
    return any(found[name] != expected.get(name) for name in SHAPE & found.keys())


def _says_all(model: Transformer | EncoderDecoder, family: str, theirs: dict[str, Tensor]) -> bool:
    """Whether no tensor in the file means something that the model does not compute.

    A model without biases is written with biases of 0, sinusoidal positions as a table: they stay
    void unless somebody trained them.
    """
    names = used_names(model.config, family, theirs)
    ours, tables = model.state_dict(), with_position_tables(model)
    read = {part for name in names if name in ours for part in names[name]}
    stand_for = {
        part: tables[name]
        for name, parts in names.items()
        if name in tables and name not in ours
        for part in parts
    }
    for name, value in theirs.items():
        if name in read or not bool(value.any()):
            continue
        same = theirs[TWINS[name]] if TWINS.get(name) in theirs else stand_for.get(name)
        if same is None or not torch.equal(value[len(value) - len(same) :], same.to(value.dtype)):
            return False
    return True

"""A Llama-shaped model folder as one GGUF file, for llama.cpp and for whatever else reads it.

    config.json ─────────── llama.context_length, llama.block_count, ... ──┐
    tokenizer.json ──────── tokenizer.ggml.tokens, .merges, .pre, ... ─────┼──> model.gguf
    chat_template.jinja ─── tokenizer.chat_template ───────────────────────┤
    model.safetensors ───── matrices: blocks of 32 numbers, a scale each ──┘
                            norms: fp32

`text.gguf` reads such a file and explains its names. Queries and keys go in pair by pair, because
llama.cpp turns neighbouring numbers of a head. A block of 32 numbers w becomes

    q8_0          w ~ d q            d = max|w| / 127         q in -127..127
    q4_0, q5_0    w ~ d (q - half)   d = -top / half          q in 0..15, 0..31; half is 8, 16
    q4_1, q5_1    w ~ d q + min      d = (max - min) / last   q in 0..last, which is 15, 31

where top is the number of the largest size, with its sign, and d and min are fp16: 4 bits cost
4.5 (q4_0) or 5 (q4_1), 8 cost 8.5.

Legend: N rows, X width of a row.

Sources: the specification in ggml's `docs/gguf.md`; `ggml-quants.c` in ggml, as the package `gguf`
has it in Python; the class LlamaModel of llama.cpp's converter.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import decoders, models

from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.huggingface.configs import our_config
from labkit.models.huggingface.reading import architecture, auto_config, read_tensors
from labkit.models.huggingface.weights import with_prefix
from labkit.text.bpe import WORD_PATTERN
from labkit.text.gguf import BLOCK_NAMES, CONTROL, NORMAL, OTHER_NAMES, UNUSED, USER_DEFINED
from labkit.text.tokenizers import Tokenizer

Type = Literal["fp32", "fp16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

#: The name in GGUF, and what `general.file_type` says.
NAMES = {
    "fp32": ("F32", "ALL_F32"),
    "fp16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    **{name: (name.upper(), f"MOSTLY_{name.upper()}") for name in ("q8_0", "q5_1", "q5_0")},
    **{name: (name.upper(), f"MOSTLY_{name.upper()}") for name in ("q4_1", "q4_0")},
}
BLOCK = 32
"""Numbers in a block."""
LARGEST = 65504.0
"""Of fp16, in which numbers or their blocks' scales are kept."""


def write_gguf(folder: Path, file: Path, dtype: Type = "q8_0") -> dict[str, int]:
    """Write the model, the tokenizer and the chat template of a folder as one GGUF file.

    Norms stay fp32. The table that gives the logits stays q8_0 under the types of 4 and 5 bits, as
    llama.cpp keeps it. Matrices whose rows are no multiple of 32 stay fp16.

    Args:
        folder: with LlamaForCausalLM and a byte-level BPE tokenizer.
        file: to be written; not atomic: the caller claims the folder around it.
        dtype: of the matrices.

    Returns:
        How many matrices were written in each type.

    Raises:
        LabError: another architecture or tokenizer, or weights that the type cannot hold.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    config = _llama(folder)
    tensors = with_prefix(read_tensors(folder), "llama")
    if config.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    names = gguf_names(config)
    if lacking := sorted(names.keys() - tensors.keys()):
        raise LabError(f"the weights in {folder} lack {lacking[0]}: save the model again")

    writer = GGUFWriter(file, "llama")
    try:
        writer.add_name(folder.resolve().name)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.d_model)
        writer.add_block_count(config.num_layers)
        writer.add_feed_forward_length(config.ffn_width)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.kv_heads)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(LlamaFileType[NAMES[dtype][1]])
        writer.add_quantization_version(2)
        _add_tokenizer(writer, folder, config.vocab_size)
        written: dict[str, int] = {}
        heads = {"attn_q": config.num_heads, "attn_k": config.kv_heads}
        for theirs, name in names.items():
            weight = tensors.pop(theirs).float().numpy()
            part = name.split(".")[-2]
            kind = type_of(name, weight, dtype, tied=config.tied_embeddings)
            _check_range(theirs, weight, kind)
            if part in heads:
                weight = pair_by_pair(weight, heads[part])
            if weight.ndim > 1:
                written[kind] = written.get(kind, 0) + 1
            raw = GGMLQuantizationType[NAMES[kind][0]]
            writer.add_tensor(name, quantize(weight, raw), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return written


def gguf_names(config: TransformerConfig) -> dict[str, str]:
    """The name in transformers of each tensor of a Llama, and its name in GGUF."""
    output = set() if config.tied_embeddings else {"output"}
    names = {
        f"{theirs}.weight": f"{ours}.weight"
        for ours, theirs in OTHER_NAMES.items()
        if ours in {"token_embd", "output_norm"} | output
    }
    for layer in range(config.num_layers):
        for ours, theirs in BLOCK_NAMES.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    return names


def type_of(name: str, weight: np.ndarray, dtype: str, tied: bool) -> str:
    """The type in which a tensor is kept, where the file as a whole is asked for in `dtype`.

    Args:
        name: in GGUF.
        weight: the tensor.
        dtype: as in `write_gguf`.
        tied: the embedding table gives the logits, too.
    """
    if weight.ndim == 1:
        return "fp32"
    if dtype in ("fp32", "fp16", "bf16"):
        return dtype
    if weight.shape[1] % BLOCK:
        return "fp16"
    gives_logits = name == ("token_embd.weight" if tied else "output.weight")
    return "q8_0" if gives_logits else dtype


def pair_by_pair(halves_NX: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of each head as GGUF stores them: 0, h/2, 1, h/2 + 1, ... of its h rows.

    The inverse of `text.gguf.half_by_half`.

    Args:
        halves_NX: (num_heads * h, X), a query or key matrix as transformers stores it.
        num_heads: heads whose rows stand behind one another.
    """
    rows, width = halves_NX.shape
    pairs = halves_NX.reshape(num_heads, 2, rows // num_heads // 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, width))


def block_bound(weight_NX: np.ndarray, dtype: Type) -> np.ndarray:
    """How far a type may move each number of a matrix, at most.

    Half a step of its grid; a whole one in q4_0 and q5_0, whose grid has a level more on the side
    of the largest number. To that comes what the rounding of d and min to fp16 moves.

    Args:
        weight_NX: the numbers; X a multiple of 32 for the types with blocks.
        dtype: the type.

    Returns:
        The bound of each number, of the same shape.

    >>> block_bound(np.full((1, 32), 127.0), "q8_0").max().round(2)
    np.float64(0.56)
    """
    exact = np.abs(weight_NX.astype(np.float64))
    if dtype == "fp32":
        return np.zeros_like(exact)
    if dtype == "fp16":
        return _half(exact)
    if dtype == "bf16":
        return exact * 2.0**-8
    blocks = weight_NX.astype(np.float64).reshape(-1, BLOCK)
    largest = np.abs(blocks).max(1, keepdims=True)
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    if dtype == "q8_0":
        bound = largest / 127 / 2 + 127 * _half(largest / 127)
    elif dtype in ("q4_0", "q5_0"):
        levels = 8 if dtype == "q4_0" else 16
        bound = largest / levels + levels * _half(largest / levels)
    else:
        levels = 15 if dtype == "q4_1" else 31
        step = (high - low) / levels
        bound = step / 2 + levels * _half(step) + _half(np.abs(low))
    return np.broadcast_to(bound * (1 + 1e-5), blocks.shape).reshape(weight_NX.shape)


def _half(size: np.ndarray) -> np.ndarray:
    """How far rounding to fp16 moves a number of this size: relative, or near 0 absolute."""
    return np.maximum(size * 2.0**-11, 2.0**-25)


def _llama(folder: Path) -> TransformerConfig:
    found = architecture(folder)
    if found != "LlamaForCausalLM":
        raise LabError(
            f"{folder} holds {found or 'a model without a name'}, and GGUF is written for "
            "LlamaForCausalLM alone: choose --format onnx or safetensors"
        )
    config = our_config(found, auto_config(folder))
    if config.bias:
        raise LabError(
            f"{folder} has attention_bias, which GGUF files of the architecture 'llama' do not have"
            ": choose --format onnx or safetensors"
        )
    return config


def _check_range(name: str, weight: np.ndarray, kind: str) -> None:
    largest = float(np.abs(weight).max(initial=0.0))
    if not np.isfinite(largest):
        raise LabError(f"{name} holds numbers that are not finite: the model is damaged")
    if largest > LARGEST and kind not in ("fp32", "bf16"):
        raise LabError(
            f"{name} holds {largest:.3g}, and {kind} keeps numbers up to {LARGEST:.0f}: choose "
            "--dtype fp32 or bf16"
        )


# the tokenizer


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    described = json.loads(tokenizer.backend.to_str())
    pre = _splits_like(folder, tokenizer, described)
    if tokenizer.vocab_size > vocab_size:
        raise LabError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model "
            f"{vocab_size}: they belong to different models"
        )
    names, kinds = _tokens(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.special_id(tokenizer.begin_of_text))
    writer.add_eos_token_id(tokenizer.end_of_turn_id)
    writer.add_eot_token_id(tokenizer.end_of_turn_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_unk_token_id(tokenizer.end_of_text_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Each id's name and type; ids that the model has and the tokenizer has not are unused."""
    by_id = {i: name for name, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.backend.get_added_tokens_decoder()
    names = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [NORMAL if i in by_id else UNUSED for i in range(vocab_size)]
    for i, token in added.items():
        kinds[i] = CONTROL if token.special else USER_DEFINED
    return names, kinds


def _splits_like(folder: Path, tokenizer: Tokenizer, described: dict[str, Any]) -> str:
    """GGUF's name of the rule that cuts a text into words: "gpt-2" or "smollm"."""
    refused = LabError(
        f"{folder} has a tokenizer that GGUF has no name for here: a byte-level BPE that cuts words"
        " as GPT-2 or SmolLM do and adds no tokens can be written; choose --format onnx or "
        "safetensors"
    )
    backend = tokenizer.backend
    byte_level = isinstance(backend.decoder, decoders.ByteLevel)
    if not (isinstance(backend.model, models.BPE) and byte_level):
        raise refused
    if described["normalizer"] is not None or backend.num_special_tokens_to_add(False):
        raise refused
    rule = described["pre_tokenizer"] or {}
    steps = rule.get("pretokenizers", [rule])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        raise refused
    first = steps[0] if len(steps) == 2 else {}
    if len(steps) == 1 and last["use_regex"]:
        return "gpt-2"
    if first.get("type") == "Digits" and first["individual_digits"] and last["use_regex"]:
        return "smollm"
    if first.get("type") == "Split" and not last["use_regex"]:
        cut = (first["pattern"], first["behavior"], first["invert"])
        if cut == ({"Regex": WORD_PATTERN}, "Isolated", False):
            return "gpt-2"
    raise refused

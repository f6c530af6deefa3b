"""A GGUF file of a Llama-shaped model, as a folder that `transformers` opens.

    model.gguf ── read (package `gguf`) ──> metadata ──> config.json, generation_config.json
                                        │            └─> tokenizer.json, tokenizer_config.json,
                                        │                chat_template.jinja
                                        └─> blocks of 4 to 8 bits ── dequantised ──> fp32
                                                                     model.safetensors

GGUF is the file format of llama.cpp. Its names differ from those of transformers, and it stores the
rows of the query and key matrices in another order: its rotation turns neighbouring pairs, that of
transformers the two halves of a head.

Sources: the specification in ggml's `docs/gguf.md`; the class LlamaModel of llama.cpp's converter.
"""

from pathlib import Path
from typing import Any

import numpy as np

from labkit.atomic import write_json, write_text
from labkit.errors import LabError

#: One block's tensors, as GGUF and as transformers name them.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
#: How the tokenizers that GGUF names cut text into words before bytes are merged.
ONE_DIGIT_AT_A_TIME = {"smollm": True, "gpt-2": False, "gpt2": False, "default": False}
#: Types of tokens: of text, special, added but not special, and of an id that no text reaches.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as a `transformers` folder, weights in fp32.

    Args:
        file: GGUF of the architecture "llama" with a byte-level BPE ("gpt2") tokenizer.
        folder: an existing folder to fill.

    Raises:
        LabError: no such GGUF file, or another architecture or tokenizer.
    """
    values, tensors = read(file)
    _write_tokenizer(values, folder)
    _write_configs(llama_config(values, tensors), values, folder)
    from safetensors.numpy import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata of a GGUF file by their keys, and its tensors in fp32, named by transformers.

    Raises:
        LabError: no such GGUF file, or another architecture or tokenizer.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise LabError(f"{file} is no GGUF file, or a damaged one ({error})") from error
    must_be(file, values, "general.architecture", ("llama",))
    must_be(file, values, "tokenizer.ggml.model", ("gpt2",))
    must_be(file, values, "tokenizer.ggml.pre", tuple(ONE_DIGIT_AT_A_TIME))
    return values, _tensors(reader, values)


def must_be(file: Path, values: dict[str, Any], key: str, known: tuple[str, ...]) -> None:
    """Refuse a file whose metadata say something that is not read here.

    Raises:
        LabError: the value is none of `known`.
    """
    if values.get(key) not in known:
        raise LabError(
            f"{file} has {key} {values.get(key)!r}; only {', '.join(map(repr, known))} can be read"
        )


def _tensors(reader: Any, values: dict[str, Any]) -> dict[str, np.ndarray]:
    from gguf.quants import dequantize

    heads = {
        "attn_q": values["llama.attention.head_count"],
        "attn_k": values["llama.attention.head_count_kv"],
    }
    found = {}
    for tensor in reader.tensors:
        weight = np.require(dequantize(tensor.data, tensor.tensor_type), np.float32, ["C", "W"])
        *where, part, kind = tensor.name.split(".")
        if where:
            name = f"model.layers.{where[1]}.{BLOCK_NAMES[part]}.{kind}"
        else:
            name = f"{OTHER_NAMES[part]}.{kind}"
        found[name] = half_by_half(weight, heads[part]) if part in heads else weight
    return found


def half_by_half(pairs_NX: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows in pairs (0, h/2, 1, h/2 + 1, ...) of each head's h rows, back in order (0, 1, 2, ...).

    Args:
        pairs_NX: (num_heads * h, X), as GGUF stores a query or key matrix.
        num_heads: heads whose rows stand behind one another.

    Returns:
        The same rows as transformers stores them.
    """
    rows, width = pairs_NX.shape
    halves = pairs_NX.reshape(num_heads, rows // num_heads // 2, 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows, width))


def llama_config(values: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What transformers' `LlamaConfig` has to know, from what `read` gave."""
    theta = values["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "max_position_embeddings": values["llama.context_length"],
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        # stored as fp32: 1e-5 comes back as 9.999999747378752e-06
        "rms_norm_eps": float(str(np.float32(values["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }


def _write_configs(config: dict[str, Any], values: dict[str, Any], folder: Path) -> None:
    tokens = {
        name: values[f"tokenizer.ggml.{kind}_token_id"]
        for name, kind in (
            ("bos_token_id", "bos"),
            ("eos_token_id", "eos"),
            ("pad_token_id", "padding"),
        )
    }
    write_json(folder / "config.json", config | tokens)
    # A text ends at the end of a turn or, outside a chat, at the end of a document.
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    turn = tokens["eos_token_id"]
    ends = turn if unknown in (None, turn) else [turn, unknown]
    write_json(folder / "generation_config.json", {**tokens, "eos_token_id": ends})


def _write_tokenizer(values: dict[str, Any], folder: Path) -> None:
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    names, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in values["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges)
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = ONE_DIGIT_AT_A_TIME[values["tokenizer.ggml.pre"]]
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if digits
        else byte_level
    )
    backend.decoder = decoders.ByteLevel()
    special = [name for name, kind in zip(names, types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    whole = [name for name, kind in zip(names, types, strict=True) if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(name, normalized=False) for name in whole])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        f"{role}_token": names[values[f"tokenizer.ggml.{kind}_token_id"]]
        for role, kind in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if f"tokenizer.ggml.{kind}_token_id" in values
    }
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["llama.context_length"],
    }
    write_json(folder / "tokenizer_config.json", config)
    if template := values.get("tokenizer.chat_template"):
        write_text(folder / "chat_template.jinja", template)

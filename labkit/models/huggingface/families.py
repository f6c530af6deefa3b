"""Which transformers parameter is which of labkit's: one table for each family of models.

    family    labkit shape                       transformers classes
    gpt2      decoder, layernorm, pre-norm       GPT2LMHeadModel, GPT2Model
    llama     decoder, rmsnorm, rotary, swiglu   LlamaForCausalLM, LlamaModel
    bert      encoder, layernorm, post-norm      BertForMaskedLM, BertForSequenceClassification, ...
    bart      encoder_decoder, post-norm         BartForConditionalGeneration, BartModel

Weights differ in names only, except that labkit stacks queries, keys and values (and swiglu's gate
and up) in one matrix, that GPT-2 stores its matrices transposed, and that BART's first two
positions stand for nothing.

Sources: the transformers modules `gpt2`, `llama`, `bert` and `bart`.
"""

from typing import NamedTuple

from labkit.models.config import TransformerConfig


class Family(NamedTuple):
    """How one family names its parts."""

    prefix: str
    """What a model with a head puts before the names of its body."""
    names: dict[str, tuple[str, ...]]
    """labkit's module and the transformers modules stacked in it; `{i}` is the layer."""
    bare: str
    """The class without a head, whose names lack the prefix."""
    heads: tuple[str, ...]
    """The classes with a head; the first is the language model."""
    transposed: bool = False
    """Matrices are stored (in, out)."""
    unused_positions: int = 0
    """Rows before position 0 in the position tables."""


def _three(stem: str, parts: tuple[str, str, str], end: str = "") -> tuple[str, ...]:
    return tuple(f"{stem}.{part}{end}" for part in parts)


_QKV = ("q_proj", "k_proj", "v_proj")
_GPT2, _LLAMA, _BERT = "transformer.h.{i}", "model.layers.{i}", "bert.encoder.layer.{i}"


def _bart_layer(side: str) -> dict[str, tuple[str, ...]]:
    ours, theirs = f"{side}.blocks.{{i}}", f"model.{side}.layers.{{i}}"
    return {
        f"{side}.embedding": (f"model.{side}.embed_tokens",),
        f"{side}.positions": (f"model.{side}.embed_positions",),
        f"{side}.embedding_norm": (f"model.{side}.layernorm_embedding",),
        f"{ours}.attention.qkv": _three(f"{theirs}.self_attn", _QKV),
        f"{ours}.attention.out": (f"{theirs}.self_attn.out_proj",),
        f"{ours}.attention_norm": (f"{theirs}.self_attn_layer_norm",),
        f"{ours}.ffn.up": (f"{theirs}.fc1",),
        f"{ours}.ffn.down": (f"{theirs}.fc2",),
        f"{ours}.ffn_norm": (f"{theirs}.final_layer_norm",),
    }


FAMILIES = {
    "gpt2": Family(
        prefix="transformer.",
        transposed=True,
        bare="GPT2Model",
        heads=("GPT2LMHeadModel",),
        names={
            "embedding": ("transformer.wte",),
            "positions": ("transformer.wpe",),
            "blocks.{i}.attention_norm": (f"{_GPT2}.ln_1",),
            "blocks.{i}.attention.qkv": (f"{_GPT2}.attn.c_attn",),
            "blocks.{i}.attention.out": (f"{_GPT2}.attn.c_proj",),
            "blocks.{i}.ffn_norm": (f"{_GPT2}.ln_2",),
            "blocks.{i}.ffn.up": (f"{_GPT2}.mlp.c_fc",),
            "blocks.{i}.ffn.down": (f"{_GPT2}.mlp.c_proj",),
            "final_norm": ("transformer.ln_f",),
            "lm_head": ("lm_head",),
        },
    ),
    "llama": Family(
        prefix="model.",
        bare="LlamaModel",
        heads=("LlamaForCausalLM",),
        names={
            "embedding": ("model.embed_tokens",),
            "blocks.{i}.attention_norm": (f"{_LLAMA}.input_layernorm",),
            "blocks.{i}.attention.qkv": _three(f"{_LLAMA}.self_attn", _QKV),
            "blocks.{i}.attention.out": (f"{_LLAMA}.self_attn.o_proj",),
            "blocks.{i}.ffn_norm": (f"{_LLAMA}.post_attention_layernorm",),
            "blocks.{i}.ffn.up": (f"{_LLAMA}.mlp.gate_proj", f"{_LLAMA}.mlp.up_proj"),
            "blocks.{i}.ffn.down": (f"{_LLAMA}.mlp.down_proj",),
            "final_norm": ("model.norm",),
            "lm_head": ("lm_head",),
        },
    ),
    "bert": Family(
        prefix="bert.",
        bare="BertModel",
        heads=("BertForMaskedLM", "BertForSequenceClassification"),
        names={
            "embedding": ("bert.embeddings.word_embeddings",),
            "positions": ("bert.embeddings.position_embeddings",),
            "token_types": ("bert.embeddings.token_type_embeddings",),
            "embedding_norm": ("bert.embeddings.LayerNorm",),
            "blocks.{i}.attention.qkv": _three(
                f"{_BERT}.attention.self", ("query", "key", "value")
            ),
            "blocks.{i}.attention.out": (f"{_BERT}.attention.output.dense",),
            "blocks.{i}.attention_norm": (f"{_BERT}.attention.output.LayerNorm",),
            "blocks.{i}.ffn.up": (f"{_BERT}.intermediate.dense",),
            "blocks.{i}.ffn.down": (f"{_BERT}.output.dense",),
            "blocks.{i}.ffn_norm": (f"{_BERT}.output.LayerNorm",),
            "transform.dense": ("cls.predictions.transform.dense",),
            "transform.norm": ("cls.predictions.transform.LayerNorm",),
            "lm_head": ("cls.predictions.decoder",),
            "pooler": ("bert.pooler.dense",),
            "classifier": ("classifier",),
        },
    ),
    "bart": Family(
        prefix="model.",
        bare="BartModel",
        heads=("BartForConditionalGeneration",),
        unused_positions=2,
        names={
            **_bart_layer("encoder"),
            **_bart_layer("decoder"),
            "decoder.blocks.{i}.cross_attention.q": (
                "model.decoder.layers.{i}.encoder_attn.q_proj",
            ),
            "decoder.blocks.{i}.cross_attention.kv": (
                "model.decoder.layers.{i}.encoder_attn.k_proj",
                "model.decoder.layers.{i}.encoder_attn.v_proj",
            ),
            "decoder.blocks.{i}.cross_attention.out": (
                "model.decoder.layers.{i}.encoder_attn.out_proj",
            ),
            "decoder.blocks.{i}.cross_norm": ("model.decoder.layers.{i}.encoder_attn_layer_norm",),
            "decoder.lm_head": ("lm_head",),
        },
    ),
}

SUPPORTED = tuple(name for f in FAMILIES.values() for name in (*f.heads, f.bare))
"""Architectures that `interop.from_huggingface` reads."""


def parameter_names(config: TransformerConfig, family: str) -> dict[str, tuple[str, ...]]:
    """labkit's parameter names and, for each, the transformers parameters stacked in it."""
    names = {}
    for ours, theirs in FAMILIES[family].names.items():
        for i in range(config.num_layers if "{i}" in ours else 1):
            for end in ("weight", "bias"):
                key = f"{ours}.{end}".replace("{i}", str(i))
                names[key] = tuple(f"{name}.{end}".replace("{i}", str(i)) for name in theirs)
    if family == "bert":  # the one under both names in memory that files keep
        names["lm_head.bias"] = ("cls.predictions.bias",)
    return names

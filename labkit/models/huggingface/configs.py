"""One labkit config as a transformers config, and back.

    TransformerConfig ── hf_config ──> GPT2Config / LlamaConfig / BertConfig / BartConfig
    TransformerConfig <── our_config ──

What one side has and the other cannot say is refused, with the field's name.

Sources: the transformers modules `gpt2`, `llama`, `bert` and `bart`.
"""

from typing import Any

from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.huggingface.families import FAMILIES

HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
OUR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# labkit -> transformers


def hf_config(config: TransformerConfig) -> tuple[str, Any]:
    """The family ("gpt2", "llama", "bert" or "bart") and its transformers config.

    Raises:
        LabError: No family can express the shape; the message names the config value.
    """
    if config.kind == "encoder_decoder":
        return "bart", _hf_bart(config)
    if config.kind == "encoder":
        return "bert", _hf_bert(config)
    must(config, norm_position="pre", num_labels=0, token_types=0, why="a transformers decoder")
    if config.position == "rotary":
        return "llama", _hf_llama(config)
    return "gpt2", _hf_gpt2(config)


NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _hf_gpt2(config: TransformerConfig) -> Any:
    from transformers import GPT2Config

    must(
        config,
        norm="layernorm",
        activation=tuple(HF_ACTIVATIONS),
        num_kv_heads=(None, config.num_heads),
        d_head=(None, config.d_model // config.num_heads),
        why=f"GPT-2 (position={config.position!r})",
    )
    return GPT2Config(
        **NO_TOKENS,
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.d_model,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        n_inner=config.ffn_width,
        activation_function=HF_ACTIVATIONS[config.activation],
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        layer_norm_epsilon=config.norm_eps,
        tie_word_embeddings=config.tied_embeddings,
    )


def _hf_llama(config: TransformerConfig) -> Any:
    from transformers import LlamaConfig

    must(config, norm="rmsnorm", activation="swiglu", why="Llama (position='rotary')")
    return LlamaConfig(
        **NO_TOKENS,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        hidden_size=config.d_model,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        intermediate_size=config.ffn_width,
        hidden_act="silu",
        attention_bias=config.bias,
        mlp_bias=config.bias,
        attention_dropout=config.dropout,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied_embeddings,
    )


def _must_be_post_norm(config: TransformerConfig, why: str, **more: Any) -> None:
    must(
        config,
        norm_position="post",
        norm="layernorm",
        position=("learned", "sinusoidal"),
        activation=tuple(HF_ACTIVATIONS),
        num_kv_heads=(None, config.num_heads),
        d_head=(None, config.d_model // config.num_heads),
        why=why,
        **more,
    )


def _hf_bert(config: TransformerConfig) -> Any:
    from transformers import BertConfig

    _must_be_post_norm(config, "BERT")
    tokens: dict[str, Any] = NO_TOKENS | {"pad_token_id": 0, "num_labels": config.num_labels or 2}
    return BertConfig(
        **tokens,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        hidden_size=config.d_model,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_width,
        hidden_act=HF_ACTIVATIONS[config.activation],
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        layer_norm_eps=config.norm_eps,
        type_vocab_size=max(config.token_types, 1),
        tie_word_embeddings=config.tied_embeddings,
    )


def _hf_bart(config: TransformerConfig) -> Any:
    from transformers import BartConfig

    _must_be_post_norm(config, "BART", tied_embeddings=True, norm_eps=1e-5)
    tokens: dict[str, Any] = NO_TOKENS | {
        "decoder_start_token_id": None,
        "forced_eos_token_id": None,
    }
    sides: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", config.num_layers),
            ("attention_heads", config.num_heads),
            ("ffn_dim", config.ffn_width),
        )
    }
    return BartConfig(
        **tokens,
        **sides,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        d_model=config.d_model,
        activation_function=HF_ACTIVATIONS[config.activation],
        dropout=config.dropout,
        attention_dropout=config.dropout,
        tie_word_embeddings=True,
    )


def must(config: TransformerConfig, why: str, **needed: Any) -> None:
    """Refuse a shape that `why` cannot express.

    Raises:
        LabError: A field of the config is not (one of) the needed values.
    """
    for name, wanted in needed.items():
        value = getattr(config, name)
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if value not in allowed:
            raise LabError(
                f"{name}={value!r} cannot be expressed by {why}, which has"
                f" {name}={' or '.join(map(repr, allowed))}; change {name} to export the model"
            )


# transformers -> labkit


def our_config(architecture: str, hf: Any) -> TransformerConfig:
    """The labkit config of a transformers config.

    Args:
        architecture: Name of the transformers class, one of `SUPPORTED`.
        hf: Its config.

    Raises:
        LabError: A variant that labkit does not have.
    """
    family = FAMILIES[hf.model_type]
    read = {"gpt2": _from_gpt2, "llama": _from_llama, "bert": _from_bert, "bart": _from_bart}
    heads = {
        "num_labels": hf.num_labels if architecture == "BertForSequenceClassification" else 0,
        "vocabulary_head": architecture == family.heads[0],
        "vocab_size": hf.vocab_size,
        "tied_embeddings": hf.tie_word_embeddings,
    }
    return read[hf.model_type](hf, heads)


def _from_gpt2(hf: Any, heads: dict[str, Any]) -> TransformerConfig:
    _supported(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    return TransformerConfig.gpt2(
        **heads,
        activation=_activation(hf.activation_function),
        context_length=hf.n_positions,
        d_model=hf.n_embd,
        num_layers=hf.n_layer,
        num_heads=hf.n_head,
        d_ff=hf.n_inner,
        dropout=hf.resid_pdrop,
        norm_eps=hf.layer_norm_epsilon,
    )


def _from_llama(hf: Any, heads: dict[str, Any]) -> TransformerConfig:
    rope = hf.rope_parameters
    _supported(hf, hidden_act="silu", mlp_bias=hf.attention_bias)
    width = hf.head_dim or hf.hidden_size // hf.num_attention_heads
    usual = width * hf.num_attention_heads == hf.hidden_size
    if rope["rope_type"] != "default":
        raise LabError(f"rope_type {rope['rope_type']!r} is not supported; only 'default' is")
    return TransformerConfig.llama(
        **heads,
        context_length=hf.max_position_embeddings,
        d_model=hf.hidden_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        d_head=None if usual else width,
        d_ff=hf.intermediate_size,
        bias=hf.attention_bias,
        dropout=hf.attention_dropout,
        rope_theta=rope["rope_theta"],
        norm_eps=hf.rms_norm_eps,
    )


def _from_bert(hf: Any, heads: dict[str, Any]) -> TransformerConfig:
    _supported(hf, is_decoder=False)
    return TransformerConfig.bert(
        **heads,
        activation=_activation(hf.hidden_act),
        context_length=hf.max_position_embeddings,
        d_model=hf.hidden_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        d_ff=hf.intermediate_size,
        dropout=hf.hidden_dropout_prob,
        norm_eps=hf.layer_norm_eps,
        token_types=hf.type_vocab_size,
    )


def _from_bart(hf: Any, heads: dict[str, Any]) -> TransformerConfig:
    _supported(
        hf,
        scale_embedding=False,
        tie_word_embeddings=True,
        decoder_layers=hf.encoder_layers,
        decoder_attention_heads=hf.encoder_attention_heads,
        decoder_ffn_dim=hf.encoder_ffn_dim,
    )
    return TransformerConfig.bart(
        **heads,
        activation=_activation(hf.activation_function),
        context_length=hf.max_position_embeddings,
        d_model=hf.d_model,
        num_layers=hf.encoder_layers,
        num_heads=hf.encoder_attention_heads,
        d_ff=hf.encoder_ffn_dim,
        dropout=hf.dropout,
    )


def _activation(theirs: str) -> str:
    if theirs not in OUR_ACTIVATIONS:
        raise LabError(
            f"activation {theirs!r} is not supported; labkit has {', '.join(OUR_ACTIVATIONS)}"
        )
    return OUR_ACTIVATIONS[theirs]


def _supported(hf: Any, **needed: Any) -> None:
    for name, wanted in needed.items():
        if getattr(hf, name, wanted) != wanted:
            raise LabError(f"{name}={getattr(hf, name)!r} is not supported; labkit has {wanted!r}")

"""The same weights in labkit and in Hugging Face transformers, both ways.

    Transformer ── to_huggingface ──> GPT2 / Llama / Bert model ── save_pretrained ──> folder
    Transformer <── from_huggingface ── GPT2 / Llama / Bert model <── from_pretrained ── folder

Weights differ in names only, except that labkit keeps queries, keys and values (and swiglu's gate
and up) in one matrix, rows stacked in that order, and that GPT-2 stores its matrices transposed.
One table per family says which is which, read forwards and backwards. Files are safetensors, never
pickle.

Sources: the transformers modules `gpt2`, `llama` and `bert`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.transformer import Transformer, TransformerConfig

SUPPORTED = (
    "GPT2LMHeadModel",
    "GPT2Model",
    "LlamaForCausalLM",
    "LlamaModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertModel",
)
"""Architectures that `from_huggingface` reads."""

HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
OUR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Family(NamedTuple):
    """How one family of transformers models names its parts; `{i}` is the layer."""

    prefix: str
    transposed: bool
    outside: dict[str, str]
    inside: dict[str, tuple[str, ...]]


GPT2 = Family(
    prefix="transformer.",
    transposed=True,
    outside={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    inside={
        "attention_norm": ("transformer.h.{i}.ln_1",),
        "attention.qkv": ("transformer.h.{i}.attn.c_attn",),
        "attention.out": ("transformer.h.{i}.attn.c_proj",),
        "ffn_norm": ("transformer.h.{i}.ln_2",),
        "ffn.up": ("transformer.h.{i}.mlp.c_fc",),
        "ffn.down": ("transformer.h.{i}.mlp.c_proj",),
    },
)
LLAMA = Family(
    prefix="model.",
    transposed=False,
    outside={
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
    },
    inside={
        "attention_norm": ("model.layers.{i}.input_layernorm",),
        "attention.qkv": tuple(f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"),
        "attention.out": ("model.layers.{i}.self_attn.o_proj",),
        "ffn_norm": ("model.layers.{i}.post_attention_layernorm",),
        "ffn.up": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        "ffn.down": ("model.layers.{i}.mlp.down_proj",),
    },
)
BERT = Family(
    prefix="bert.",
    transposed=False,
    outside={
        "embedding": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "token_types": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "transform.dense": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "lm_head": "cls.predictions.decoder",
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
    },
    inside={
        "attention.qkv": tuple(
            f"bert.encoder.layer.{{i}}.attention.self.{x}" for x in ("query", "key", "value")
        ),
        "attention.out": ("bert.encoder.layer.{i}.attention.output.dense",),
        "attention_norm": ("bert.encoder.layer.{i}.attention.output.LayerNorm",),
        "ffn.up": ("bert.encoder.layer.{i}.intermediate.dense",),
        "ffn.down": ("bert.encoder.layer.{i}.output.dense",),
        "ffn_norm": ("bert.encoder.layer.{i}.output.LayerNorm",),
    },
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "bert": BERT}


# labkit -> transformers


def to_huggingface(model: Transformer) -> Any:
    """The transformers model that computes the same logits, in evaluation mode.

    A model without biases becomes a GPT-2 or BERT whose biases are 0; sinusoidal positions become a
    learned table that holds them. Dropout is copied where the class has it (Llama: on attention
    only).

    Args:
        model: Any labkit model whose shape a GPT-2, Llama or BERT class can express.

    Returns:
        GPT2LMHeadModel, LlamaForCausalLM, BertForMaskedLM, BertForSequenceClassification, or the
        bare GPT2Model, LlamaModel, BertModel for a config without a head.

    Raises:
        LabError: No class can express the shape; the message names the config value that is the
            reason.
    """
    if model.classifier is not None:
        _must(model.config, pooling="first", kind="encoder", why="a transformers classifier")
    return _to_huggingface(model)


def _to_huggingface(model: Transformer) -> Any:
    kind, config = hf_config(model.config)
    hf_model = _build(kind, config, model)
    ours = dict(model.state_dict())
    if model.config.position == "sinusoidal":
        ours["positions.weight"] = model.sines
    theirs = hf_model.state_dict()
    filled = {name: torch.zeros_like(value) for name, value in theirs.items()}
    for name, parts in _names(model.config, kind).items():
        if name not in ours:
            continue
        value = ours[name].detach()
        value = value.T if _transposed(kind, name) else value
        keys = [_bare(part, kind, hf_model) for part in parts]
        if not all(key in theirs for key in keys):
            continue  # the classifier on mean pooling, which save_pretrained keeps beside the model
        axis = 1 if _transposed(kind, name) else 0
        sizes = [theirs[key].shape[axis] for key in keys]
        filled |= dict(zip(keys, value.split(sizes, dim=axis), strict=True))
    if "cls.predictions.bias" in filled:
        filled["cls.predictions.decoder.bias"] = filled["cls.predictions.bias"]
    hf_model.load_state_dict(filled)
    return hf_model.to(dtype=model.embedding.weight.dtype).eval()


def hf_config(config: TransformerConfig) -> tuple[str, Any]:
    """The family ("gpt2", "llama" or "bert") and its transformers config.

    Raises:
        LabError: No family can express the shape; the message names the config value.
    """
    import transformers

    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if config.kind == "encoder":
        _must(
            config,
            norm_position="post",
            norm="layernorm",
            position=("learned", "sinusoidal"),
            activation=tuple(HF_ACTIVATIONS),
            num_kv_heads=(None, config.num_heads),
            why="BERT",
        )
        tokens |= {"pad_token_id": 0, "num_labels": config.num_labels or 2}
        return "bert", transformers.BertConfig(
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
    _must(config, norm_position="pre", num_labels=0, token_types=0, why="a transformers decoder")
    if config.position == "rotary":
        _must(config, norm="rmsnorm", activation="swiglu", why="Llama (position='rotary')")
        return "llama", transformers.LlamaConfig(
            **tokens,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn_width,
            hidden_act="silu",
            attention_bias=config.bias,
            mlp_bias=config.bias,
            attention_dropout=config.dropout,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied_embeddings,
        )
    _must(
        config,
        norm="layernorm",
        activation=tuple(HF_ACTIVATIONS),
        num_kv_heads=(None, config.num_heads),
        why=f"GPT-2 (position={config.position!r})",
    )
    return "gpt2", transformers.GPT2Config(
        **tokens,
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


def _build(kind: str, config: Any, model: Transformer) -> Any:
    import transformers

    head = model.lm_head is not None
    if kind == "gpt2":
        return (transformers.GPT2LMHeadModel if head else transformers.GPT2Model)(config)
    if kind == "llama":
        return (transformers.LlamaForCausalLM if head else transformers.LlamaModel)(config)
    if head:
        return transformers.BertForMaskedLM(config)
    if model.pooler is not None:
        return transformers.BertForSequenceClassification(config)
    return transformers.BertModel(config, add_pooling_layer=False)


def _must(config: TransformerConfig, why: str, **needed: Any) -> None:
    for name, wanted in needed.items():
        value = getattr(config, name)
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if value not in allowed:
            raise LabError(
                f"{name}={value!r} cannot be expressed by {why}, which has"
                f" {name}={' or '.join(map(repr, allowed))}; change {name} to export the model"
            )


# transformers -> labkit


def from_huggingface(source: Any, **changes: Any) -> Transformer:
    """The labkit model with the same weights and, where it has a head, the same logits.

    Args:
        source: A transformers model of a `SUPPORTED` architecture, or a folder that holds one
            (config.json and safetensors).
        changes: Config fields to change on the way, such as `num_labels=5, pooling="mean"` for a
            new classification head; parts that the source does not have start from random weights.

    Returns:
        The model, in evaluation mode, fp32.

    Raises:
        LabError: Unknown architecture, a variant that labkit does not have, or no safetensors.
    """
    hf_model = _open(Path(source)) if isinstance(source, str | Path) else source
    name = type(hf_model).__name__
    if name not in SUPPORTED:
        raise LabError(f"{name} is not supported; labkit reads {', '.join(SUPPORTED)}")
    kind = hf_model.config.model_type
    config = dataclasses.replace(_our_config(name, hf_model.config), **changes)
    model = Transformer(config)
    theirs = {_full(key, kind, hf_model): value for key, value in hf_model.state_dict().items()}
    _fill(model, kind, theirs, fresh=("pooler.", "classifier.", "lm_head.", "transform."))
    return model.eval()


def _fill(
    model: Transformer, kind: str, theirs: dict[str, Tensor], fresh: tuple[str, ...] = ()
) -> None:
    ours = {}
    for name, parts in _names(model.config, kind).items():
        if all(part in theirs for part in parts):
            values = [theirs[part].float() for part in parts]
            value = torch.cat([v.T if _transposed(kind, name) else v for v in values])
            ours[name] = value
    expected = model.state_dict()
    ours = {name: value for name, value in ours.items() if name in expected}
    missing = [name for name in expected if name not in ours and not name.startswith(fresh)]
    if missing:
        raise LabError(f"the weights lack {', '.join(missing[:3])}; the file is not complete")
    for name, value in ours.items():
        if value.shape != expected[name].shape:
            raise LabError(
                f"{name} has shape {tuple(value.shape)} in the weights and"
                f" {tuple(expected[name].shape)} by the config; they belong to different models"
            )
    model.load_state_dict(ours, strict=False)


def _our_config(name: str, hf: Any) -> TransformerConfig:
    heads = {
        "num_labels": hf.num_labels if name == "BertForSequenceClassification" else 0,
        "vocabulary_head": name in ("GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM"),
    }
    if hf.model_type == "llama":
        rope = hf.rope_parameters
        _supported(hf, hidden_act="silu", head_dim=hf.hidden_size // hf.num_attention_heads)
        _supported(hf, mlp_bias=hf.attention_bias)
        if rope["rope_type"] != "default":
            raise LabError(f"rope_type {rope['rope_type']!r} is not supported; only 'default' is")
        return TransformerConfig.llama(
            **heads,
            vocab_size=hf.vocab_size,
            context_length=hf.max_position_embeddings,
            d_model=hf.hidden_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=hf.num_key_value_heads,
            d_ff=hf.intermediate_size,
            bias=hf.attention_bias,
            tied_embeddings=hf.tie_word_embeddings,
            dropout=hf.attention_dropout,
            rope_theta=rope["rope_theta"],
            norm_eps=hf.rms_norm_eps,
        )
    activation = hf.activation_function if hf.model_type == "gpt2" else hf.hidden_act
    if activation not in OUR_ACTIVATIONS:
        raise LabError(
            f"activation {activation!r} is not supported; labkit has {', '.join(OUR_ACTIVATIONS)}"
        )
    shape = {"activation": OUR_ACTIVATIONS[activation], "tied_embeddings": hf.tie_word_embeddings}
    if hf.model_type == "gpt2":
        _supported(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
        return TransformerConfig.gpt2(
            **heads | shape,
            vocab_size=hf.vocab_size,
            context_length=hf.n_positions,
            d_model=hf.n_embd,
            num_layers=hf.n_layer,
            num_heads=hf.n_head,
            d_ff=hf.n_inner,
            dropout=hf.resid_pdrop,
            norm_eps=hf.layer_norm_epsilon,
        )
    _supported(hf, is_decoder=False)
    return TransformerConfig.bert(
        **heads | shape,
        vocab_size=hf.vocab_size,
        context_length=hf.max_position_embeddings,
        d_model=hf.hidden_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        d_ff=hf.intermediate_size,
        dropout=hf.hidden_dropout_prob,
        norm_eps=hf.layer_norm_eps,
        token_types=hf.type_vocab_size,
    )


def _supported(hf: Any, **needed: Any) -> None:
    for name, wanted in needed.items():
        if getattr(hf, name, wanted) != wanted:
            raise LabError(f"{name}={getattr(hf, name)!r} is not supported; labkit has {wanted!r}")


def _open(folder: Path) -> Any:
    import transformers

    details = _read_config(folder)
    name = (details.get("architectures") or ["a model without 'architectures'"])[0]
    if name not in SUPPORTED:
        raise LabError(f"{folder} holds {name}; labkit reads {', '.join(SUPPORTED)}")
    return getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise LabError(f"{folder} has no config.json; give a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no safetensors weights; other formats are not read")
    return json.loads(path.read_text())


# Folders


def save_pretrained(model: nn.Module, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write a folder that transformers' Auto classes open with the same outputs.

    config.json also carries the labkit config under "labkit", so that `load_pretrained` gives back
    the exact model. A classifier on mean pooling, which no transformers class has, is written as
    its bare BERT (AutoModel opens it) with the classifier's tensors beside it.

    Args:
        model: A labkit or a transformers model.
        folder: Where to; made if needed.
        tokenizer: A labkit or a transformers tokenizer to put beside it.

    Returns:
        The folder.

    Raises:
        LabError: No transformers class can express the shape.
    """
    folder = Path(folder)
    if not isinstance(model, Transformer):
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        hf_model = _to_huggingface(model)
        hf_model.config.labkit = dataclasses.asdict(model.config)
        if tokenizer is not None:
            hf_model.config.eos_token_id = getattr(tokenizer, "end_of_text_id", None)
            hf_model.config.pad_token_id = getattr(tokenizer, "pad_id", None)
        hf_model.save_pretrained(folder)
        if model.classifier is not None and model.pooler is None:
            path = folder / "model.safetensors"
            extra = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
            save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    if tokenizer is not None:
        save = getattr(tokenizer, "save_pretrained", None) or tokenizer.save
        save(folder)
    return folder


def load_pretrained(folder: str | Path) -> Transformer:
    """Read back what `save_pretrained` wrote, or any folder that `from_huggingface` reads.

    Args:
        folder: With config.json and safetensors.

    Returns:
        The model, in evaluation mode.

    Raises:
        LabError: Not such a folder, or an unknown architecture.
    """
    folder = Path(folder)
    details = _read_config(folder).get("labkit")
    if details is None:
        return from_huggingface(folder)
    model = Transformer(TransformerConfig(**details))
    kind = _read_config(folder)["model_type"]
    theirs = load_file(folder / "model.safetensors")
    bare = not any(name.startswith(FAMILIES[kind].prefix) for name in theirs)
    outside = ("lm_head.", "cls.", "classifier.")
    prefix = FAMILIES[kind].prefix if bare else ""
    theirs = {k if k.startswith(outside) else prefix + k: v for k, v in theirs.items()}
    tied = ("lm_head.weight",) if model.config.tied_embeddings else ()
    _fill(model, kind, theirs, fresh=tied)
    return model.eval()


# Names


def _names(config: TransformerConfig, kind: str) -> dict[str, tuple[str, ...]]:
    """labkit's parameter names and, for each, the transformers parameters stacked in it."""
    family = FAMILIES[kind]
    modules: dict[str, tuple[str, ...]] = {k: (v,) for k, v in family.outside.items()}
    for i in range(config.num_layers):
        for ours, theirs in family.inside.items():
            modules[f"blocks.{i}.{ours}"] = tuple(name.format(i=i) for name in theirs)
    names = {
        f"{ours}.{end}": tuple(f"{name}.{end}" for name in theirs)
        for ours, theirs in modules.items()
        for end in ("weight", "bias")
    }
    if kind == "bert":  # the one under both names in memory that files keep
        names["lm_head.bias"] = ("cls.predictions.bias",)
    return names


def _transposed(kind: str, name: str) -> bool:
    linear = any(part in name for part in (".qkv.", ".out.", ".up.", ".down."))
    return FAMILIES[kind].transposed and linear and name.endswith(".weight")


def _bare(name: str, kind: str, hf_model: Any) -> str:
    """The name as this class has it: a bare model leaves out the family's prefix."""
    with_head = type(hf_model).__name__ not in ("GPT2Model", "LlamaModel", "BertModel")
    return name if with_head else name.removeprefix(FAMILIES[kind].prefix)


def _full(name: str, kind: str, hf_model: Any) -> str:
    with_head = type(hf_model).__name__ not in ("GPT2Model", "LlamaModel", "BertModel")
    return name if with_head else FAMILIES[kind].prefix + name

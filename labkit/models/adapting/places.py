"""Where things are in a model: its head, its blocks, and in each block the linear layers by role.

    labkit      attention.qkv: q | k | v    attention.out   ffn.up: gate | up     ffn.down
    Llama       q_proj, k_proj, v_proj      o_proj          gate_proj, up_proj    down_proj
    BERT        query, key, value           output.dense    intermediate.dense    output.dense
    GPT-2       c_attn: q | k | v           c_proj          c_fc                  c_proj

A role is a range of outputs of a layer, because some models compute several projections at once.

Sources: the transformers modules `llama`, `bert`, `gpt2` and `bart`.
"""

from typing import Any, NamedTuple

from torch import nn

from labkit.errors import LabError
from labkit.models.attention import StackedLinear
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.transformer import Transformer, blocks

#: Ends of the names of transformers' layers, those that contain others first.
ROLES = {
    "attention.output.dense": ("out",), "intermediate.dense": ("up",), "output.dense": ("down",),
    "query": ("q",), "key": ("k",), "value": ("v",),
    "q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",), "o_proj": ("out",), "out_proj": ("out",),
    "gate_proj": ("gate",), "up_proj": ("up",), "down_proj": ("down",),
    "fc1": ("up",), "fc2": ("down",),
    "attn.c_attn": ("q", "k", "v"), "attn.c_proj": ("out",), "mlp.c_fc": ("up",),
    "mlp.c_proj": ("down",),
}  # fmt: skip


class Place(NamedTuple):
    """One role in one block."""

    role: str
    """One of `settings.TARGETS`."""
    layer: nn.Module
    """The linear layer that computes it (transformers' Conv1D is one, its matrix transposed)."""
    outputs: tuple[int, int]
    """From which of the layer's outputs to which."""


def is_ours(model: nn.Module) -> bool:
    """Whether it is a model of labkit."""
    return isinstance(model, Transformer | EncoderDecoder)


def body(model: nn.Module) -> nn.Module:
    """What reads the text: of a transformers model its base model, of labkit's the model."""
    prefix = "" if is_ours(model) else getattr(model, "base_model_prefix", "")
    return getattr(model, prefix, model) if prefix else model


def is_classifier(model: nn.Module) -> bool:
    """Whether the model gives scores of classes."""
    if is_ours(model):
        return getattr(model, "classifier", None) is not None
    return "SequenceClassification" in type(model).__name__


#: Parts of the names of classes whose last layer is the task's own: it begins anew.
HEADED = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "Tagger", "Reader")


def has_own_head(model: nn.Module) -> bool:
    """Whether the last layer is the task's own, of classes, tags or spans: it always trains."""
    return is_classifier(model) or any(part in type(model).__name__ for part in HEADED)


def head(model: nn.Module) -> list[nn.Module]:
    """The modules of the task's own layer, a classifier or the vocabulary projection; or []."""
    children = dict(model.named_children())
    if not is_ours(model) and hasattr(model, "base_model_prefix"):
        inside: Any = model.base_model_prefix
        return [m for n, m in children.items() if n != inside] if inside in children else []
    name = "classifier" if children.get("classifier") is not None else "lm_head"
    return [children[name]] if children.get(name) is not None else []


def width(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    weight: Any = layer.weight
    rows, columns = weight.shape
    return (rows, columns) if transposed(layer) else (columns, rows)


def transposed(layer: nn.Module) -> bool:
    """Whether the matrix of a layer is stored (in, out), as GPT-2's of transformers are."""
    return type(layer).__name__ == "Conv1D"


def places(model: nn.Module) -> list[list[Place]]:
    """The linear layers of each block, by role.

    Raises:
        LabError: the blocks hold no layers with names that are known.
    """
    found = [_of_block(block) for block in blocks(model)]
    if not found or not all(found):
        raise LabError(
            f"the blocks of {type(model).__name__} are of no family that strategies know: take a "
            "labkit model, a Llama, a BERT, a GPT-2 or a BART, or the strategy 'full'"
        )
    return found


def _of_block(block: nn.Module) -> list[Place]:
    found: list[Place] = []
    for name, layer in block.named_modules():
        if not isinstance(layer, nn.Linear) and not transposed(layer):
            continue
        roles = _roles(name, layer)
        size = width(layer)[1] if roles else 0
        rows = getattr(layer, "rows", (size // max(1, len(roles)),) * len(roles))
        start = 0
        for role, count in zip(roles, rows, strict=True):
            found.append(Place(role, layer, (start, start + count)))
            start += count
        if roles == ("q", "k", "v"):
            found.append(Place("qkv", layer, (0, size)))
    return found


def _roles(name: str, layer: nn.Module) -> tuple[str, ...]:
    end = name.split(".")[-1]
    if isinstance(layer, StackedLinear):
        stacked = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "up": ("gate", "up")}[end]
        return stacked[-len(layer.rows) :]
    ours = {"attention.out": "out", "cross_attention.out": "out", "cross_attention.q": "q",
            "ffn.down": "down"}  # fmt: skip
    if name in ours:
        return (ours[name],)
    return next((roles for known, roles in ROLES.items() if f".{name}".endswith(f".{known}")), ())


def norms(model: nn.Module) -> list[nn.Module]:
    """Every layer that normalises, by the names that torch and transformers give them."""
    return [m for m in model.modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]

"""LoRA, prompt and prefix in the files of the package `peft`, and back.

    layer.lora.pairs.q.A  <──>  base_model.model.<transformers' name of that layer>.lora_A.weight
    prompt, prefix        <──>  prompt_embeddings            (a prefix's net is gone: its table)
    the classifier        <──>  base_model.model.classifier.weight

`peft` opens the folder on the transformers model that corresponds; a labkit model takes the names
from the table of its family. Where transformers computes in one layer what labkit has several pairs
on (q and v of a GPT-2), they become one pair of their ranks' sum, which adds the same.

Source: the package `peft`, its files adapter_config.json and adapter_model.safetensors.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.adapting import lora, prompts, strategies
from labkit.models.adapting.places import is_classifier, is_ours, places, transposed, width
from labkit.models.adapting.settings import Strategy
from labkit.models.huggingface.configs import hf_config
from labkit.models.huggingface.families import parameter_names

BODY = "base_model.model."
KINDS = {"LORA": "lora", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
#: Variants that change what is computed; each must be absent, or as here.
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "lora_bias": False,
         "layer_replication": None, "trainable_token_indices": None,
         "alora_invocation_tokens": None, "num_transformer_submodules": 1}  # fmt: skip


class Part(NamedTuple):
    """A layer of the transformers model, as a range of a layer here."""

    name: str
    layer: Any
    outputs: tuple[int, int]


def fits(model: nn.Module) -> bool:
    """Whether there is a transformers model that corresponds, for `peft` to open the folder on."""
    if not is_ours(model):
        return True
    config: Any = model.config
    if config.num_labels and config.pooling != "first":
        return False
    try:
        hf_config(config)
    except LabError:
        return False
    return True


def task_type(model: nn.Module) -> str | None:
    """The name that `peft` has for what a model does."""
    if is_classifier(model):
        return "SEQ_CLS"
    if is_ours(model):
        config: Any = model.config
        return "CAUSAL_LM" if config.kind == "decoder" and config.has_lm_head else None
    return "CAUSAL_LM" if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) else None


def written(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What adapter_config.json and adapter_model.safetensors hold.

    Args:
        model: with the strategy lora, prompt or prefix, and `fits`.
    """
    settings = strategies.of(model)
    assert settings is not None
    kind = task_type(model)
    config: dict[str, Any] = {"task_type": kind, "inference_mode": True, "revision": None}
    learned = prompts.before(model)
    if learned is None:
        more, tensors = _pairs(model, settings)
        config |= {"modules_to_save": ["classifier", "score"] if kind == "SEQ_CLS" else None}
    else:
        more, tensors = _positions(model, learned)
    prefix = BODY if learned is None else BODY.removesuffix("model.")
    for name, p in model.named_parameters():
        own = ".lora." not in name and ".before." not in f".{name}"
        if p.requires_grad and own:
            tensors[prefix + _theirs(model, name)] = p.detach()
    return config | more, {name: t.detach().contiguous().cpu() for name, t in tensors.items()}


def read(model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """Put what `peft` saved into a model, in place.

    Returns:
        The names of the trained parameters, as `strategies.apply` gives them.

    Raises:
        LabError: a method or variant that labkit does not have, or tensors that do not fit.
    """
    name: Any = KINDS.get(config.get("peft_type", ""))
    if name is None:
        raise LabError(f"peft_type is {config.get('peft_type')!r}: labkit reads {', '.join(KINDS)}")
    for key, value in PLAIN.items():
        if config.get(key, value) not in (value, None):
            raise LabError(f"{key} is {config[key]!r}: labkit reads adapters where it is {value!r}")
    rest = dict(tensors)
    if name == "lora":
        trained = _put_pairs(model, config, rest)
    else:
        trained = _put_positions(model, name, config, rest)
    parameters = dict(model.named_parameters())
    for own in [n for n in trained if ".lora." not in n and ".before." not in f".{n}"]:
        keys = [b + _theirs(model, own) for b in (BODY, BODY.removesuffix("model."))]
        found = next((rest.pop(key) for key in keys if key in rest), None)
        if found is None:
            raise LabError(f"the adapter lacks {own}: save it again, with the model's head")
        _copy(parameters[own], found, own)
    if rest:
        raise LabError(
            f"the adapter holds {min(rest)}, for which {type(model).__name__} has no place: give "
            "the base model that it was trained on"
        )
    return trained


def _copy(target: Tensor, value: Tensor, name: str) -> None:
    if target.shape != value.shape:
        raise LabError(
            f"{name} has shape {tuple(value.shape)} in the adapter and {tuple(target.shape)} in "
            "the model: give the base model that it was trained on"
        )
    with torch.no_grad():
        target.copy_(value)


# LoRA


def _parts(model: nn.Module) -> list[Part]:
    """Every layer that may have LoRA, cut as transformers cuts it."""
    names = {module: name for name, module in model.named_modules()}
    layers = {place.layer: None for block in places(model) for place in block}
    ours = _table(model) if is_ours(model) else {}
    parts = []
    for layer in layers:
        theirs = ours.get(f"{names[layer]}.weight", (f"{names[layer]}.weight",))
        rows = getattr(layer, "rows", ()) if len(theirs) > 1 else (width(layer)[1],)
        start = 0
        for name, count in zip(theirs, rows, strict=True):
            parts.append(Part(name.removesuffix(".weight"), layer, (start, start + count)))
            start += count
    return parts


def _pairs(model: nn.Module, settings: Strategy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    ranks, tensors = {}, {}
    for part in _parts(model):
        found: Any = getattr(part.layer, "lora", None)
        if found is None:
            continue
        As, Bs = [], []
        for role, (start, stop) in found.ranges.items():
            low, high = max(start, part.outputs[0]), min(stop, part.outputs[1])
            if low < high:
                pair = found.pairs[role]
                B = pair.B.new_zeros(part.outputs[1] - part.outputs[0], pair.B.shape[1])
                B[low - part.outputs[0] : high - part.outputs[0]] = pair.B[
                    low - start : high - start
                ]
                As.append(pair.A)
                Bs.append(B)
        if As:
            tensors[f"{BODY}{part.name}.lora_A.weight"] = torch.cat(As)
            tensors[f"{BODY}{part.name}.lora_B.weight"] = torch.cat(Bs, dim=1)
            ranks[part.name] = sum(len(A) for A in As)
    rank = min(ranks.values())
    others = {name: number for name, number in ranks.items() if number != rank}
    scale = next(iter(lora.layers(model)[0].lora.pairs.values())).scale
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {name: scale * number for name, number in others.items()},
        "target_modules": _short(list(ranks), _all_names(model)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _stored_transposed(model),
    }
    return config, tensors


def _all_names(model: nn.Module) -> set[str]:
    """The names of all layers of the transformers model."""
    if not is_ours(model):
        return {name for name, _ in model.named_modules() if ".lora" not in name}
    return {name.rpartition(".")[0] for names in _table(model).values() for name in names}


def _short(chosen: list[str], every: set[str]) -> list[str]:
    """The last words of the layers' names, where they say as much as the whole names."""
    ends = {name.split(".")[-1] for name in chosen}
    meant = {name for name in every if name.split(".")[-1] in ends}
    return sorted(ends) if meant == set(chosen) else chosen


def _stored_transposed(model: nn.Module) -> bool:
    if is_ours(model):
        return hf_config(model.config)[0] == "gpt2"  # type: ignore[arg-type]
    return any(transposed(place.layer) for block in places(model) for place in block)


def _put_pairs(model: nn.Module, config: dict[str, Any], rest: dict[str, Tensor]) -> list[str]:
    """LoRA as the tensors have it; what is read is taken out of `rest`."""
    wanted = {
        part: [rest.pop(f"{BODY}{part.name}.lora_{x}.weight") for x in "AB"]
        for part in _parts(model)
        if all(f"{BODY}{part.name}.lora_{x}.weight" in rest for x in "AB")
    }
    roles = {}
    for place in (place for block in places(model) for place in block):
        roles.setdefault((place.layer, place.outputs), place.role)
    if not wanted:
        raise LabError(
            f"no tensor of the adapter is for a layer of {type(model).__name__}: give the base "
            "model that it was trained on"
        )
    targets = tuple(dict.fromkeys(roles[part.layer, part.outputs] for part in wanted))
    alpha = float(config["lora_alpha"])
    trained = strategies.apply(
        model, Strategy("lora", rank=int(config["r"]), alpha=alpha, targets=targets)
    )
    for part, (A, B) in wanted.items():
        pair = part.layer.lora.pairs[roles[part.layer, part.outputs]]
        if A.shape[1] != pair.A.shape[1] or B.shape[0] != pair.B.shape[0]:
            _copy(pair.A, A, part.name)
        pair.scale = _pattern(config, "alpha_pattern", part.name, alpha) / len(A)
        pair.A, pair.B = (nn.Parameter(x.to(pair.A), requires_grad=True) for x in (A, B))
    for layer in lora.layers(model):  # a target may be in some blocks only
        for role, outputs in list(layer.lora.ranges.items()):
            if not any(p.layer is layer and p.outputs == outputs for p in wanted):
                raise LabError(
                    f"the adapter has {role} in some blocks and not in others: labkit's LoRA is in "
                    "every block"
                )
    return trained


def _pattern(config: dict[str, Any], key: str, name: str, default: float) -> float:
    for end, value in (config.get(key) or {}).items():
        if name == end or name.endswith(f".{end}"):
            return float(value)
    return default


# prompt, prefix


def _positions(
    model: nn.Module, learned: prompts.Prompt | prompts.Prefix
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    common = {"num_virtual_tokens": learned.length, "num_transformer_submodules": 1}
    if isinstance(learned, prompts.Prompt):
        tensors: dict[str, Tensor] = {"prompt_embeddings": learned.vectors}
        kind = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        return {**common, **kind, "token_dim": learned.vectors.shape[1]}, tensors
    layers, heads, size = learned.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "prefix_projection": False,
    }
    return {**common, **config}, {"prompt_embeddings": learned.table()}


def _put_positions(
    model: nn.Module, name: Any, config: dict[str, Any], rest: dict[str, Tensor]
) -> list[str]:
    table = rest.pop("prompt_embeddings", None)
    if table is None:
        raise LabError("the adapter lacks prompt_embeddings: save it again")
    trained = strategies.apply(model, Strategy(name, length=len(table)))
    learned: Any = prompts.before(model)
    _copy(learned.vectors, table, "prompt_embeddings")
    return trained


# names


def _theirs(model: nn.Module, name: str) -> str:
    """The transformers name of a parameter that both have whole."""
    if not is_ours(model):
        return name
    (found,) = _table(model)[name]
    return found


def _table(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """A labkit model's parameters, and those of transformers that are stacked in them."""
    config: Any = model.config
    return parameter_names(config, hf_config(config)[0])

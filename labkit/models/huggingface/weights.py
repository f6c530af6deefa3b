"""The same weights in labkit and in Hugging Face transformers, both ways.

    labkit model ── to_huggingface ──> GPT2 / Llama / Bert / Bart model
    labkit model <── from_huggingface ── the same, or a folder that holds one

One table per family (`families`) says which parameter is which, `configs` translates the configs;
both are read forwards and backwards here.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.configs import hf_config, must, our_config
from labkit.models.huggingface.families import FAMILIES, SUPPORTED, parameter_names
from labkit.models.huggingface.reading import architecture, auto_config, read_tensors
from labkit.models.transformer import Transformer

Model = Transformer | EncoderDecoder

# labkit -> transformers


def to_huggingface(model: Model) -> Any:
    """The transformers model that computes the same logits, in evaluation mode.

    A model without biases becomes a GPT-2, BERT or BART whose biases are 0; sinusoidal positions
    become a learned table that holds them. Dropout is copied where the class has it (Llama: on
    attention only).

    Args:
        model: Any labkit model whose shape a GPT-2, Llama, BERT or BART class can express.

    Returns:
        GPT2LMHeadModel, LlamaForCausalLM, BertForMaskedLM, BertForSequenceClassification,
        BartForConditionalGeneration, or the bare GPT2Model, LlamaModel, BertModel, BartModel for a
        config without a head.

    Raises:
        LabError: No class can express the shape; the message names the config value that is the
            reason.
    """
    if model.config.num_labels:
        must(model.config, pooling="first", kind="encoder", why="a transformers classifier")
    return transformers_model(model)


def transformers_model(model: Model) -> Any:
    """`to_huggingface`; of a classifier on mean pooling, its bare encoder."""
    family, config = hf_config(model.config)
    hf_model = _build(family, config, model)
    theirs = hf_model.state_dict()
    filled = {name: torch.zeros_like(value) for name, value in theirs.items()}
    ours = with_position_tables(model)
    for name, parts in parameter_names(model.config, family).items():
        keys = [_bare(part, family, hf_model) for part in parts]
        if name not in ours or not all(key in theirs for key in keys):
            continue  # the classifier on mean pooling, which save_pretrained keeps beside the model
        value = ours[name].detach()
        if name.endswith("positions.weight"):
            value = F.pad(value, (0, 0, FAMILIES[family].unused_positions, 0))
        value = value.T if _transposed(family, name) else value
        axis = 1 if _transposed(family, name) else 0
        sizes = [theirs[key].shape[axis] for key in keys]
        filled |= dict(zip(keys, value.split(sizes, dim=axis), strict=True))
    if "cls.predictions.bias" in filled:
        filled["cls.predictions.decoder.bias"] = filled["cls.predictions.bias"]
    if family == "bart":
        shared = _bare("model.shared.weight", family, hf_model)
        filled[shared] = ours["encoder.embedding.weight"].detach()
    hf_model.load_state_dict(filled)
    return hf_model.to(dtype=ours[_embedding(model)].dtype).eval()


def _embedding(model: Model) -> str:
    return "encoder.embedding.weight" if isinstance(model, EncoderDecoder) else "embedding.weight"


def with_position_tables(model: Model) -> dict[str, Tensor]:
    """The state of the model, sinusoidal tables under the name of learned ones."""
    tables = {
        name.replace("sines", "positions.weight"): value
        for name, value in model.named_buffers()
        if name.endswith("sines")
    }
    return dict(model.state_dict()) | tables


def _build(family: str, config: Any, model: Model) -> Any:
    import transformers

    table = FAMILIES[family]
    if model.lm_head is not None:
        return getattr(transformers, table.heads[0])(config)
    if getattr(model, "pooler", None) is not None:
        return transformers.BertForSequenceClassification(config)
    bare = {"add_pooling_layer": False} if family == "bert" else {}
    return getattr(transformers, table.bare)(config, **bare)


# transformers -> labkit


def from_huggingface(source: Any, **changes: Any) -> Any:
    """The labkit model with the same weights and, where it has a head, the same logits.

    Args:
        source: A transformers model of a `SUPPORTED` architecture, or a folder that holds one
            (config.json and safetensors).
        changes: Config fields to change on the way, such as `num_labels=5, pooling="mean"` for a
            new classification head; parts that the source does not have start from random weights.

    Returns:
        The `Transformer` or `EncoderDecoder`, in evaluation mode, fp32.

    Raises:
        LabError: Unknown architecture, a variant that labkit does not have, or no safetensors.
    """
    if isinstance(source, str | Path):
        return _from_folder(Path(source), changes)
    name = type(source).__name__
    if name not in SUPPORTED:
        raise LabError(f"{name} is not supported; labkit reads {', '.join(SUPPORTED)}")
    family = source.config.model_type
    config = dataclasses.replace(our_config(name, source.config), **changes)
    theirs = {_full(key, family, source): value for key, value in source.state_dict().items()}
    return filled(config, family, theirs, FRESH)


def _from_folder(folder: Path, changes: dict[str, Any]) -> Model:
    name = architecture(folder)
    if name not in SUPPORTED:
        raise LabError(
            f"{folder} holds {name or 'a model without a name'}; labkit reads "
            f"{', '.join(SUPPORTED)}"
        )
    hf = auto_config(folder)
    config = dataclasses.replace(our_config(name, hf), **changes)
    fresh = (TIED if config.tied_embeddings else ()) + (FRESH if changes else ())
    return filled(config, hf.model_type, with_prefix(read_tensors(folder), hf.model_type), fresh)


#: Parts that a model for a new task begins with random weights.
FRESH = ("pooler.", "classifier.", "lm_head.", "transform.", "decoder.lm_head.")
#: What files leave out where it is the embedding table.
TIED = ("lm_head.weight", "decoder.lm_head.weight")


def with_prefix(theirs: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Tensors of a file under the names of a class with a head, whichever class wrote them."""
    prefix = FAMILIES[family].prefix
    if any(name.startswith(prefix) for name in theirs):
        return theirs
    outside = ("lm_head.", "cls.", "classifier.", "final_logits_bias")
    return {k if k.startswith(outside) else prefix + k: v for k, v in theirs.items()}


def filled(
    config: TransformerConfig, family: str, theirs: dict[str, Tensor], fresh: tuple[str, ...] = ()
) -> Model:
    """A labkit model with the weights of a transformers model.

    Args:
        config: its shape.
        family: one of `FAMILIES`.
        theirs: tensors under the names of the family's class with a head.
        fresh: beginnings of the names that may be missing; they alone start from random weights.

    Returns:
        The model, in evaluation mode, fp32.

    Raises:
        LabError: a tensor is missing or has another shape.
    """
    if config.num_layers > len(theirs):
        raise LabError(
            f"the config has {config.num_layers} layers and the weights {len(theirs)} tensors; they"
            " belong to different models"
        )
    try:
        with torch.device("meta"):  # shapes only: nothing is drawn, or allocated for an odd config
            model = _new(config)
    except RuntimeError as error:
        raise LabError(f"the config describes an impossible model ({error})") from error
    expected = model.state_dict()
    if family == "bart":
        _read_bart(theirs)
    ours = {}
    for name, parts in used_names(config, family, theirs).items():
        if name in expected and all(part in theirs for part in parts):
            values = [theirs[part] for part in parts]
            if _transposed(family, name):
                values = [value.T for value in values]
            value = torch.cat(values, out=torch.empty(0))  # fp32, in memory of its own: one copy
            if name.endswith("positions.weight"):
                value = value[FAMILIES[family].unused_positions :]
            ours[name] = value
    missing = [name for name in expected if name not in ours]
    if lacking := [name for name in missing if not name.startswith(fresh)]:
        raise LabError(f"the weights lack {', '.join(lacking[:3])}; the file is not complete")
    for name, value in ours.items():
        if value.shape != expected[name].shape:
            raise LabError(
                f"{name} has shape {tuple(value.shape)} in the weights and"
                f" {tuple(expected[name].shape)} by the config; they belong to different models"
            )
    model.load_state_dict(ours, strict=False, assign=True)
    model.rebuild()
    _begin_new_parts(model)
    return model.eval()


def _begin_new_parts(model: Model) -> None:
    """Give what came from no file its first weights, as `Transformer` begins them, in place."""
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if empty.is_meta:
                new = torch.zeros(empty.shape)
                if empty.dim() > 1:
                    nn.init.normal_(new, std=model.config.initializer_range)
                elif name == "weight":  # of a norm
                    nn.init.ones_(new)
                module.register_parameter(name, nn.Parameter(new))


def used_names(
    config: TransformerConfig, family: str, theirs: dict[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """`parameter_names`, as these tensors have them.

    In memory a BERT's output bias goes by two names. They are one where embeddings are tied; else
    the one beside the matrix is added.
    """
    names = parameter_names(config, family)
    beside = "cls.predictions.decoder.bias"
    if family == "bert" and beside in theirs:
        names["lm_head.bias"] = (beside,)
    return names


def _new(config: TransformerConfig) -> Model:
    return (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)


def _read_bart(theirs: dict[str, Tensor]) -> None:
    """Files keep the shared table once; in memory both sides have it."""
    for side in ("encoder", "decoder"):
        theirs.setdefault(f"model.{side}.embed_tokens.weight", theirs["model.shared.weight"])
    bias = theirs.get("final_logits_bias")
    if bias is not None and bool(bias.any()):
        raise LabError("final_logits_bias is not 0; labkit's output projection has no bias")


# Names


def _transposed(family: str, name: str) -> bool:
    linear = any(part in name for part in (".qkv.", ".out.", ".up.", ".down."))
    return FAMILIES[family].transposed and linear and name.endswith(".weight")


def _bare(name: str, family: str, hf_model: Any) -> str:
    """The name as this class has it: a bare model leaves out the family's prefix."""
    table = FAMILIES[family]
    return name.removeprefix(table.prefix) if type(hf_model).__name__ == table.bare else name


def _full(name: str, family: str, hf_model: Any) -> str:
    table = FAMILIES[family]
    return table.prefix + name if type(hf_model).__name__ == table.bare else name

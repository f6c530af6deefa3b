"""The same weights in labkit and in Hugging Face transformers, both ways.

    labkit model ── to_huggingface ──> GPT2 / Llama / Bert / Bart model ── save ──> folder
    labkit model <── from_huggingface ── GPT2 / Llama / Bert / Bart model <── open ── folder

One table per family (`families`) says which parameter is which, `shapes` translates the configs;
both are read forwards and backwards here. Files are safetensors, never pickle.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.configs import hf_config, must, our_config
from labkit.models.huggingface.families import FAMILIES, SUPPORTED, parameter_names
from labkit.models.transformer import Transformer

Model = Transformer | EncoderDecoder

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt")

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
    return _to_huggingface(model)


def _to_huggingface(model: Model) -> Any:
    family, config = hf_config(model.config)
    hf_model = _build(family, config, model)
    theirs = hf_model.state_dict()
    filled = {name: torch.zeros_like(value) for name, value in theirs.items()}
    ours = _with_position_tables(model)
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


def _with_position_tables(model: Model) -> dict[str, Tensor]:
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
    hf_model = _open(Path(source)) if isinstance(source, str | Path) else source
    name = type(hf_model).__name__
    if name not in SUPPORTED:
        raise LabError(f"{name} is not supported; labkit reads {', '.join(SUPPORTED)}")
    family = hf_model.config.model_type
    model = _new(dataclasses.replace(our_config(name, hf_model.config), **changes))
    theirs = {_full(key, family, hf_model): value for key, value in hf_model.state_dict().items()}
    fresh = ("pooler.", "classifier.", "lm_head.", "transform.", "decoder.lm_head.")
    _fill(model, family, theirs, fresh)
    return model.eval()


def _new(config: TransformerConfig) -> Model:
    return (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)


def _fill(
    model: Model, family: str, theirs: dict[str, Tensor], fresh: tuple[str, ...] = ()
) -> None:
    if family == "bart":
        _read_bart(theirs)
    ours = {}
    for name, parts in parameter_names(model.config, family).items():
        if all(part in theirs for part in parts):
            values = [theirs[part].float() for part in parts]
            value = torch.cat([v.T if _transposed(family, name) else v for v in values])
            if name.endswith("positions.weight"):
                value = value[FAMILIES[family].unused_positions :]
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


def _read_bart(theirs: dict[str, Tensor]) -> None:
    """Files keep the shared table once; in memory both sides have it."""
    for side in ("encoder", "decoder"):
        theirs.setdefault(f"model.{side}.embed_tokens.weight", theirs["model.shared.weight"])
    bias = theirs.get("final_logits_bias")
    if bias is not None and bool(bias.any()):
        raise LabError("final_logits_bias is not 0; labkit's output projection has no bias")


def _open(folder: Path) -> Any:
    import transformers

    details = _read_config(folder)
    name = (details.get("architectures") or ["a model without 'architectures'"])[0]
    if name not in SUPPORTED:
        raise LabError(f"{folder} holds {name}; labkit reads {', '.join(SUPPORTED)}")
    return open_complete(getattr(transformers, name), folder)


def open_complete(
    opener: Any, folder: Path, fresh: Callable[[str], bool] | None = None, **options: Any
) -> Any:
    """A transformers model all of whose weights come from the folder: none random in silence.

    Args:
        opener: a class with `from_pretrained`.
        folder: config.json and safetensors; nothing is fetched, no code of the folder runs.
        fresh: which parameters may be missing, because a new task begins with random ones.
        options: for `from_pretrained`.

    Raises:
        LabError: no safetensors, a tensor that is missing or has another shape.
    """
    if not any(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no safetensors weights; other formats are not read")
    model, found = opener.from_pretrained(
        str(folder),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    lacking = sorted(n for n in found["missing_keys"] if fresh is None or not fresh(n))
    if lacking:
        raise LabError(
            f"the weights in {folder} lack {', '.join(lacking[:3])}; the file is not complete: "
            "save the model again"
        )
    return model


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise LabError(f"{folder} has no config.json; give a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no safetensors weights; other formats are not read")
    return json.loads(path.read_text())


# Folders


def knows(folder: Path) -> bool:
    """Whether labkit has the shape of the model in a folder, so that `load_pretrained` is for it.

    Whether the weights are complete is another question: `load_pretrained` answers it.
    """
    import transformers

    details = _read_config(folder)
    name = (details.get("architectures") or [""])[0]
    if "labkit" in details:
        return True
    if name not in SUPPORTED:
        return False
    try:
        our_config(name, transformers.AutoConfig.from_pretrained(str(folder)))
    except LabError:
        return False
    return True


def expressible(model: nn.Module) -> bool:
    """Whether `save_pretrained` can write a model: a transformers class computes the same."""
    if not isinstance(model, Transformer | EncoderDecoder):
        return hasattr(model, "save_pretrained")
    try:
        hf_config(model.config)
    except LabError:
        return False
    return True


def save_pretrained(model: nn.Module, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write a folder that transformers' Auto classes open with the same outputs.

    config.json also carries the labkit config under "labkit", so that `load_pretrained` gives back
    the exact model. A classifier on mean pooling, which no transformers class has, is written as
    its bare BERT (AutoModel opens it) with the classifier's tensors beside it.

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
    if not isinstance(model, Transformer | EncoderDecoder):
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        hf_model = _to_huggingface(model)
        hf_model.config.labkit = dataclasses.asdict(model.config)
        if not isinstance(tokenizer, str | Path | None):
            hf_model.config.eos_token_id = getattr(tokenizer, "end_of_text_id", None)
            hf_model.config.pad_token_id = getattr(tokenizer, "pad_id", None)
        hf_model.save_pretrained(folder)
        if isinstance(model, Transformer) and model.classifier is not None and not model.pooler:
            path = folder / "model.safetensors"
            extra = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
            save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    if isinstance(tokenizer, str | Path):
        for pattern in TOKENIZER_FILES:
            for file in Path(tokenizer).glob(pattern):
                shutil.copy(file, folder / file.name)
    elif tokenizer is not None:
        save = getattr(tokenizer, "save_pretrained", None) or tokenizer.save
        save(folder)
    return folder


def load_pretrained(folder: str | Path) -> Any:
    """Read back what `save_pretrained` wrote, or any folder that `from_huggingface` reads.

    Args:
        folder: With config.json and safetensors.

    Returns:
        The `Transformer` or `EncoderDecoder`, in evaluation mode.

    Raises:
        LabError: Not such a folder, or an unknown architecture.
    """
    folder = Path(folder)
    details = _read_config(folder).get("labkit")
    if details is None:
        return from_huggingface(folder)
    model = _new(TransformerConfig(**details))
    family = _read_config(folder)["model_type"]
    theirs = load_file(folder / "model.safetensors")
    bare = not any(name.startswith(FAMILIES[family].prefix) for name in theirs)
    outside = ("lm_head.", "cls.", "classifier.", "final_logits_bias")
    prefix = FAMILIES[family].prefix if bare else ""
    theirs = {k if k.startswith(outside) else prefix + k: v for k, v in theirs.items()}
    tied = ("lm_head.weight", "decoder.lm_head.weight") if model.config.tied_embeddings else ()
    _fill(model, family, theirs, fresh=tied)
    return model.eval()


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

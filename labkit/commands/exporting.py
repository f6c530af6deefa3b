"""`labkit export`: a model folder as GGUF, ONNX or safetensors, and what that changes.

    model folder ── models.exporting ──> a folder beside `out` ── opened again ──> outputs ─┐
              └──────────────────────────────────────── opened as it is ──> outputs ────────┴─> said
                                         └── complete: it becomes `out` ──

Whoever opens it again is not who wrote it: GGUF is read by `text.gguf`, ONNX by onnxruntime, and
safetensors by transformers. A disk that is full leaves nothing behind.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from labkit.atomic import claim, is_disk_full, write_json
from labkit.commands.options import Export, check
from labkit.commands.shell import note, say
from labkit.errors import LabError
from labkit.evaluation.documents import compared
from labkit.generation.loaded import load
from labkit.models.adapting.saving import is_adapter, read_adapter
from labkit.models.exporting import gguf_file, onnx_graph, weights_copy
from labkit.models.huggingface.configs import our_config
from labkit.models.huggingface.folders import quiet_libraries
from labkit.models.huggingface.reading import architecture, open_complete, read_config
from labkit.models.huggingface.saving import load_pretrained
from labkit.models.huggingface.weights import TIED, filled
from labkit.text import corpora, gguf
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder

#: The types that each format has; the first is the default.
TYPES = {
    "gguf": ("q8_0", "fp32", "fp16", "bf16", "q5_1", "q5_0", "q4_1", "q4_0"),
    "safetensors": ("fp16", "bf16", "fp32"),
    "onnx": ("fp32",),
}
#: On which the outputs are compared: its first `TOKENS` tokens, and half of them, padded.
TEXT = (
    "A quick test before the file leaves this folder: on 14 March 1879 a child was born in Ulm, and"
    " nobody there could know what would become of him. The town lies on the Danube, its church has"
    " the tallest steeple in the world, and its people say that they built it one stone at a time."
)
TOKENS = 64
Read = Callable[[Path, Tensor, Tensor], Tensor]
"""A folder, ids (B, T) and their mask to outputs."""


def export(options: Export) -> dict[str, Any]:
    """Write a model for another program; print what was written and how its outputs differ.

    Returns:
        `bytes` of all files; `largest`, by how much an output differs at most; `outputs`, the size
        of the largest; `same`, how many of the `cases` (`of` says whether these are tokens or
        texts) have the same likeliest output. `bytes` alone where onnxruntime is missing. With
        `data` also `score`: bits per byte of the file, against the model's.

    Raises:
        LabError: `out` is not empty, the format does not fit the model or the type, or the disk is
            full.
    """
    kinds = TYPES[options.format]
    dtype = options.dtype or kinds[0]
    if dtype not in kinds:
        raise LabError(
            f"dtype {dtype} does not fit --format {options.format}: choose {' or '.join(kinds)}"
        )
    if options.data is not None:
        fits = options.format == "gguf"
        check(fits, options, "data", f"none with --format {options.format}: it scores GGUF files")
        texts = list(corpora.load_text(options.data)["text"])
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"out {out} is not empty: choose a new folder, or empty it yourself")
    folder = model_folder(options.model)
    if is_adapter(folder):
        base = read_adapter(folder).get("base_model_name_or_path")
        raise LabError(
            f"{folder} holds an adapter for {base}, and no model of its own: export the model/ of "
            "a run with --strategy lora, into which it was folded"
        )
    quiet_libraries()
    try:
        with claim(out) as being_made:
            said = _write(folder, being_made, options.format, dtype)
            size = sum(file.stat().st_size for file in being_made.iterdir())
            found = _compare(folder, being_made, options.format)
            if options.data is not None:
                found["score"] = score = _score(folder, being_made, texts, str(options.model))
                write_json(being_made / "score.json", score)
    except Exception as error:
        if is_disk_full(error):
            raise LabError(
                f"the disk of {str(out)!r} is full, and nothing was left there: free some space, "
                "or choose an --out on another disk"
            ) from error
        raise
    say(f"{out}: {said}, {size / 1e6:,.1f} MB")
    if "score" in found:
        score, other = found["score"], found["score"]["against"]
        say(
            f"{options.data}: {score['bits_per_byte']:.4f} bits per byte [{score['low']:.4f}, "
            f"{score['high']:.4f}], the model {other['bits_per_byte']:.4f}; lost "
            f"{-other['gain']:+.4f} [{-other['gain_high']:+.4f}, {-other['gain_low']:+.4f}]"
        )
    if "largest" in found:
        say(
            f"opened again: outputs of up to {found['outputs']:.3g} differ by "
            f"{found['largest']:.2g} at most, the likeliest is the same for {found['same']} of "
            f"{found['cases']} {found['of']}"
        )
    return {"bytes": size, **found}


def _write(folder: Path, target: Path, kind: str, dtype: str) -> str:
    """Fill the target; a line on what is in it."""
    if kind == "gguf":
        written = gguf_file.write_gguf(folder, target / "model.gguf", cast(gguf_file.Type, dtype))
        return "model.gguf with " + ", ".join(
            f"{count} matrices in {name}" for name, count in written.items()
        )
    if kind == "onnx":
        weights_copy.copy_beside(folder, target)
        inputs = onnx_graph.write_onnx(folder, target / "model.onnx")
        return f"model.onnx with inputs {', '.join(inputs)}, output logits"
    count = weights_copy.copy_in(folder, target, cast(weights_copy.Type, dtype))
    return f"model.safetensors with {count} tensors in {dtype}"


def _compare(folder: Path, target: Path, kind: str) -> dict[str, Any]:
    """How far the outputs of what was written lie from those of the model, on the same tokens."""
    reads: dict[str, tuple[Read, Read]] = {
        "gguf": (_by_labkit, _by_labkit_from_gguf),
        "onnx": (_by_labkit, _by_onnxruntime),
        "safetensors": (_by_transformers, _by_transformers),
    }
    if kind == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        note("not opened again: for that, pip install onnxruntime")
        return {}
    before, after = reads[kind]
    ids, mask = _tokens(folder)
    ours, theirs = before(folder, ids, mask), after(target, ids, mask)
    each = ours.shape[:2] == mask.shape
    if each:  # an output at each token: those of padding mean nothing
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
    return {
        "largest": float((ours - theirs).abs().max()),
        "outputs": float(ours.abs().max()),
        "same": int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        "cases": len(ours),
        "of": "tokens" if each else "texts",
    }


def _tokens(folder: Path) -> tuple[Tensor, Tensor]:
    """Two texts of the folder's tokenizer, one shorter than the other, and the mask of padding."""
    details = read_config(folder)
    limits = [details.get(name) for name in ("max_position_embeddings", "n_positions")]
    length = max(2, min([TOKENS, *(int(limit) - 4 for limit in limits if limit)]))
    ids = torch.randint(
        int(details["vocab_size"]), (2, length), generator=torch.Generator().manual_seed(0)
    )
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_pretrained(folder)
        read = tokenizer.encode(TEXT)[:length]
        ids = torch.tensor([read, read])
    mask = torch.ones_like(ids)
    mask[1, ids.shape[1] // 2 :] = 0
    return ids, mask


def _by_labkit(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return load_pretrained(folder)(ids, attention_mask=mask).logits.float()


def _score(folder: Path, target: Path, texts: list[str], name: str) -> dict[str, Any]:
    """Bits per byte of the file and of the model on the same documents."""
    opened = load(folder, device="cpu")
    before = opened.score_documents(texts)
    after = dataclasses.replace(opened, model=_from_gguf(target)).score_documents(texts)
    return compared(after, before, name)


def _by_labkit_from_gguf(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return _from_gguf(folder)(ids, attention_mask=mask).logits


def _from_gguf(folder: Path) -> Any:
    from transformers import LlamaConfig

    details, arrays = gguf.read(folder / "model.gguf")
    config = our_config("LlamaForCausalLM", LlamaConfig(**gguf.llama_config(details, arrays)))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return filled(config, "llama", tensors, TIED if config.tied_embeddings else ()).eval()


def _by_transformers(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    """Of the class that config.json names, computed in fp32."""
    import transformers

    name = architecture(folder)
    if not hasattr(transformers, name):
        raise LabError(
            f"{folder} holds {name or 'a model without a name'}, which transformers does not have: "
            "give a folder written by save_pretrained"
        )
    # A bare encoder may come without a pooler; what it would say is not compared.
    model = open_complete(
        getattr(transformers, name), folder, lambda part: "pooler" in part, dtype=torch.float32
    ).eval()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, **more)[0].float()


def _by_onnxruntime(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    from onnxruntime import InferenceSession

    session: Any = InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    zeros = torch.zeros_like(ids)
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": zeros}
    given = {it.name: np.asarray(values[it.name]) for it in session.get_inputs()}
    return torch.from_numpy(session.run(["logits"], given)[0])

"""A model as an ONNX graph, for onnxruntime: every batch and every length, with padding.

    input_ids_BT ──────┐
    attention_mask_BT ─┼──> torch.export ──> model.onnx ──> logits_BTV of a decoder
    (token_type_ids_BT)┘                                    logits_BC of a classifier
                                                            logits_BTV of a masked language model

The graph reads a whole sequence and has no cache. Padding may stand on either side: a decoder
counts positions from the first real token on, and that counting is in the graph, too.

Legend: B batch, T positions, V vocabulary, C classes.

Sources: the ONNX operators' specification; `torch.onnx` (the exporter by `torch.export`).
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.huggingface.reading import architecture
from labkit.models.huggingface.saving import knows, load_pretrained
from labkit.models.transformer import Transformer

OPSET = 18
"""Of the graph: onnxruntime 1.14 and later read it."""
ONE_FILE = 1_800_000_000
"""Bytes of weights up to which they stand in the graph's own file; protobuf ends at 2 GiB."""


class Graph(nn.Module):
    """What is exported: ids and a mask to logits, and nothing that ONNX has no word for."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids, 1 = real and 0 = padding, segments where the model has them, to logits."""
        return self.model(input_ids, attention_mask, token_type_ids=token_type_ids).logits


def write_onnx(folder: Path, file: Path) -> list[str]:
    """Write the model of a folder as an ONNX graph, weights in fp32.

    Args:
        folder: a decoder, a classifier or a masked language model whose shape labkit has.
        file: to be written (`.data` beside it above 1.8 GB); not atomic: the caller claims the
            folder around it.

    Returns:
        The names of the graph's inputs; its output is "logits".

    Raises:
        LabError: another model, or the packages for it are missing.
    """
    model = _exportable(folder)
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * bool(model.config.token_types)
    model.requires_grad_(False)
    ids = torch.zeros(2, min(4, model.config.context_length), dtype=torch.long)
    # each a tensor of its own: one that is given twice becomes one input
    values = {name: torch.ones_like(ids) for name in inputs}
    axes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=model.config.context_length),
    }
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with _silence():
        program: Any = torch.onnx.export(
            Graph(model).eval(),
            kwargs=values,
            input_names=inputs,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, axes),
            opset_version=OPSET,
            verbose=False,
        )
        program.save(file, external_data=size > ONE_FILE)
    return inputs


def _exportable(folder: Path) -> Transformer:
    name = architecture(folder)
    model = load_pretrained(folder) if knows(folder) else None
    if not isinstance(model, Transformer) or (model.lm_head is None and model.classifier is None):
        raise LabError(
            f"{folder} holds {name or 'a model without a name'}, for which no ONNX graph is written"
            ": a decoder, a classifier or a masked language model of the shape of GPT-2, Llama or "
            "BERT can be exported; choose --format safetensors"
        )
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LabError(
            "the packages onnx and onnxscript are not installed: run pip install onnx onnxscript"
        ) from error
    return model


@contextlib.contextmanager
def _silence() -> Any:
    """Without the exporter's words on its own progress and its own code."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

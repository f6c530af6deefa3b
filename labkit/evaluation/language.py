"""How well a language model predicts held-out text: nats of each token, bits per byte of the text.

    model, batches ──► token_nats ──► (N, T): -ln p of each target, 0 where none counts
                            ├──► language_model ──► LanguageModelScore: nats, tokens, perplexity
    model, tokens  ──► score_text ──► bits per byte, perplexity; every token scored once
    model, documents ──► document_nats ──► (D,): the nats of each document
    model, objective ──► mean_loss: what the loop watches, whatever it trains

Sums are taken first and divided once, by the targets of the whole text: never a mean of means.
Intervals resample whole documents: give their `document_nats` to `bootstrap_interval`.

Legend: N examples, B batch, T time, D model width, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import runtime
from labkit.batches.examples import Contexts, Pad
from labkit.batches.order import Batches
from labkit.batches.types import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.evaluation.intervals import positive
from labkit.models.transformer import Transformer
from labkit.objectives.tasks import Objective

#: Positions whose logits exist at the same time.
CHUNK = 1024


def perplexity(nats: float, tokens: int) -> float:
    """Perplexity, exp(nats / tokens): how many equally likely tokens the model hesitates between.

    It depends on the tokenizer: compare models of different vocabularies by `bits_per_byte`.

    Args:
        nats: summed negative log-likelihood of the text, natural logarithm, >= 0.
        tokens: number of predicted tokens, >= 1.

    >>> round(perplexity(nats=3 * math.log(8), tokens=3), 6)
    8.0
    """
    return math.exp(nats / positive(tokens, "tokens"))


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits per byte, nats / (ln 2 * bytes): the size of the text if the model compressed it.

    Args:
        nats: summed negative log-likelihood of the text, natural logarithm, >= 0.
        num_bytes: length of the same text in UTF-8 bytes, >= 1.

    >>> round(bits_per_byte(nats=10 * math.log(256), num_bytes=10), 6)
    8.0
    """
    return nats / (math.log(2) * positive(num_bytes, "num_bytes"))


class LanguageModelScore(NamedTuple):
    """Summed loss of a language model on a text."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return self.nats / positive(self.tokens, "tokens")

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.nats, self.tokens)


def token_nats(model: nn.Module, batches: Iterable[Batch], *, precision: str = "fp32") -> Tensor:
    """-ln p(target | what stands before it) of every target: the one way to score held-out text.

    Args:
        model: labkit or transformers model; `model(**inputs).logits` is (B, T, V).
        batches: dicts with `input_ids` (B, T) and `labels` (B, T); `labels[t]` is the target of
            `logits[t]` (already shifted); -100 is not counted.
        precision: of the forward pass, as in `runtime.autocast`; the loss itself is float32.

    Returns:
        (N, T) float64 on the CPU, 0 where the label is -100; a shorter batch is filled up with 0.

    Raises:
        LabError: no target at all.
    """
    rows, count = [], 0
    for nats_BT, valid_BT in _nats(model, batches, precision):
        rows.append(nats_BT)
        count += int(valid_BT.sum())
    _demand_targets(count)
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, longest - row.shape[1])) for row in rows])


def language_model(
    model: nn.Module, batches: Iterable[Batch], *, precision: str = "fp32"
) -> LanguageModelScore:
    """Sum of `token_nats` over all batches, with their number; arguments and errors as there.

    Returns:
        nats and tokens; the mean is taken once, over the whole text, never over batch means.
    """
    nats, count = 0.0, 0
    for nats_BT, valid_BT in _nats(model, batches, precision):
        nats += float(nats_BT.sum())
        count += int(valid_BT.sum())
    _demand_targets(count)
    return LanguageModelScore(nats, count)


def document_nats(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    start_id: int,
    context_length: int,
    *,
    batch_size: int = 16,
    precision: str = "fp32",
) -> np.ndarray:
    """Summed -ln p of each document, every token of it predicted: what intervals resample.

    Args:
        model: labkit or transformers language model, on its device.
        documents: token ids of each, at least one, none empty.
        start_id: stands before the first token of a document; usually the end of text.
        context_length: T; a longer document is read in pieces of T targets, each alone.
        batch_size: pieces at a time, at least 1.
        precision: of the forward pass, or `auto`.

    Returns:
        (D,) float64.

    Raises:
        LabError: no document, an empty one, or a model whose logits are not finite.
    """
    if not documents or not all(len(ids) for ids in documents):
        raise LabError("a document has 0 tokens, or there is none: give at least 1 token each")
    pieces, of = [], []
    for number, ids in enumerate(documents):
        row = torch.as_tensor([start_id, *ids])
        for at in range(0, len(ids), context_length):
            piece = row[at : at + context_length + 1]
            pieces.append({"input_ids": piece[:-1], "labels": piece[1:]})
            of.append(number)
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]["labels"]))  # little padding
    precision = runtime.pick_precision(next(model.parameters()).device, precision)
    found = np.zeros(len(documents))
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        batch = Pad(start_id)([pieces[i] for i in some])
        nats_B = token_nats(model, [batch], precision=precision).sum(1).numpy()
        np.add.at(found, [of[i] for i in some], nats_B)
    if not np.isfinite(found).all():
        raise LabError("the model's logits are not finite: its weights are damaged")
    return found


def score_text(
    model: nn.Module,
    tokens: np.ndarray,
    num_bytes: int,
    context_length: int,
    *,
    batch_size: int = 16,
    precision: str = "fp32",
) -> dict[str, float]:
    """Bits per byte and perplexity of a causal language model on a token stream.

    Args:
        model: labkit or transformers language model, on its device.
        tokens: the stream; begins with an end-of-text token, so that all text is predicted.
        num_bytes: UTF-8 bytes of the text behind it, at least 1.
        context_length: T; each context is read alone.
        batch_size: contexts at a time.
        precision: of the forward pass, or `auto`.

    Returns:
        `bits_per_byte`, `perplexity`, `tokens` (scored), `bytes`.

    Raises:
        LabError: fewer than two tokens, or a model whose logits are not finite.
    """
    longest = max(1, min(context_length, len(tokens) - 1))  # a short text is not filled up
    contexts: Any = Contexts(tokens, longest, pad_id=0)
    precision = runtime.pick_precision(next(model.parameters()).device, precision)
    batches = Batches(contexts, batch_size).evaluation_batches()
    score = language_model(model, batches, precision=precision)
    if not math.isfinite(score.nats):
        raise LabError("the model's logits are not finite: its weights are damaged")
    return {
        "bits_per_byte": bits_per_byte(score.nats, num_bytes),
        "perplexity": score.perplexity,
        "tokens": score.tokens,
        "bytes": num_bytes,
    }


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    device: torch.device | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
) -> tuple[float, int]:
    """Mean loss in nats over all valid targets, and their number; in eval mode, without gradients.

    Raises:
        LabError: no label counts.
    """
    device = device or next(model.parameters()).device
    precision = runtime.pick_precision(device, precision)
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches.evaluation_batches(batch_size):
        batch = {k: v.to(device) for k, v in batch.items()}
        with runtime.autocast(device, precision):
            loss_sum, count = objective(model, batch)
        total += torch.stack([loss_sum, count]).double().cpu()
    model.train(was_training)
    loss_sum, count = total.tolist()
    if count == 0:
        raise LabError(
            "the validation data have 0 valid targets: at least 1 label must not be -100"
        )
    return loss_sum / count, int(count)


def _nats(
    model: nn.Module, batches: Iterable[Batch], precision: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """(nats, which count) of each batch, both (B, T) on the CPU."""
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        labels_BT = inputs.pop("labels")
        with evaluating(model), runtime.autocast(device, precision):
            losses = [
                F.cross_entropy(logits_CV, labels_C, ignore_index=IGNORE_INDEX, reduction="none")
                for logits_CV, labels_C in _chunks(model, inputs, labels_BT.flatten())
            ]
        nats_BT = torch.cat(losses).view(labels_BT.shape).double().cpu()
        yield nats_BT.clone(), (labels_BT != IGNORE_INDEX).cpu()


def _chunks(
    model: nn.Module, inputs: dict[str, Any], labels_N: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits in float32, labels) of a few positions at a time."""
    if isinstance(model, Transformer) and model.lm_head is not None:
        # The head on a few positions at a time: no B x T x V logits in memory.
        hidden_ND, head = model.encode(**inputs).flatten(0, 1), model.lm_head
        for h_CD, labels_C in zip(hidden_ND.split(CHUNK), labels_N.split(CHUNK), strict=True):
            yield head(h_CD).float(), labels_C
        return
    logits_NV = model(**inputs).logits.flatten(0, -2)
    for logits_CV, labels_C in zip(logits_NV.split(CHUNK), labels_N.split(CHUNK), strict=True):
        yield logits_CV.float(), labels_C


def _demand_targets(count: int) -> None:
    if count == 0:
        raise LabError("0 targets to evaluate: at least 1 label must differ from -100")

"""Exposure bias: how good the next word is behind the truth, and behind the model's own words.

    truth   y1 y2 y3 ...   behind y1 .. y(t-1):   -ln p(y_t),  is the likeliest token y_t?
    model   z1 z2 z3 ...   behind z1 .. z(t-1):   the same two questions about the same y_t

Teacher forcing trains on the first; using the model is the second. At t = 1 both are the same, and
the difference that opens behind it is what the model's own words cost. Read it with care: behind
another beginning the old truth need not be a good continuation (a synonym that is one token longer
shifts all that follows), so the curve is an upper bound of the damage, not the damage.

Legend: N pairs, T target positions.

Sources: Ranzato et al. 2016, arXiv:1511.06732 ("exposure bias"); Bengio et al. 2015,
arXiv:1506.03099 (scheduled sampling).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batches, Example, Pad
from labkit.errors import LabError
from labkit.evaluation.forward import logits_and_labels
from labkit.models.encoder_decoder import EncoderDecoder


class Exposure(NamedTuple):
    """Sums by target position, (T,) float64 each; divide by `count_T` for means."""

    count_T: Tensor
    """Targets that reach so far."""
    gold_nats_T: Tensor
    """-ln p(truth at t | truth before t)."""
    own_nats_T: Tensor
    """-ln p(truth at t | the model's own words before t)."""
    gold_right_T: Tensor
    """How often the likeliest token is the truth, behind the truth."""
    own_right_T: Tensor
    """The same behind the model's own words."""


def exposure(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    own: Sequence[Sequence[int]],
    start_id: int,
    batch_size: int = 16,
) -> Exposure:
    """Score each target behind itself and behind the model's own words.

    Args:
        model: an encoder-decoder, or a causal model, for which a source is a prompt.
        sources: N lists of ids, at least one token each.
        targets: N lists of ids, the end token included.
        own: N lists of ids that the model wrote, greedily: `generate(model, sources, T,
            temperature=0)` with no end_id, so that each is at least as long as its target.
        start_id: the token that stands first in decoder_input_ids; a decoder does not use it.
        batch_size: pairs at a time.

    Raises:
        LabError: lists of unequal number, an empty one, or own words that end before their target.
    """
    counts = {len(sources), len(targets), len(own)}
    if len(counts) != 1 or 0 in counts or any(not len(it) for it in (*sources, *targets)):
        raise LabError(
            f"{len(sources)} sources, {len(targets)} targets and {len(own)} answers: give equally "
            "many, none empty"
        )
    for number, (truth, said) in enumerate(zip(targets, own, strict=True)):
        if len(said) < len(truth):
            raise LabError(
                f"answer {number} has {len(said)} tokens, its target {len(truth)}: let the model "
                "write on, without an end_id"
            )
    gold = _by_position(model, sources, targets, targets, start_id, batch_size)
    cut = [said[: len(truth)] for said, truth in zip(own, targets, strict=True)]
    written = _by_position(model, sources, targets, cut, start_id, batch_size)
    return Exposure(gold[0], gold[1], written[1], gold[2], written[2])


def _by_position(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    prefixes: Sequence[Sequence[int]],
    start_id: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, nats and hits of the targets at each position behind the prefixes."""
    answers = isinstance(model, EncoderDecoder)
    examples: list[Example] = []
    for source, target, prefix in zip(sources, targets, prefixes, strict=True):
        before = torch.as_tensor([*prefix[: len(target) - 1]], dtype=torch.long)
        ids, labels = torch.as_tensor([*source]), torch.as_tensor([*target])
        if answers:
            start = torch.as_tensor([start_id])
            read = {"input_ids": ids, "decoder_input_ids": torch.cat((start, before))}
        else:
            read = {"input_ids": torch.cat((ids, before))}
            labels = F.pad(labels, (len(source) - 1, 0), value=IGNORE_INDEX)
        examples.append({**read, "labels": labels})
    longest = max(map(len, targets))
    sums = torch.zeros(3, longest, dtype=torch.float64)
    batches = Batches(examples, batch_size, Pad(start_id), shuffle=False).evaluation_batches()
    for logits_BTV, labels_BT in logits_and_labels(model, batches):
        logs_BTV = logits_BTV.log_softmax(-1)
        valid_BT = labels_BT != IGNORE_INDEX
        gold_BT1 = labels_BT.clamp(min=0).unsqueeze(-1)
        nats_BT = -logs_BTV.gather(-1, gold_BT1).squeeze(-1)
        right_BT = logs_BTV.argmax(-1) == labels_BT
        place_BT = (valid_BT.cumsum(1) - 1)[valid_BT].cpu()
        for row, values_BT in enumerate((torch.ones_like(nats_BT), nats_BT, right_BT)):
            sums[row].index_add_(0, place_BT, values_BT[valid_BT].double().cpu())
    return sums[0], sums[1], sums[2]

"""Where does the answer begin, where does it end: two classifications over the tokens of a text.

    start logits_BT ── softmax over T ──> p(start)      loss = -ln p(start) - ln p(end)
    end logits_BT   ── softmax over T ──> p(end)        no answer: both are position 0, [CLS]

Legend: B windows, T positions.

Source: Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3.
"""

import torch
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.objectives.losses import cross_entropy

ANSWER = ("start_positions", "end_positions")


def span_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(start, end) logits_BT of a reader; -inf at padding, whose probability is then exactly 0.

    Args:
        model: `models.SpanReader`, or a question answerer of transformers.
        batch: as from `batches.Pad` of `batches.span_windows`; labels are not read.
    """
    output = model(**{key: value for key, value in batch.items() if key not in ANSWER})
    padding_BT = batch["attention_mask"] == 0
    return (
        output.start_logits.masked_fill(padding_BT, -torch.inf),
        output.end_logits.masked_fill(padding_BT, -torch.inf),
    )


def span_answer(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-ln p(start) - ln p(end), summed over the windows; two targets a window.

    Without padding, sum / count is the loss that transformers computes. With padding it is not:
    there padding takes a share of the probability, and a window's loss depends on its neighbours.

    Args:
        model: as in `span_logits`.
        batch: with `start_positions` and `end_positions` (B,).

    Returns:
        (sum in nats, 2 B).

    Raises:
        LabError: a batch without labels, or an answer outside the window.
    """
    if missing := [name for name in ANSWER if name not in batch]:
        raise LabError(
            f"the batch has {sorted(batch)} and no {missing[0]}: give span_windows the answers"
        )
    sums, counts = zip(
        *(
            cross_entropy(logits_BT, batch[name])
            for logits_BT, name in zip(span_logits(model, batch), ANSWER, strict=True)
        ),
        strict=True,
    )
    return sums[0] + sums[1], counts[0] + counts[1]

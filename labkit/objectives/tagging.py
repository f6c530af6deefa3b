"""What a batch of tagged words should teach: a softmax on each word, or a CRF on each row.

    logits_BTK, labels_BT ──> cross-entropy where a label counts            softmax
                          └─> the words gathered at the left ──> -ln p(row of tags)    CRF

The CRF runs over *words*: a transition is from word to word, so the places of later pieces and of
marks, which have no label, are taken out before it. Both count words.

Legend: B rows, T positions (pieces and marks), W words, K tags.

Sources: Devlin et al. 2019, arXiv:1810.04805, section 5.3; Lample et al. 2016, arXiv:1603.01360.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from labkit.batches.types import IGNORE_INDEX, Batch
from labkit.models.tagger import Tagger
from labkit.objectives.losses import cross_entropy


def gather_words(
    scores_BTK: Float[Tensor, "B T K"], labels_BT: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B W K"], Int[Tensor, "B W"], Bool[Tensor, "B W"]]:
    """The positions that have a label, in their order, at the left; W is the longest row's.

    Args:
        scores_BTK: of every position.
        labels_BT: a tag, or `IGNORE_INDEX` at what is no word.

    Returns:
        scores (B, W, K), labels (B, W) and which of them are words (B, W); at least one column.
    """
    words_BT = labels_BT != IGNORE_INDEX
    order_BT = torch.argsort(~words_BT, dim=1, stable=True)
    if not torch.compiler.is_compiling():
        order_BT = order_BT[:, : max(1, int(words_BT.sum(1).max()))]
    wide_BWK = order_BT.unsqueeze(2).expand(-1, -1, scores_BTK.shape[2])
    labels_BW = labels_BT.gather(1, order_BT)
    return scores_BTK.gather(1, wide_BWK), labels_BW, labels_BW != IGNORE_INDEX


def token_classification(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-ln p(tag | text) of each labelled position, summed.

    Args:
        model: `model(input_ids, attention_mask, ...)` with logits (B, T, K): a `Tagger`, or a token
            classifier of `transformers`.
        batch: as from `batches.Pad` of `tagged_examples`: the first pieces have labels, or all.

    Returns:
        (sum in nats, count of labels).
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits_NK = model(**inputs).logits.flatten(0, 1)
    return cross_entropy(logits_NK, batch["labels"].flatten())


def tagging(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a tagger's own head: `token_classification`, or -ln p(row of tags) of its CRF.

    Args:
        model: a `Tagger`.
        batch: as in `token_classification`; for a CRF the first piece of each word has a label.

    Returns:
        (sum in nats, count of words).

    Raises:
        LabError: as `LinearChainCRF.forward`.
    """
    crf = model.crf if isinstance(model, Tagger) else None
    if crf is None:
        return token_classification(model, batch)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return crf(*gather_words(model(**inputs).logits, batch["labels"]))

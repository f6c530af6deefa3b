"""What a batch should teach: objective(model, batch) -> (loss sum, count of valid targets).

    objective(model, batch): batch -> model -> logits -> losses -> (sum, count)

    causal              `causal_lm`  on windows                 every token, from the left
    masked              `causal_lm`  on `batches.MaskTokens`    15 % of the tokens, from both sides
    span corruption     `causal_lm`  on `batches.CorruptSpans`  the spans, from the rest
    masked + next       `masked_lm_with_next_sentence`          and: do the two halves belong?
    contrastive         `contrastive`                           which text is this one's neighbour?

The loop divides by the count of the whole update. An objective works alike on labkit's models
and on `transformers` models: both take keyword tensors and return something with `.logits`.

Legend: B examples, T positions, G pairs of a group, D model width.

Sources: Devlin et al. 2019, arXiv:1810.04805 (next sentence); Reimers & Gurevych 2019,
arXiv:1908.10084 (mean of the hidden states as the vector of a text).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.transformer import Output, Transformer
from labkit.objectives.losses import chunked_cross_entropy, cross_entropy
from labkit.objectives.losses import contrastive as contrastive_loss

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]

#: Logits of these are hidden states times the output embedding. A subclass with a forward pass of
#: its own may make others, so it is asked for them.
PROJECTING = (Transformer.forward, EncoderDecoder.forward)


def _inputs(batch: Batch) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


def causal_lm(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p(label at t | what the model sees at t), summed over labels that count.

    Serves causal, masked and encoder-decoder models alike: which positions count, and what is seen,
    stands in the batch (labels are already aligned with predictions, see `batches`).

    Args:
        model: `model(input_ids (B, T), ...)` with logits (B, T, V).
        batch: `input_ids`, `labels` (B, T; -100 does not count), perhaps masks and positions; for
            an encoder-decoder labels belong to `decoder_input_ids` (B, T), input_ids are (B, S).

    Returns:
        (sum in nats, count).
    """
    if isinstance(model, Transformer | EncoderDecoder) and type(model).forward in PROJECTING:
        head = model.lm_head
        if head is not None and head.bias is None:
            # No B x T x V logits in memory: the loss meets the output embedding chunk by chunk.
            hidden_ND = model.encode(**_inputs(batch)).flatten(0, 1)
            return chunked_cross_entropy(hidden_ND, head.weight, batch["labels"].flatten())
    logits_NV = model(**_inputs(batch)).logits.flatten(0, 1)
    return cross_entropy(logits_NV, batch["labels"].flatten())


def classification(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p(class | text), summed over the examples.

    Args:
        model: `model(input_ids (B, T), attention_mask (B, T))` with logits (B, C).
        batch: as from `batches.Pad`; `labels` (B,) in 0 .. C - 1.

    Returns:
        (sum in nats, count).
    """
    return cross_entropy(model(**_inputs(batch)).logits, batch["labels"])


class NextSentenceModel(nn.Module):
    """A masked language model with BERT's second head: do the two halves belong together?

    The head reads the first position, [CLS]: tanh of a linear layer, then two scores.

    Args:
        encoder: its weights are trained along; keep it for what comes after pretraining.
    """

    def __init__(self, encoder: Transformer):
        super().__init__()
        width = encoder.config.d_model
        self.encoder = encoder
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)
        for layer in (self.pooler, self.classifier):
            nn.init.normal_(layer.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, **inputs: Tensor) -> tuple[Output, Tensor]:
        """What the encoder returns, and scores (B, 2): 0 = another document, 1 = the true next."""
        output = self.encoder(**inputs)
        return output, self.classifier(torch.tanh(self.pooler(output.hidden[:, 0])))


def masked_lm_with_next_sentence(
    model: nn.Module, batch: Batch, weight: float = 10.0
) -> tuple[Tensor, Tensor]:
    """BERT's two losses at once: masked tokens, and `weight` times next sentence.

    BERT adds two means. Here both sums share one denominator, the number of masked tokens, so that
    accumulation stays exact: `weight` = masked tokens per pair gives BERT's balance.

    Args:
        model: a `NextSentenceModel`.
        batch: as from `batches.NextSentence` then `batches.MaskTokens`.
        weight: of one pair's answer against one masked token, 0 or more. 10 suits 64 tokens.

    Returns:
        (sum in nats, number of masked tokens).

    Raises:
        LabError: a batch without `next_sentence_label`.
    """
    if "next_sentence_label" not in batch:
        raise LabError(
            f"the batch has {sorted(batch)} and no next_sentence_label: corrupt its examples with"
            " batches.NextSentence or batches.SentenceOrder"
        )
    hidden = ("labels", "next_sentence_label")
    output, scores_B2 = model(**{key: batch[key] for key in batch if key not in hidden})
    words, count = cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    pairs, _ = cross_entropy(scores_B2, batch["next_sentence_label"])
    return words + weight * pairs, count


def text_vectors(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """One vector per text: the mean of the last hidden states over the real tokens.

    Args:
        model: a labkit model; of an encoder-decoder the encoder reads.
        input_ids: (B, T).
        attention_mask: (B, T), 1 = real; None: all real.

    Returns:
        (B, D).
    """
    if isinstance(model, EncoderDecoder):
        hidden_BTD = model.read(input_ids, attention_mask).hidden_BSD
    else:
        hidden_BTD = model(input_ids, attention_mask=attention_mask).hidden
    if attention_mask is None:
        return hidden_BTD.mean(dim=1)
    real_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)


def contrastive(model: nn.Module, batch: Batch, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """InfoNCE within groups of pairs: `losses.contrastive` of the texts' vectors.

    Args:
        model: as in `text_vectors`; give it no vocabulary head, none is used.
        batch: `input_ids` (B, 2, G, T), as stacked from `batches.pair_groups`: B groups.
        temperature: above 0.

    Returns:
        (sum in nats, number of pairs B G).
    """
    groups, _, size, length = batch["input_ids"].shape
    vectors_ND = text_vectors(model, batch["input_ids"].reshape(-1, length))
    vectors_B2GD = vectors_ND.view(groups, 2, size, -1)
    return contrastive_loss(vectors_B2GD[:, 0], vectors_B2GD[:, 1], temperature)


def routing(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Objective of a router: -log w(right expert), summed over every position of every text.

    Args:
        model: a `Router`.
        batch: `input_ids` (B, T); `labels` (B,), the domain of each text, 0 .. K - 1.

    Returns:
        (sum in nats, count).
    """
    logits_BTK = model(batch["input_ids"]).logits
    labels_BT = batch["labels"][:, None].expand(logits_BTK.shape[:2])
    return cross_entropy(logits_BTK.flatten(0, 1), labels_BT.flatten())

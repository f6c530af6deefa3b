"""Hide part of a text and ask for it back: masked tokens (BERT), corrupted spans (T5).

    MaskTokens     the cat sat on the mat      CorruptSpans   the cat sat on the mat
    input          the [M] sat on rug mat      input          the <1> on the mat
    labels          .  cat  .   .  the  .      target         <1> cat sat <2>

A corruption is a function (example, random) -> example. It never touches torch's or NumPy's global
generators: `Batches(..., corrupt=...)` hands it a generator of its own for each visit of each
example, so the masks are new in every epoch, but the same however an update is cut into
micro-batches or ranks, and after a resume.

Sources: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix C.2 (masking); Liu et al.
2019, arXiv:1907.11692, section 4.1 (new masks in every epoch); Raffel et al. 2020,
arXiv:1910.10683, section 3.1.4 and figure 2 (span corruption).
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from labkit.batches.types import IGNORE_INDEX, Corruption, Example
from labkit.errors import LabError


def in_turn(*corruptions: Corruption) -> Corruption:
    """One corruption after the other, on one generator: first draw the pair, then mask it."""

    def corrupt(example: Example, random: np.random.Generator) -> Example:
        for step in corruptions:
            example = step(example, random)
        return example

    return corrupt


def _rounded(x: float, random: np.random.Generator) -> int:
    """floor(x) or floor(x) + 1, with mean x: so a share is met in short texts, too."""
    return int(x + random.random())


def _share(name: str, value: float, low: float = 0.0) -> float:
    if not low <= value <= 1.0:
        raise LabError(f"{name} {value} is out of range: choose {low:g} to 1")
    return value


class MaskTokens:
    """BERT's masking: choose 15 % of the tokens; each is a target, and most of them are hidden.

    A chosen token becomes `mask_id` with probability 1 - random - keep (80 %), another ordinary
    token with probability `random` (10 %), and stays as it is with probability `keep` (10 %):
    when the model is used there is no mask, so it must not learn that seen tokens are never asked.

    Special tokens and padding are never chosen. Labels are -100 wherever nothing was chosen.
    """

    def __init__(
        self,
        mask_id: int,
        vocab_size: int,
        special_ids: Collection[int],
        share: float = 0.15,
        random: float = 0.1,
        keep: float = 0.1,
    ):
        """
        Args:
            mask_id: the id that hides a token; it counts as special.
            vocab_size: ids are 0 .. vocab_size - 1.
            special_ids: never chosen, never put in by chance (padding, end of text, [CLS]).
            share: of the ordinary tokens of an example, 0 to 1. Their number is share * tokens,
                rounded up or down by chance so that its mean is exact.
            random: share of the chosen that become another token, 0 to 1.
            keep: share of the chosen that stay; random + keep is at most 1.

        Raises:
            LabError: a share out of range, or no ordinary token.
        """
        self.mask_id = mask_id
        self.share = _share("share", share)
        self.random = _share("random", random)
        self.keep = _share("keep", keep)
        _share("random + keep =", random + keep)
        special = np.zeros(vocab_size, dtype=bool)
        special[[mask_id, *special_ids]] = True
        self.is_special = special
        self.ordinary_ids = np.flatnonzero(~special)
        if len(self.ordinary_ids) == 0:
            raise LabError(
                f"all {vocab_size} ids are special: at least 1 ordinary token is needed to mask"
            )

    def __call__(self, example: Example, random: np.random.Generator) -> Example:
        """Mask `input_ids` (T,); `labels` (T,) hold the original where a token was chosen."""
        original = example["input_ids"].numpy()
        places = np.flatnonzero(~self.is_special[original])
        chosen = random.choice(places, _rounded(self.share * len(places), random), replace=False)
        ids, labels = original.copy(), np.full_like(original, IGNORE_INDEX)
        labels[chosen] = original[chosen]
        fate = random.random(len(chosen))
        others = random.choice(self.ordinary_ids, len(chosen))
        ids[chosen] = np.where(fate < self.random, others, self.mask_id)
        kept = fate >= 1 - self.keep
        ids[chosen[kept]] = original[chosen[kept]]
        return {
            **example,
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
        }


class CorruptSpans:
    """T5's span corruption: cut spans of about 3 tokens out, 15 % in all; the target lists them.

    Each span leaves a sentinel behind, <1>, <2>, ... in order; the target repeats each sentinel and
    then its span, and ends with the sentinel after the last. Input and target together hold every
    token of the text exactly once (`restore_spans`).

    A special token, such as the end of a text, is never inside a span, and each stretch between
    two of them is corrupted on its own. So no span crosses from one document into the next.
    """

    def __init__(
        self,
        sentinel_ids: Sequence[int],
        special_ids: Collection[int],
        start_id: int,
        density: float = 0.15,
        mean_length: float = 3.0,
    ):
        """
        Args:
            sentinel_ids: in order of use; one more is needed than an example has spans.
            special_ids: borders of a span, never inside one.
            start_id: the first token of every decoder input.
            density: share of the ordinary tokens that is cut out, above 0 and below 1.
            mean_length: of a span in tokens, at least 1.

        Raises:
            LabError: a number out of range.
        """
        if not 0 < density < 1:
            raise LabError(f"density {density} is out of range: choose above 0 and below 1")
        if mean_length < 1:
            raise LabError(f"mean_length {mean_length} is out of range: choose at least 1 token")
        self.sentinel_ids = list(sentinel_ids)
        self.borders = np.array(sorted({*special_ids, *sentinel_ids}))
        self.start_id, self.density, self.mean_length = start_id, density, mean_length

    def spans(self, ids: np.ndarray, random: np.random.Generator) -> list[tuple[int, int]]:
        """Draw the spans [start, stop) to cut out of these ids, in order and never touching."""
        found = []
        inside = np.concatenate(([False], ~np.isin(ids, self.borders), [False]))
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        for start, stop in edges.reshape(-1, 2):
            n = int(stop - start)
            noise = min(_rounded(n * self.density, random), n - 1)
            count = min(max(_rounded(noise / self.mean_length, random), 1), noise, n - noise + 1)
            if count < 1:
                continue
            lengths = _parts(noise, count, 1, random)
            # Inner gaps hold at least one token, or two spans would be one.
            gaps = _parts(n - noise + 2, count + 1, 1, random)
            at = int(start) - 1
            for gap, length in zip(gaps, lengths, strict=False):
                at += gap
                found.append((at, at + length))
                at += length
        return found

    def __call__(self, example: Example, random: np.random.Generator) -> Example:
        """Corrupt `input_ids` (T,).

        Returns:
            `input_ids` (S,) with sentinels, `labels` (U,) the target, `decoder_input_ids` (U,) the
            target shifted right behind `start_id`.

        Raises:
            LabError: fewer sentinels than spans + 1.
        """
        original = example["input_ids"].numpy()
        spans = self.spans(original, random)
        if len(spans) + 1 > len(self.sentinel_ids):
            raise LabError(
                f"{len(spans)} spans need {len(spans) + 1} sentinels, there are "
                f"{len(self.sentinel_ids)}: give more sentinel_ids or shorter examples"
            )
        source, target, at = [], [], 0
        for sentinel, (start, stop) in zip(self.sentinel_ids, spans, strict=False):
            source += [*original[at:start], sentinel]
            target += [sentinel, *original[start:stop]]
            at = stop
        source += [*original[at:]]
        target += [self.sentinel_ids[len(spans)]]
        return {
            "input_ids": torch.tensor(source),
            "labels": torch.tensor(target),
            "decoder_input_ids": torch.tensor([self.start_id, *target[:-1]]),
        }


def _parts(total: int, count: int, least: int, random: np.random.Generator) -> list[int]:
    """Cut `total` into `count` parts of at least `least`; every way to do so is equally likely."""
    free = total - count * least
    bars = np.sort(random.choice(free + count - 1, count - 1, replace=False))
    ends = np.concatenate(([-1], bars, [free + count - 1]))
    return (np.diff(ends) - 1 + least).tolist()


def restore_spans(
    input_ids: Sequence[int], target: Sequence[int], sentinel_ids: Sequence[int]
) -> list[int]:
    """Put the spans of a target back into a corrupted input: the inverse of `CorruptSpans`.

    >>> restore_spans([5, 90, 7], [90, 1, 2, 91], sentinel_ids=[90, 91])
    [5, 1, 2, 7]

    Args:
        input_ids: tokens and sentinels.
        target: sentinel, its span, the next sentinel, ...; one that never comes leaves a gap.
        sentinel_ids: which ids are sentinels.
    """
    sentinels, spans, current = set(sentinel_ids), {}, []
    for token in target:
        if int(token) in sentinels:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    return [
        piece
        for token in input_ids
        for piece in (spans.get(int(token), []) if int(token) in sentinels else [int(token)])
    ]

"""How well entities are found: precision, recall and F1 of whole spans, with intervals.

    right, said: a row of tags each ──> `nervaluate`, document by document ──> counts ──> scores

    strict     the same words and the same type, or wrong
    partial    the same words count 1, a span that only overlaps counts a half; types do not matter

    precision = found / said      recall = found / right      F1 = their harmonic mean

Accuracy over words says little: most words are outside, and whoever says so of all is mostly right.
Counts are summed over documents, then divided once (micro). Intervals resample whole documents.

Source: Segura-Bedmar, Martinez and Herrero-Zazo 2013, SemEval-2013 task 9.1 (strict, partial);
Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050 (F1 of entities).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from nervaluate import Evaluator

from labkit.errors import LabError
from labkit.evaluation.intervals import Interval, bootstrap_interval
from labkit.text.bio import repaired, spans, types_of

Scheme = Literal["strict", "partial"]
#: What is counted of a document, in this order.
COUNTS = ("correct", "incorrect", "partial", "missed", "spurious")


class Found(NamedTuple):
    """Precision, recall and F1, and how many spans there are."""

    precision: float
    recall: float
    f1: float
    right: int
    """Spans of the gold standard."""
    said: int
    """Spans of the model."""


class EntityScores(NamedTuple):
    """What `entity_scores` measured."""

    overall: dict[str, Found]
    """By scheme: over all types."""
    by_type: dict[str, Found]
    """Strict, of each type."""
    f1_interval: dict[str, Interval]
    """By scheme: the F1 and its interval over documents."""
    accuracy: float
    """Share of the words with the right tag."""
    documents: int

    def row(self) -> dict[str, Any]:
        """Plain dicts and numbers, for JSON."""
        schemes = {
            scheme: {**found._asdict(), "f1_interval": self.f1_interval[scheme]._asdict()}
            for scheme, found in self.overall.items()
        }
        types = [{"type": name, **found._asdict()} for name, found in self.by_type.items()]
        return {
            **schemes,
            "accuracy": self.accuracy,
            "documents": self.documents,
            "types": types,
        }


def entity_scores(
    right: Sequence[Sequence[str]],
    said: Sequence[Sequence[str]],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
) -> EntityScores:
    """Scores of rows of tags.

    Args:
        right: BIO tags of each row.
        said: the model's; an I without a beginning counts as one, as scorers have it.
        documents: of each row, whose rows are resampled together; None: each row is its own.
        resamples: of the intervals, at least 1.

    Raises:
        LabError: no row, other numbers of rows or of words, or `right` is not BIO.
    """
    _check(right, said, documents)
    said = [repaired(tags) for tags in said]
    types = sorted(set(types_of(tag for tags in (*right, *said) for tag in tags)))
    keys = range(len(right)) if documents is None else list(documents)
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    sizes = (len(places), len(COUNTS))
    totals = {scheme: np.zeros(sizes) for scheme in ("strict", "partial")}
    own = {name: np.zeros(len(COUNTS)) for name in types}
    for key, gold, answer in zip(keys, right, said, strict=True):
        counts, counts_by_type = _counts(gold, answer, types)
        for scheme, numbers in counts.items():
            totals[scheme][places[key]] += numbers
        for name, numbers in counts_by_type.items():
            own[name] += numbers
    words = [(a, b) for g, s in zip(right, said, strict=True) for a, b in zip(g, s, strict=True)]
    return EntityScores(
        {scheme: _found(counts.sum(0)) for scheme, counts in totals.items()},
        {name: _found(counts) for name, counts in own.items()},
        {
            scheme: bootstrap_interval(
                lambda rows: _found(rows.sum(0)).f1, counts, resamples=resamples
            )
            for scheme, counts in totals.items()
        },
        float(np.mean([a == b for a, b in words])),
        len(places),
    )


def _check(right: Any, said: Any, documents: Any) -> None:
    lengths = [len(right), len(said), len(right if documents is None else documents)]
    if not right or len(set(lengths)) > 1:
        raise LabError(
            f"{lengths[0]} rows of right tags, {lengths[1]} of said ones, {lengths[2]} documents: "
            "give equally many, at least one"
        )
    for number, (gold, answer) in enumerate(zip(right, said, strict=True), start=1):
        if len(gold) != len(answer) or not gold:
            raise LabError(
                f"row {number} has {len(gold)} right tags and {len(answer)} said ones: give one "
                "for each word, and a word"
            )


def _counts(
    gold: Sequence[str], answer: Sequence[str], types: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By scheme over all types, and strict by type: the `COUNTS` of one row."""
    nothing = np.zeros(len(COUNTS))
    pair = [
        [{"label": name, "start": start, "end": end - 1} for start, end, name in spans(tags)]
        for tags in (gold, answer)
    ]
    if not any(pair):  # nervaluate needs a type to count
        return {"strict": nothing, "partial": nothing}, {}
    found = Evaluator([pair[0]], [pair[1]], tags=types, loader="dict").evaluate()
    overall = {scheme: _numbers(found["overall"][scheme]) for scheme in ("strict", "partial")}
    return overall, {n: _numbers(by["strict"]) for n, by in found["entities"].items()}


def _numbers(result: Any) -> np.ndarray:
    return np.array([getattr(result, name) for name in COUNTS], dtype=float)


def _found(counts: np.ndarray) -> Found:
    """Precision, recall and F1 of summed counts; 0 where nothing was said or is there."""
    correct, incorrect, partial, missed, spurious = counts
    good = correct + 0.5 * partial
    said = correct + incorrect + partial + spurious
    right = correct + incorrect + partial + missed
    precision, recall = good / max(said, 1), good / max(right, 1)
    f1 = 2 * good / max(said + right, 1)
    return Found(float(precision), float(recall), float(f1), int(right), int(said))


def score_table(scores: Mapping[str, EntityScores]) -> list[dict[str, str]]:
    """One row a model, in words: strict precision, recall, F1 with its interval, partial F1."""
    rows = []
    for name, score in scores.items():
        strict, interval = score.overall["strict"], score.f1_interval["strict"]
        rows.append(
            {
                "model": name,
                "F1": f"{strict.f1:.4f}",
                "95 % interval": f"{interval.low:.4f} to {interval.high:.4f}",
                "precision": f"{strict.precision:.4f}",
                "recall": f"{strict.recall:.4f}",
                "partial F1": f"{score.overall['partial'].f1:.4f}",
                "words": f"{score.accuracy:.4f}",
                "entities": f"{strict.right:,}",
            }
        )
    return rows

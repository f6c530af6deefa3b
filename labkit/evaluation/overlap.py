"""How much of a written answer is in the true one: exact match, token F1, BLEU, chrF, ROUGE.

    answers, truths ──┬─ one number a pair ──> exact match, token F1      mean of the pairs
                      ├─ one number a pair ──> ROUGE-1, -2, -L            mean of the pairs
                      └─ counts of a pair  ──> BLEU, chrF                 sums, then a ratio

BLEU and chrF are not means: their n-grams are counted over the whole corpus first. So an interval
resamples the *pairs* and adds up their counts again. `sacrebleu` counts; it tokenises by itself, so
give it plain text, neither tokenised nor in small letters: else the figure is another one. Its
signature says what was computed and belongs beside every figure. ROUGE is `torchmetrics`', which
needs no other package and no data for these three (without stemming); `rouge-score` needs nltk.

Sources: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (exact match, F1), and its official
program (normalisation); Papineni et al. 2002, ACL (BLEU); Post 2018, arXiv:1804.08771 (sacreBLEU);
Popović 2015, WMT (chrF); Lin 2004 (ROUGE); Koehn 2004, EMNLP (resampling).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labkit.errors import LabError
from labkit.evaluation.intervals import Interval, bootstrap_interval

ROUGES = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")


class Overlap(NamedTuple):
    """A score of a corpus of pairs."""

    name: str
    """BLEU, chrF2, ..."""
    interval: Interval
    """In percent, 0 to 100; the interval is of resampled pairs (or documents)."""
    signature: str
    """What was computed, in sacrebleu's words; "" of the others."""

    def __str__(self) -> str:
        """The figure, its interval and the signature.

        >>> str(Overlap("BLEU", Interval(12.34, 10.0, 14.0), ""))
        'BLEU 12.3 [10.0, 14.0]'
        """
        it = self.interval
        said = f"{self.name} {it.estimate:.1f} [{it.low:.1f}, {it.high:.1f}]"
        return f"{said} {self.signature}".rstrip()


# One pair


def normalised(text: str) -> str:
    """SQuAD's form of an answer: small letters, no punctuation, no articles, single spaces.

    >>> normalised("The  Kitchen.")
    'kitchen'
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, truth: str) -> float:
    """1.0 if both are the same in SQuAD's form, else 0.0; "" is the answer "there is none".

    >>> exact_match("the kitchen", "Kitchen"), exact_match("", "Kitchen")
    (1.0, 0.0)
    """
    return float(normalised(answer) == normalised(truth))


def token_f1(answer: str, truth: str) -> float:
    """SQuAD's F1: harmonic mean of the shares of common words, in SQuAD's form.

    F1 = 2 c / (n + m), with c words in common, counted as often as both have them. Where either is
    empty, 1 if both are.

    >>> token_f1("in the old kitchen", "the kitchen")
    0.5
    """
    return _f1(normalised(answer).split(), normalised(truth).split())


def word_f1(answer: str, truth: str) -> float:
    r"""F1 of the words (`\w+`, small letters), articles and all: for texts longer than an answer.

    >>> word_f1("The cat sat.", "the cat")
    0.8
    """
    return _f1(re.findall(r"\w+", answer.lower()), re.findall(r"\w+", truth.lower()))


def _f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


# A corpus


def answer_scores(
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Overlap]:
    """Exact match and token F1 in percent.

    Args:
        answers, truths: equally many; "" where there is no answer.
        documents: what each pair belongs to; None: each stands alone. Whole documents are drawn.
        resamples, seed: of the interval.

    Raises:
        LabError: no pair, or sides of unequal length.

    Returns:
        By name: "exact match", "F1".
    """
    _demand(answers, truths)
    rows = {
        "exact match": [exact_match(a, t) for a, t in zip(answers, truths, strict=True)],
        "F1": [token_f1(a, t) for a, t in zip(answers, truths, strict=True)],
    }
    return {
        name: Overlap(name, _of_means(row, documents, resamples, seed), "")
        for name, row in rows.items()
    }


def text_scores(
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Overlap]:
    """BLEU, chrF and word F1 in percent, with intervals; arguments as in `answer_scores`.

    Returns:
        By name: "BLEU", "chrF", "word F1".
    """
    how = (documents, resamples, seed)
    words = [word_f1(a, t) for a, t in zip(answers, truths, strict=True)]
    return {
        "BLEU": bleu(answers, truths, *how),
        "chrF": chrf(answers, truths, *how),
        "word F1": Overlap("word F1", _of_means(words, documents, resamples, seed), ""),
    }


def bleu(
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    over: Sequence[str] | None = None,
) -> Overlap:
    """BLEU-4 of a corpus with one reference.

    Arguments as in `answer_scores`, and `over`: other answers to the same rows. With them the
    figure is the lead over them, its interval of the same rows drawn for both (Koehn 2004).

    BLEU = 100 min(1, e^(1 - r/c)) (p_1 p_2 p_3 p_4)^(1/4), p_n the share of the answers' n-grams
    that stand in the references, each counted at most as often as there; c, r words of both sides.
    """
    from sacrebleu.metrics import BLEU  # pyright: ignore[reportMissingImports]

    return _counted(BLEU(), answers, truths, documents, resamples, seed, over)


def chrf(
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    over: Sequence[str] | None = None,
) -> Overlap:
    """chrF2: F of character n-grams (1 to 6) with recall twice as important as precision.

    Arguments as in `bleu`.
    """
    from sacrebleu.metrics import CHRF  # pyright: ignore[reportMissingImports]

    return _counted(CHRF(), answers, truths, documents, resamples, seed, over)


def rouge(
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Overlap]:
    """F of ROUGE-1 and -2 (words, pairs of words) and ROUGE-L (longest common subsequence).

    Without stemming. Arguments as in `answer_scores`.

    Returns:
        By name: "rouge1", "rouge2", "rougeL".
    """
    from torchmetrics.functional.text.rouge import (  # pyright: ignore[reportMissingImports]
        rouge_score,
    )

    _demand(answers, truths)
    rows: dict[str, list[float]] = {name: [] for name in ROUGES}
    for answer, truth in zip(answers, truths, strict=True):
        said = rouge_score(answer, truth, rouge_keys=ROUGES)
        for name in ROUGES:
            rows[name].append(float(said[f"{name}_fmeasure"]))
    return {
        name: Overlap(name, _of_means(row, documents, resamples, seed), "")
        for name, row in rows.items()
    }


def _counted(
    metric: Any,
    answers: Sequence[str],
    truths: Sequence[str],
    documents: Sequence[Any] | None,
    resamples: int,
    seed: int,
    over: Sequence[str] | None,
) -> Overlap:
    """A score of sacrebleu from the counts of each pair, added up again for each resample."""

    def counts_of(said: Sequence[str]) -> np.ndarray:
        _demand(said, truths)
        counts_NC = np.array(metric._extract_corpus_statistics(list(said), [list(truths)]))
        groups = _groups(documents, len(counts_NC))
        sums_GC = np.zeros((groups.max() + 1, counts_NC.shape[1]))
        np.add.at(sums_GC, groups, counts_NC)
        return sums_GC

    def score(rows_GC: np.ndarray) -> float:
        return metric._compute_score_from_stats(rows_GC.sum(0).tolist()).score

    def lead(rows_GC: np.ndarray, other_GC: np.ndarray) -> float:
        return score(rows_GC) - score(other_GC)

    counts = [counts_of(answers)] if over is None else [counts_of(answers), counts_of(over)]
    how = score if over is None else lead
    interval = bootstrap_interval(how, *counts, resamples=resamples, seed=seed)
    name = metric.corpus_score(list(answers), [list(truths)]).name
    name = name if name != "chrF2" else "chrF"
    return Overlap(name, interval, str(metric.get_signature()))


def _of_means(
    values: Sequence[float], documents: Sequence[Any] | None, resamples: int, seed: int
) -> Interval:
    """Mean of all pairs in percent; its interval by drawing documents."""
    groups = _groups(documents, len(values))
    sums, sizes = np.bincount(groups, values), np.bincount(groups)

    def mean(sums_G: np.ndarray, sizes_G: np.ndarray) -> float:
        return 100 * float(sums_G.sum() / sizes_G.sum())

    return bootstrap_interval(mean, sums, sizes, resamples=resamples, seed=seed)


def _groups(documents: Sequence[Any] | None, count: int) -> np.ndarray:
    """The number of the document of each pair."""
    if documents is None:
        return np.arange(count)
    if len(documents) != count:
        raise LabError(f"{len(documents)} documents of {count} pairs: name one for each pair")
    return np.unique(np.array([str(it) for it in documents]), return_inverse=True)[1]


def _demand(answers: Sequence[str], truths: Sequence[str]) -> None:
    if not len(answers) or len(answers) != len(truths):
        raise LabError(
            f"{len(answers)} answers and {len(truths)} truths: give equally many, at least 1"
        )

"""Scores of written answers: by hand on small cases, as the libraries give them on corpora."""

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu

from labkit.errors import LabError
from labkit.evaluation import (
    answer_scores,
    bleu,
    chrf,
    exact_match,
    normalised,
    overlap,
    rouge,
    text_scores,
    token_f1,
    word_f1,
)

ANSWERS = ["the cat sat on the mat", "a dog barked at the man", "It rains.", "no word in common"]
TRUTHS = ["the cat sat on a mat", "a dog barked at the old man", "it rained", "quite another text"]


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(overlap).failed == 0


@pytest.mark.parametrize(
    ("answer", "truth", "match", "f1"),
    [
        ("The Kitchen!", "kitchen", 1, 1),
        ("old kitchen", "the kitchen", 0, 2 / 3),
        ("to to rest", "to rest", 0, 4 / 5),  # the second "to" has no partner
        ("", "", 1, 1),
        ("", "rest", 0, 0),
        ("the", "", 1, 1),  # nothing is left of it
        ("garden", "barn", 0, 0),
    ],
)
def test_squads_scores_by_hand(answer, truth, match, f1):
    assert exact_match(answer, truth) == match
    assert token_f1(answer, truth) == pytest.approx(f1)
    assert normalised("An  apple, a day") == "apple day"


def test_word_f1_is_that_of_the_chapters():
    """2 common / (words of one + words of the other), words counted as often as both have them."""
    assert word_f1("the the cat", "The cat sat") == pytest.approx(2 * 2 / 6)
    assert token_f1("the the cat", "The cat sat") == pytest.approx(2 / 3)  # without articles


def test_bleu_by_hand():
    """5, 3, 2, 1 of 6, 5, 4, 3 n-grams; equal lengths: no penalty."""
    expected = 100 * math.exp(np.log([5 / 6, 3 / 5, 2 / 4, 1 / 3]).mean())
    assert bleu(ANSWERS[:1], TRUTHS[:1]).interval.estimate == pytest.approx(expected)
    short = bleu(["the cat sat on"], ["the cat sat on a mat"]).interval.estimate
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_bleu_and_chrf_are_sacrebleus_with_its_signature_and_no_mean_of_sentences():
    for ours, theirs, sentence in (
        (bleu, sacrebleu.corpus_bleu, sacrebleu.sentence_bleu),
        (chrf, sacrebleu.corpus_chrf, sacrebleu.sentence_chrf),
    ):
        score = ours(ANSWERS, TRUTHS)
        assert score.interval.estimate == pytest.approx(theirs(ANSWERS, [TRUTHS]).score)
        assert score.interval.low <= score.interval.estimate <= score.interval.high
        assert score.signature.startswith("nrefs:1|case:mixed")
        assert f"version:{sacrebleu.__version__}" in score.signature
        mean = np.mean([sentence(a, [t]).score for a, t in zip(ANSWERS, TRUTHS, strict=True)])
        assert abs(mean - score.interval.estimate) > 1


def test_text_that_is_tokenised_or_in_small_letters_scores_otherwise():
    plain = bleu(["It rains, he said."], ["It rained, he said."]).interval.estimate
    spaced = bleu(["It rains , he said ."], ["It rained, he said."]).interval.estimate
    small = bleu(["it rains, he said."], ["It rained, he said."]).interval.estimate
    assert spaced == pytest.approx(plain)  # 13a divides marks by itself; so do not
    assert small < plain


def test_rouge_by_hand():
    """5 of 6 words, 3 of 5 pairs; the longest common subsequence has 5 words."""
    scores = rouge(ANSWERS[:1], TRUTHS[:1])
    assert {name: it.interval.estimate for name, it in scores.items()} == pytest.approx(
        {"rouge1": 100 * 5 / 6, "rouge2": 100 * 3 / 5, "rougeL": 100 * 5 / 6}
    )
    assert rouge(["b a"], ["a b"])["rougeL"].interval.estimate == pytest.approx(50)


def test_rouge_needs_no_nltk():
    code = (
        "import sys; sys.modules['nltk'] = None\n"
        "from labkit.evaluation import rouge\n"
        "print(rouge(['the cat'], ['the cat'])['rougeL'].interval.estimate)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(100)


def test_intervals_draw_whole_documents():
    """Ten copies of each pair tell no more than the pair: naive intervals are too narrow."""
    answers, truths = ANSWERS * 10, TRUTHS * 10
    documents = ["a", "b", "c", "d"] * 10

    def width(score):
        return score.interval.high - score.interval.low

    for of in (
        bleu,
        chrf,
        lambda *a: text_scores(*a)["word F1"],
        lambda *a: answer_scores(*a)["F1"],
    ):
        alone, naive = of(answers, truths), of(ANSWERS, TRUTHS)
        whole = of(answers, truths, documents)
        assert whole.interval.estimate == pytest.approx(naive.interval.estimate)
        assert width(whole) == pytest.approx(width(naive))
        assert width(alone) < 0.6 * width(whole)


@pytest.mark.parametrize("metric", [overlap.bleu, overlap.chrf])
def test_a_lead_draws_the_same_rows_for_both(metric):
    truths = [f"the {word} sat on the mat and slept" for word in ("cat", "dog", "hen", "ox", "owl")]
    better = [truth.replace("slept", "woke") for truth in truths]
    worse = [truth.replace("sat on", "lay under") for truth in better]
    lead = metric(better, truths, over=worse).interval
    apart = metric(better, truths).interval, metric(worse, truths).interval
    assert lead.estimate == pytest.approx(apart[0].estimate - apart[1].estimate)
    assert 0 < lead.low <= lead.estimate <= lead.high
    same = metric(better, truths, over=better).interval
    assert same == (0, 0, 0), "drawn apart, the two would differ"
    with pytest.raises(LabError):
        metric(better, truths, over=worse[:-1])


def test_answers_that_are_none_count():
    scores = answer_scores(["", "the barn", ""], ["", "barn", "attic"])
    assert scores["exact match"].interval.estimate == pytest.approx(200 / 3)


@pytest.mark.parametrize("of", [bleu, chrf, rouge, answer_scores])
def test_what_cannot_be_scored_is_said(of):
    with pytest.raises(LabError, match="0 answers and 0 truths: give equally many, at least 1"):
        of([], [])
    with pytest.raises(LabError, match="1 answers and 2 truths"):
        of(["a"], ["a", "b"])
    with pytest.raises(LabError, match="1 documents of 2 pairs"):
        of(["a", "b"], ["a", "b"], ["x"])

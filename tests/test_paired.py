"""Comparing two models on one test: the sign-flip test, by definition and by its promise."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from labkit.errors import LabError
from labkit.evaluation import paired_test


def test_right_and_wrong_give_mcnemars_exact_test():
    """Only examples on which the two differ count: 3 against 9, of 40."""
    a = np.array([1] * 3 + [0] * 9 + [1] * 20 + [0] * 8)
    b = np.array([0] * 3 + [1] * 9 + [1] * 20 + [0] * 8)
    found = paired_test(a, b)
    assert found.p == pytest.approx(binomtest(3, 12).pvalue)
    assert found.lead.estimate == pytest.approx(-6 / 40)


def test_it_is_the_share_of_flips_by_definition():
    a, b = np.array([1.0, 2.5, 0.3, 4.0, 2.0]), np.array([0.2, 2.0, 0.5, 1.0, 1.9])
    means = [abs(np.mean(signs * (a - b))) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([mean >= abs(np.mean(a - b)) - 1e-12 for mean in means])
    assert paired_test(a, b).p == pytest.approx(expected)


def test_drawn_flips_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 14), np.zeros(14)
    exact = paired_test(a, b).p
    drawn = paired_test([*a, 1e-7], [*b, 0]).p
    assert drawn == pytest.approx(exact, abs=0.015)


def test_pairs_see_what_two_intervals_do_not():
    """Hard texts are hard for both: a lead of 0.1 in scores that scatter by 2."""
    rng = np.random.default_rng(0)
    texts = rng.normal(3, 2, 60)
    a, b = texts + 0.1 + rng.normal(0, 0.1, 60), texts + rng.normal(0, 0.1, 60)
    found = paired_test(a, b)
    assert found.p < 0.001
    assert found.lead.low > 0
    shuffled = paired_test(a, rng.permutation(b))
    assert shuffled.p > 0.2, "the same scores without their pairs"


def test_examples_of_one_document_are_no_witnesses_of_their_own():
    """Nothing new, 300 times: with documents as promised, without them far more often."""
    rng, with_documents, without = np.random.default_rng(0), 0, 0
    documents = np.repeat(np.arange(12), 10)
    for _ in range(300):
        scores = np.repeat(rng.normal(0, 1, 12), 10) + rng.normal(0, 0.3, 120)
        nothing = np.zeros(120)
        with_documents += paired_test(scores, nothing, documents, resamples=1).p <= 0.1
        without += paired_test(scores, nothing, flips=99, resamples=1).p <= 0.1
    assert 0.06 < with_documents / 300 < 0.15
    assert without / 300 > 0.4


def test_equal_models_have_p_1():
    found = paired_test([1, 0, 1], [1, 0, 1])
    assert (found.p, found.lead.estimate) == (1.0, 0.0)
    assert str(found) == "0.0000 [0.0000, 0.0000] p = 1.0000"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([], []), "0 and 0 scores"),
        (([1], [1, 2]), "1 and 2 scores"),
        (([1, 2], [1, 2], ["a"]), "1 documents of 2 scores"),
    ],
)
def test_impossible_comparisons_are_named(arguments, named):
    with pytest.raises(LabError, match=named):
        paired_test(*arguments)

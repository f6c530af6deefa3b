"""Counting models: distributions that sum to one and agree with slow ones written by hand."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.models import AddK, KneserNey
from labkit.models.ngrams import count, modified_discounts, sample


def from_single_rows(model, context):
    """The distribution put together from V texts, each scored by `log_probabilities`."""
    rows = [[*context, w] for w in range(model.vocab_size)]
    return np.exp([model.log_probabilities(row)[-1] for row in rows])


def markov_text(length, vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(vocab_size, 0.1), vocab_size)
    tokens = [0]
    for _ in range(length - 1):
        tokens.append(int(rng.choice(vocab_size, p=transitions[tokens[-1]])))
    return np.array(tokens), transitions


CONTEXTS = ((), (3,), (7,), (1, 2), (7, 7, 7), (0, 7, 1, 2), (5, 4, 3, 2, 1, 0))


def models(order):
    tokens, _ = markov_text(400, 6)  # tokens 6 and 7 of the vocabulary never occur
    yield KneserNey.fit(tokens, 8, order)
    yield AddK.fit(tokens, 8, order, k=0.3)


# --- distributions -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_every_context_sums_to_one(order):
    tokens, _ = markov_text(400, 6)
    for model in models(order):
        for context in (*CONTEXTS, tuple(tokens[10:14]), tuple(tokens[-6:])):
            p = model.next_probabilities(context)
            assert p.shape == (8,)
            assert p.sum() == pytest.approx(1, abs=1e-6), context
            assert (p > 0).all()


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_whole_distribution_is_what_single_texts_get(order):
    tokens, _ = markov_text(400, 6)
    for model in models(order):
        for context in (*CONTEXTS, tuple(tokens[10:14]), tuple(tokens[-6:])):
            np.testing.assert_allclose(
                model.next_probabilities(context), from_single_rows(model, context), rtol=1e-6
            )


def test_all_strings_of_one_length_share_the_probability_of_one():
    tokens, _ = markov_text(60, 3)
    for model in (KneserNey.fit(tokens, 4, 3), AddK.fit(tokens, 4, 3, k=0.5)):
        strings = itertools.product(range(4), repeat=5)
        total = math.fsum(math.exp(model.log_probabilities(s).sum()) for s in strings)
        assert total == pytest.approx(1, abs=1e-5)


def test_a_text_is_scored_token_by_token():
    tokens, _ = markov_text(300, 5)
    for model in (KneserNey.fit(tokens, 5, 4), AddK.fit(tokens, 5, 4)):
        whole = model.log_probabilities(tokens[:30])
        one_by_one = [model.log_probabilities(tokens[: i + 1])[-1] for i in range(30)]
        np.testing.assert_allclose(whole, one_by_one)


# --- counts and add-k --------------------------------------------------------------------------


def test_counts_are_those_of_a_dictionary():
    tokens, _ = markov_text(200, 4)
    levels = count(tokens, 4, 3)
    grams = [()]
    for n, level in enumerate(levels, start=1):
        previous = grams
        grams = [(*previous[key // 4], int(key % 4)) for key in level.keys]
        expected = Counter(tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1))
        assert dict(zip(grams, level.counts.tolist(), strict=True)) == dict(expected)
        if n > 1:
            assert [previous[s] for s in level.suffixes] == [gram[1:] for gram in grams]


def test_add_k_by_hand():
    model = AddK.fit([0, 1, 0, 1, 0, 2], vocab_size=4, order=2, k=0.5)
    # After 0: twice 1, once 2. After 2, the last token: nothing, so all four alike.
    np.testing.assert_allclose(model.next_probabilities([0]), np.array([0.5, 2.5, 1.5, 0.5]) / 5)
    np.testing.assert_allclose(model.next_probabilities([2]), np.full(4, 0.25))
    # Without a history the unigrams answer: 3, 2, 1, 0 of six.
    np.testing.assert_allclose(model.next_probabilities([]), np.array([3.5, 2.5, 1.5, 0.5]) / 8)
    np.testing.assert_allclose(
        np.exp(model.log_probabilities([0, 1, 3])), [3.5 / 8, 2.5 / 5, 0.5 / 4]
    )


def test_another_k_keeps_the_counts():
    tokens, _ = markov_text(200, 5)
    fresh, changed = AddK.fit(tokens, 5, 3, k=0.01), AddK.fit(tokens, 5, 3).with_k(0.01)
    np.testing.assert_array_equal(
        fresh.log_probabilities(tokens), changed.log_probabilities(tokens)
    )


# --- Kneser-Ney against slow references --------------------------------------------------------


def slow_kneser_ney(tokens, vocab_size, order):
    """Equations 26-27 of Chen & Goodman 1998, with dictionaries and exact fractions."""
    grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
    counts = {order: Counter(grams)}
    for n in range(order - 1, 0, -1):
        longer = {tuple(tokens[i : i + n + 1]) for i in range(len(tokens) - n)}
        counts[n] = Counter(g[1:] for g in longer)
    discounts = {}
    for n in counts:
        n1, n2, n3, n4 = (sum(v == j for v in counts[n].values()) for j in (1, 2, 3, 4))
        if 0 in (n1, n2, n3, n4):
            discounts[n] = [Fraction(0), *[Fraction(3, 4)] * 3]
            continue
        y = Fraction(n1, n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        tenth = Fraction(1, 10)
        discounts[n] = [
            Fraction(0), *(min(max(d, tenth), Fraction(j)) for j, d in enumerate(raw, start=1))
        ]  # fmt: skip

    def p(h, word):
        if h is None:
            return Fraction(1, vocab_size)
        n = len(h) + 1
        row = {g[-1]: c for g, c in counts[n].items() if g[:-1] == h}
        lower = p(h[1:] if h else None, word)
        if not row:
            return lower
        total = sum(row.values())
        left = sum(discounts[n][min(c, 3)] for c in row.values()) / total
        own = row.get(word, 0)
        return (own - discounts[n][min(own, 3)]) / total + left * lower

    return p, discounts


def test_agrees_with_exact_fractions():
    tokens, _ = markov_text(700, 40, seed=8)
    model = KneserNey.fit(tokens, vocab_size=41, order=3)
    by_hand, discounts = slow_kneser_ney(tokens.tolist(), 41, 3)
    assert all(discounts[n][1] != Fraction(3, 4) for n in discounts), "use estimated discounts"
    for n, level in enumerate(model.orders, start=1):
        np.testing.assert_allclose(level.discounts, [float(d) for d in discounts[n]], rtol=1e-12)
    contexts = [(40, 40), (3, 40), (40, 3), *itertools.pairwise(tokens[:4].tolist())]
    for context in contexts:
        reference = [by_hand(context, w) for w in range(41)]
        assert sum(reference) == 1  # exactly: they are fractions
        np.testing.assert_allclose(
            model.next_probabilities(context), [float(r) for r in reference], rtol=1e-6
        )


def test_a_bigram_worked_out_on_paper():
    """a b a b a c with D = 3/4 (too little text to estimate it) over V = {a, b, c, d}.

    Bigram types: ab, ba, ac. So the continuation counts are a 1, b 1, c 1, in all 3, and
    P1(b) = (1 - 3/4)/3 + (3 * 3/4 / 3) * 1/4 = 1/12 + 3/16 = 13/48; P1(d) = 3/16.
    After a, 3 bigrams of 2 types: P(b | a) = (2 - 3/4)/3 + (2 * 3/4 / 3) * 13/48 = 5/12 + 13/96.
    """
    model = KneserNey.fit([0, 1, 0, 1, 0, 2], vocab_size=4, order=2)
    rows = model.next_by_order([0])
    np.testing.assert_allclose(rows[0], np.full(4, 1 / 4))
    np.testing.assert_allclose(rows[1], np.array([13, 13, 13, 9]) / 48, rtol=1e-6)
    np.testing.assert_allclose(
        rows[2], [13 / 96, 5 / 12 + 13 / 96, 1 / 12 + 13 / 96, 9 / 96], rtol=1e-6
    )
    np.testing.assert_allclose(model.backoffs([0]), [3 / 4, 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(model.backoffs([3]), [3 / 4, 1])  # d never occurred


def test_discounts_of_chen_and_goodman():
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4] * 1 + [9] * 5)
    y = 10 / 18
    np.testing.assert_allclose(
        modified_discounts(counts),
        [0, 1 - 2 * y * 4 / 10, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2],
    )


def test_continuation_counts_not_frequency_decide_after_an_unknown_context():
    # Token 1 is frequent but only ever follows 0; token 2 follows many different tokens.
    tokens = [0, 1] * 40 + [3, 2, 4, 2, 5, 2, 6, 2, 7, 2]
    p = KneserNey.fit(tokens, 9, order=2).next_probabilities([8])
    assert p[2] > 2 * p[1]
    frequency = Counter(tokens)
    assert frequency[1] > frequency[2]
    naive = AddK.fit(tokens, 9, order=1).next_probabilities([])  # frequency alone
    assert naive[1] > 2 * naive[2]


def test_approaches_the_entropy_of_a_known_source():
    tokens, transitions = markov_text(20_000, 10, seed=1)
    train, test = tokens[:16_000], tokens[16_000:]
    true = -np.log(transitions[test[:-1], test[1:]]).mean()
    loss = {n: -KneserNey.fit(train, 10, n).log_probabilities(test)[1:].mean() for n in (1, 2, 3)}
    assert loss[2] == pytest.approx(true, rel=0.03)
    assert loss[2] < loss[1] - 0.3
    assert loss[3] < true * 1.15


def test_bits_and_nats_agree():
    tokens = np.arange(4)
    model = KneserNey.fit(np.tile(tokens, 2), 4, order=1)
    assert -model.log_probabilities(tokens) == pytest.approx(math.log(4), rel=1e-6)


# --- size --------------------------------------------------------------------------------------


def test_an_ngram_takes_sixteen_bytes_or_less():
    tokens, _ = markov_text(50_000, 300, seed=2)
    model = KneserNey.fit(tokens, 300, order=5)
    distinct = sum(
        len(set(zip(*(tokens[i:] for i in range(n)), strict=False))) for n in range(1, 6)
    )
    assert model.num_ngrams == distinct
    assert 12 * distinct <= model.num_bytes <= 16 * distinct + 4


def test_large_vocabularies_do_not_overflow():
    tokens = np.random.default_rng(0).integers(0, 100_000, 2_000).astype(np.uint32)
    model = KneserNey.fit(tokens, 100_000, order=5)
    seen = model.log_probabilities(tokens)[4:].mean()
    assert seen > model.log_probabilities(tokens[::-1])[4:].mean() + 3


# --- sampling ----------------------------------------------------------------------------------


def test_samples_follow_the_distribution():
    tokens, _ = markov_text(2_000, 5)
    for model in (KneserNey.fit(tokens, 5, 2), AddK.fit(tokens, 5, 2)):
        draws = [sample(model, [2], 1, seed=seed)[0] for seed in range(3_000)]
        shares = np.bincount(draws, minlength=5) / len(draws)
        np.testing.assert_allclose(shares, model.next_probabilities([2]), atol=0.03)


def test_a_sample_reads_the_end_of_its_context_and_stops():
    model = KneserNey.fit(np.tile([0, 1, 2, 3], 500), 4, order=3)
    assert sample(model, [3, 0, 1], 6, seed=1) == [2, 3, 0, 1, 2, 3]
    assert sample(model, [0, 1], 9, seed=1, end_id=0) == [2, 3]
    assert len(sample(model, [], 7, seed=1)) == 7
    assert sample(model, [], 7, seed=5) == sample(model, [], 7, seed=5)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KneserNey, AddK])
@pytest.mark.parametrize(
    ("tokens", "vocab_size", "order", "message"),
    [
        ([0, 1, 2], 3, 6, r"order 6 is outside 1\.\.5"),
        ([0, 1, 7], 3, 2, r"token 7 is outside 0\.\.2"),
        ([0, -1, 1], 3, 2, "token -1"),
        ([], 3, 1, "N >= 1"),
        ([0, 1], 3, 3, "2 tokens are fewer"),
    ],
)
def test_bad_input(kind, tokens, vocab_size, order, message):
    with pytest.raises(LabError, match=message):
        kind.fit(tokens, vocab_size, order)


@pytest.mark.parametrize("k", [0, -1, math.inf, math.nan])
def test_k_must_be_positive(k):
    with pytest.raises(LabError, match="k is"):
        AddK.fit([0, 1, 2], 3, 1, k)
    with pytest.raises(LabError, match="k is"):
        AddK.fit([0, 1, 2], 3, 1).with_k(k)


def test_a_context_outside_the_vocabulary_and_no_tokens_to_draw():
    model = KneserNey.fit([0, 1, 2, 0], 3, 2)
    with pytest.raises(LabError, match="token 9"):
        model.next_probabilities([9])
    with pytest.raises(LabError, match="max_new_tokens is 0"):
        sample(model, [0], 0)

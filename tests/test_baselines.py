"""The n-gram model is a probability distribution and matches a slow one written by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from labkit.baselines import KneserNey, compressed_bits_per_byte
from labkit.errors import LabError


def distribution(model, context):
    rows = [[*context, w] for w in range(model.vocab_size)]
    return np.exp([model.log_probabilities(row)[-1] for row in rows])


def markov_text(length, vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(vocab_size, 0.1), vocab_size)
    tokens = [0]
    for _ in range(length - 1):
        tokens.append(int(rng.choice(vocab_size, p=transitions[tokens[-1]])))
    return np.array(tokens), transitions


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_every_context_sums_to_one(order):
    tokens, _ = markov_text(400, 6)
    model = KneserNey.fit(tokens, vocab_size=8, order=order)  # tokens 6 and 7 never occur
    contexts = [(), (3,), (7,), (1, 2), (7, 7, 7), tuple(tokens[10:14]), tuple(tokens[-6:])]
    for context in contexts:
        p = distribution(model, context)
        assert p.sum() == pytest.approx(1, abs=1e-5), context
        assert (p > 0).all()


def slow_kneser_ney(tokens, vocab_size, order):
    """The recursion of Chen & Goodman with dictionaries: an independent reference."""
    grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
    counts = {order: Counter(grams)}
    for n in range(order - 1, 0, -1):
        longer = {tuple(tokens[i : i + n + 1]) for i in range(len(tokens) - n)}
        counts[n] = Counter(g[1:] for g in longer)
    discounts = {}
    for n in counts:
        n1, n2, n3, n4 = (sum(v == j for v in counts[n].values()) for j in (1, 2, 3, 4))
        assert 0 not in (n1, n2, n3, n4), "choose a text in which each count can be estimated"
        y = n1 / (n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        discounts[n] = [0, *(min(max(d, 0.1), j) for j, d in enumerate(raw, start=1))]

    def p(h, word):
        if h is None:
            return 1 / vocab_size
        n = len(h) + 1
        row = {g[-1]: c for g, c in counts[n].items() if g[:-1] == h}
        lower = p(h[1:] if h else None, word)
        if not row:
            return lower
        total = sum(row.values())
        left = sum(discounts[n][min(c, 3)] for c in row.values()) / total
        own = row.get(word, 0)
        return (own - discounts[n][min(own, 3)]) / total + left * lower

    return p


def test_agrees_with_the_recursion_written_by_hand():
    tokens, _ = markov_text(700, 40, seed=8)
    model = KneserNey.fit(tokens, vocab_size=41, order=3)
    by_hand = slow_kneser_ney(tokens.tolist(), 41, 3)
    contexts = [(40, 40), (3, 40), (40, 3), *itertools.pairwise(tokens[:4].tolist())]
    for context in contexts:
        reference = [by_hand(context, w) for w in range(41)]
        np.testing.assert_allclose(distribution(model, context), reference, rtol=1e-5)


def test_approaches_the_entropy_of_a_known_source():
    tokens, transitions = markov_text(20_000, 10, seed=1)
    train, test = tokens[:16_000], tokens[16_000:]
    true = -np.log(transitions[test[:-1], test[1:]]).mean()
    loss = {n: -KneserNey.fit(train, 10, n).log_probabilities(test)[1:].mean() for n in (1, 2, 3)}
    assert loss[2] == pytest.approx(true, rel=0.03)
    assert loss[2] < loss[1] - 0.3
    assert loss[3] < true * 1.15


def test_continuation_counts_not_frequency_decide_after_an_unknown_context():
    # Token 1 is frequent but only ever follows 0; token 2 follows many different tokens.
    tokens = [0, 1] * 40 + [3, 2, 4, 2, 5, 2, 6, 2, 7, 2]
    p = distribution(KneserNey.fit(tokens, 9, order=2), (8,))
    assert p[2] > 2 * p[1]
    frequency = Counter(tokens)
    assert frequency[1] > frequency[2]


def test_a_text_is_scored_token_by_token():
    tokens, _ = markov_text(300, 5)
    model = KneserNey.fit(tokens, 5, order=4)
    whole = model.log_probabilities(tokens[:30])
    one_by_one = [model.log_probabilities(tokens[: i + 1])[-1] for i in range(30)]
    np.testing.assert_allclose(whole, one_by_one)


def test_large_vocabularies_do_not_overflow():
    tokens = np.random.default_rng(0).integers(0, 100_000, 2_000).astype(np.uint32)
    model = KneserNey.fit(tokens, 100_000, order=5)
    seen = model.log_probabilities(tokens)[4:].mean()
    assert seen > model.log_probabilities(tokens[::-1])[4:].mean() + 3
    assert model.num_bytes >= 16 * model.num_ngrams * 0.7


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
def test_bad_input(tokens, vocab_size, order, message):
    with pytest.raises(LabError, match=message):
        KneserNey.fit(tokens, vocab_size, order)


def test_compression_of_noise_costs_eight_bits_and_training_text_helps():
    noise = np.random.default_rng(0).bytes(20_000)
    for method in ("gzip", "xz"):
        assert compressed_bits_per_byte(noise, method=method) == pytest.approx(8, abs=0.05)
        assert compressed_bits_per_byte(noise, noise, method=method) < 0.2


def test_gzip_forgets_what_xz_remembers():
    rng = np.random.default_rng(0)
    page, filler = rng.bytes(5_000), rng.bytes(100_000)
    assert compressed_bits_per_byte(page, page + filler, "gzip") > 7.9
    assert compressed_bits_per_byte(page, filler + page, "gzip") < 1.5
    assert compressed_bits_per_byte(page, page + filler, "xz") < 1.5


def test_gzip_matches_the_library():
    import gzip

    text = b"the cat sat on the mat. " * 50
    header_and_trailer = 18 - 6  # gzip's against zlib's
    expected = 8 * (len(gzip.compress(text, 9)) - header_and_trailer) / len(text)
    assert compressed_bits_per_byte(text, method="gzip") == pytest.approx(expected)


def test_compression_bad_input():
    with pytest.raises(LabError, match="0 bytes"):
        compressed_bits_per_byte(b"")
    with pytest.raises(LabError, match="zip9"):
        compressed_bits_per_byte(b"a", method="zip9")  # type: ignore[arg-type]


def test_bits_and_nats_agree():
    tokens = np.arange(4)
    model = KneserNey.fit(np.tile(tokens, 2), 4, order=1)
    nats = -model.log_probabilities(tokens)
    assert nats == pytest.approx(math.log(4), rel=1e-6)

"""mixing: shares from sizes, a deal exact to one example, and the law of what a share buys."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.batches import Batches
from labkit.batches.mixing import PERIOD, Law, Mixture, fit_law, temperature_proportions
from labkit.errors import LabError

shares_of_some = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8)


def numbered(n, offset=0):
    return [{"input_ids": torch.tensor([offset + i])} for i in range(n)]


def mixture(sizes=(7, 50, 3), shares=(0.5, 0.3, 0.2), batch_size=4, **options):
    names = "abcdefgh"[: len(sizes)]
    sources = {
        name: numbered(n, 1000 * k) for k, (name, n) in enumerate(zip(names, sizes, strict=True))
    }
    return Mixture(sources, dict(zip(names, shares, strict=True)), batch_size, **options)


def turns(mixed, length):
    return np.array([mixed.names.index(mixed.place(i)[0]) for i in range(length)])


def furthest(turns_N, shares_K):
    """Largest distance of a count from its share, over every prefix and source."""
    counts_NK = (turns_N[:, None] == np.arange(len(shares_K))).cumsum(0)
    return np.abs(counts_NK - np.arange(1, len(turns_N) + 1)[:, None] * np.array(shares_K)).max()


# --- shares ---


def test_temperature_goes_from_by_size_to_all_alike():
    sizes = [800, 150, 50]
    assert temperature_proportions(sizes).tolist() == pytest.approx([0.8, 0.15, 0.05])
    assert temperature_proportions(sizes, math.inf).tolist() == pytest.approx([1 / 3] * 3)
    by_hand = np.sqrt(sizes) / np.sqrt(sizes).sum()
    assert temperature_proportions(sizes, 2).tolist() == pytest.approx(by_hand.tolist())


def test_temperature_of_huge_sizes_does_not_overflow():
    assert temperature_proportions([1e300, 1e300], 1).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("sizes", "temperature", "message"),
    [([], 1, "at least 1"), ([1, 0], 1, "above 0"), ([1, 2], 0.5, "temperature 0.5")],
)
def test_impossible_shares_are_named(sizes, temperature, message):
    with pytest.raises(LabError, match=message):
        temperature_proportions(sizes, temperature)


# --- the deal ---


@settings(max_examples=20, deadline=None)
@given(shares_of_some, st.integers(0, 99))
def test_every_prefix_is_within_one_example_of_its_shares(shares, seed):
    mixed = mixture([5] * len(shares), shares, seed=seed)
    effective = list(mixed.proportions.values())
    found = turns(mixed, 1500)
    assert furthest(found, effective) < 1
    assert np.allclose(effective, np.array(shares) / sum(shares), atol=1 / PERIOD)


def test_the_bound_holds_across_periods_and_a_draw_breaks_it():
    mixed = mixture()
    found = turns(mixed, 2 * PERIOD + 500)
    assert furthest(found, [0.5, 0.3, 0.2]) < 1
    drawn = np.random.default_rng(0).choice(3, 2000, p=[0.5, 0.3, 0.2])
    assert furthest(drawn, [0.5, 0.3, 0.2]) > 5


def test_each_source_is_seen_once_before_it_comes_again():
    mixed = mixture()
    for name, n in (("a", 7), ("b", 50), ("c", 3)):
        places = map(mixed.place, range(PERIOD + 600))  # past the end of a period of the deal
        items = [item for source, item in places if source == name]
        epochs = [items[i : i + n] for i in range(0, len(items) - n + 1, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        if n > 3:
            assert epochs[0] != epochs[1], "each time around has its own order"


def test_a_position_is_a_pure_function_of_seed_and_position():
    forwards = [mixture(seed=3).place(i) for i in range(200)]
    mixed = mixture(seed=3)
    backwards = [mixed.place(i) for i in reversed(range(200))][::-1]
    assert forwards == backwards
    assert forwards != [mixture(seed=4).place(i) for i in range(200)]


def test_it_is_batches_with_ranks_and_micro_batches():
    mixed = mixture()
    assert isinstance(mixed, Batches)
    whole = mixed.micro_batches(5)[0]["input_ids"].flatten().tolist()
    by_place = [mixed.place(5 * 4 + i) for i in range(4)]
    assert whole == [1000 * "abc".index(name) + item for name, item in by_place]
    ranks = [mixed.micro_batches(5, 1, rank, 2) for rank in (0, 1)]
    dealt = [batch["input_ids"].item() for pair in zip(*ranks, strict=True) for batch in pair]
    assert dealt == whole
    everything = torch.cat([batch["input_ids"] for batch in mixed.evaluation_batches()])
    assert len(everything) == 60


def test_indices_count_through_the_sources_in_order():
    mixed = mixture(shuffle=False)
    assert mixed.place(0)[1] == 0
    values = [
        int(mixed.examples[i]["input_ids"]) for step in range(20) for i in mixed.indices(step)
    ]
    assert [v for v in values if v < 1000] == [i % 7 for i in range(40)]
    with pytest.raises(IndexError, match="example 60 of 60"):
        mixed.examples[60]


def test_a_share_of_zero_never_comes_and_shares_need_no_norm():
    mixed = mixture(shares=(2, 0, 6))
    assert mixed.proportions == {"a": 0.25, "b": 0.0, "c": 0.75}
    assert set(turns(mixed, 500)) == {0, 2}


def test_corruption_follows_the_place_in_the_stream():
    def corrupt(example, random):
        return {"input_ids": example["input_ids"] * 0 + int(random.integers(1 << 30))}

    mixed = mixture(corrupt=corrupt)
    whole = mixed.micro_batches(2)[0]["input_ids"].flatten().tolist()
    parts = [batch["input_ids"].item() for batch in mixed.micro_batches(2, 1)]
    assert whole == parts
    assert len(set(itertools.chain(whole, parts))) == 4
    plain = mixture().micro_batches(2)[0]["input_ids"].flatten().tolist()
    assert not set(whole) & set(plain), "the corruption must be applied"


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"z": 1.0}, "share of 'z': the sources are a"),
        ({"a": -0.1, "b": 1.0}, "0 or more"),
        ({"a": 0.0}, "one above 0"),
        ({"a": 1e-6, "b": 1.0}, "share of 'a' is 1e-06"),
        ({"a": math.nan, "b": 1.0}, "0 or more"),
    ],
)
def test_impossible_mixtures_are_named(shares, message):
    with pytest.raises(LabError, match=message):
        Mixture({"a": numbered(2), "b": numbered(2)}, shares, 2)


# --- the law ---


def test_a_law_is_found_again():
    law = Law(c=1.7, k=2.5, t=-6.0)
    shares = [0.05, 0.15, 0.25, 0.3, 0.5]
    found = fit_law(shares, [float(law(r)) for r in shares])
    assert found == pytest.approx(law, rel=1e-3)
    assert float(found(0.8)) == pytest.approx(float(law(0.8)), abs=1e-4)


def test_the_fit_is_the_best_of_all_rates():
    generator = np.random.default_rng(0)
    shares = np.array([0.05, 0.15, 0.25, 0.3, 0.5])
    losses = 2 + np.exp(-5 * shares) + 0.02 * generator.standard_normal(5)

    def error(law):
        return ((law(shares) - losses) ** 2).sum()

    found = fit_law(shares, losses)
    for factor in (0.98, 1.02):
        for field in ("c", "k", "t"):
            assert error(found) < error(found._replace(**{field: getattr(found, field) * factor}))


def test_two_shares_do_not_make_a_law():
    with pytest.raises(LabError, match="at least 3 different shares"):
        fit_law([0.1, 0.5, 0.5], [3.0, 2.0, 2.1])

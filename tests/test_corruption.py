"""corruption: the masking and span recipes are what they say, token by token and on average."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.batches import IGNORE_INDEX, CorruptSpans, MaskTokens, in_turn, restore_spans
from labkit.errors import LabError

VOCAB, MASK = 50, 49
SPECIAL = (0, 1, 48)
SENTINELS = tuple(range(100, 140))


def text(length, seed=0):
    return {"input_ids": torch.from_numpy(np.random.default_rng(seed).integers(2, 48, length))}


def drawn(recipe, example, times):
    return [recipe(example, np.random.default_rng([7, i])) for i in range(times)]


def close_to(count, trials, share):
    """Within 4.5 standard deviations of a binomial: fails by chance once in 150,000 runs."""
    return abs(count - trials * share) <= 4.5 * (trials * share * (1 - share)) ** 0.5


# --- masked tokens ---


def test_masking_chooses_15_percent_and_splits_them_80_10_10():
    ids = text(100)["input_ids"]
    results = drawn(MaskTokens(MASK, VOCAB, SPECIAL), {"input_ids": ids}, 2000)
    labels = torch.stack([r["labels"] for r in results])
    inputs = torch.stack([r["input_ids"] for r in results])
    chosen = labels != IGNORE_INDEX
    number = int(chosen.sum())
    assert chosen.sum(1).unique().tolist() == [15]
    hidden = (inputs == MASK) & chosen
    kept = (inputs == ids) & chosen
    assert close_to(int(hidden.sum()), number, 0.8)
    # One random token in 46 is the original by chance.
    assert close_to(int(kept.sum()), number, 0.1 + 0.1 / 46)
    assert close_to(number - int(hidden.sum()) - int(kept.sum()), number, 0.1 - 0.1 / 46)
    others = inputs[chosen & ~hidden & ~kept]
    assert set(others.tolist()) == set(range(2, 48)), "random tokens are all ordinary ones"
    per_place = chosen.float().mean(0)
    assert (per_place - 0.15).abs().max() < 0.04, "every place is chosen equally often"


def test_labels_hold_the_original_and_the_rest_of_the_input_is_untouched():
    example = {**text(64), "token_type_ids": torch.ones(64)}
    for result in drawn(MaskTokens(MASK, VOCAB, SPECIAL), example, 20):
        chosen = result["labels"] != IGNORE_INDEX
        assert torch.equal(result["labels"][chosen], example["input_ids"][chosen])
        assert torch.equal(result["input_ids"][~chosen], example["input_ids"][~chosen])
        assert torch.equal(result["token_type_ids"], example["token_type_ids"])
    assert torch.equal(example["input_ids"], text(64)["input_ids"]), "the example itself stays"


def test_special_tokens_are_never_chosen():
    ids = torch.tensor([0, 5, 1, 48, MASK, 7, 0])
    recipe = MaskTokens(MASK, VOCAB, SPECIAL, share=1.0)
    for result in drawn(recipe, {"input_ids": ids}, 50):
        assert (result["labels"] != IGNORE_INDEX).tolist() == [0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("length", [1, 3, 10, 33])
def test_the_share_is_exact_on_average_in_texts_of_any_length(length):
    results = drawn(MaskTokens(MASK, VOCAB, SPECIAL), text(length), 4000)
    number = sum(int((r["labels"] != IGNORE_INDEX).sum()) for r in results)
    assert close_to(number, 4000 * length, 0.15)


def test_a_text_of_special_tokens_has_no_target():
    (result,) = drawn(MaskTokens(MASK, VOCAB, SPECIAL), {"input_ids": torch.tensor([0, 1])}, 1)
    assert result["labels"].tolist() == [IGNORE_INDEX] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 1.5}, "share 1.5 is out of range"),
        ({"random": 0.6, "keep": 0.6}, r"random \+ keep = 1.2 is out of range"),
        ({"special_ids": range(50)}, "all 50 ids are special"),
    ],
)
def test_impossible_masking_is_named(changes, words):
    with pytest.raises(LabError, match=words):
        MaskTokens(**{"mask_id": MASK, "vocab_size": VOCAB, "special_ids": SPECIAL, **changes})


# --- spans ---


def spans_recipe(**changes):
    return CorruptSpans(SENTINELS, SPECIAL, start_id=0, **changes)


@settings(deadline=None, max_examples=100)
@given(
    length=st.integers(1, 120),
    density=st.floats(0.05, 0.9),
    mean_length=st.floats(1.0, 6.0),
    seed=st.integers(0, 99),
)
def test_input_and_target_together_hold_the_whole_text(length, density, mean_length, seed):
    example = text(length, seed)
    recipe = CorruptSpans(range(100, 300), SPECIAL, 0, density, mean_length)
    result = recipe(example, np.random.default_rng(seed))
    source, target = result["input_ids"].tolist(), result["labels"].tolist()
    assert restore_spans(source, target, range(100, 300)) == example["input_ids"].tolist()
    assert [t for t in target if t >= 100] == [*[t for t in source if t >= 100], target[-1]]
    assert result["decoder_input_ids"].tolist() == [0, *target[:-1]]


@pytest.mark.parametrize("length", [7, 64, 100])
def test_span_density_and_mean_length_are_as_asked(length):
    cut, spans, times = 0, 0, 3000
    for i in range(times):
        found = spans_recipe().spans(text(length)["input_ids"].numpy(), np.random.default_rng(i))
        cut += sum(stop - start for start, stop in found)
        spans += len(found)
    assert cut / (times * length) == pytest.approx(0.15, rel=0.02)
    if length >= 20:  # a text too short for one whole span has shorter ones
        assert cut / spans == pytest.approx(3.0, rel=0.02)


def test_spans_never_touch_and_reach_every_place():
    hits = np.zeros(64)
    for i in range(4000):
        found = spans_recipe().spans(text(64)["input_ids"].numpy(), np.random.default_rng(i))
        assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(found))
        for start, stop in found:
            hits[start:stop] += 1
    assert hits.min() > 0.05 * 4000, "the first and the last token are cut out, too"
    assert hits.max() < 0.22 * 4000


def test_no_span_crosses_from_one_document_into_the_next():
    ids = text(60)["input_ids"]
    ids[[10, 25, 26, 50]] = 0  # ends of text
    crossing = 0
    for i in range(500):
        result = spans_recipe(density=0.5)({"input_ids": ids}, np.random.default_rng(i))
        assert not set(result["labels"].tolist()) & set(SPECIAL)
        naive = CorruptSpans(SENTINELS, (), 0, density=0.5)(
            {"input_ids": ids}, np.random.default_rng(i)
        )
        crossing += bool(set(naive["labels"].tolist()) & set(SPECIAL))
    assert crossing > 400, "without borders most windows have such a span"


def test_too_few_sentinels_are_named():
    with pytest.raises(LabError, match="sentinels, there are 2"):
        CorruptSpans((100, 101), SPECIAL, 0)(text(100), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "words"), [({"density": 1.0}, "density 1.0"), ({"mean_length": 0.5}, "mean_length")]
)
def test_impossible_spans_are_named(changes, words):
    with pytest.raises(LabError, match=words):
        spans_recipe(**changes)


def test_restoring_leaves_a_gap_where_the_target_is_silent():
    assert restore_spans([1, 100, 2, 101, 3], [101, 7, 102], SENTINELS) == [1, 2, 7, 3]


# --- in turn ---


def test_corruptions_run_in_turn_on_one_generator():
    def append(example, random):
        new = torch.tensor([int(random.integers(2, 48))])
        return {"input_ids": torch.cat((example["input_ids"], new))}

    result = in_turn(append, append, MaskTokens(MASK, VOCAB, SPECIAL))(
        text(4), np.random.default_rng(0)
    )
    assert len(result["input_ids"]) == len(result["labels"]) == 6

"""batches: tokens on disk, windows, packing, padding, an order that is a function of the step."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import batches
from labkit.batches import Batches, Pad, RollingWindows, Windows
from labkit.errors import LabError


def numbered(n):
    return [{"input_ids": torch.tensor([i, i]), "labels": torch.tensor(i)} for i in range(n)]


# --- tokens ---


def test_tokens_round_trip_through_disk(tmp_path):
    documents = [[1, 2, 3], [], [4]]
    tokens = batches.write_tokens(tmp_path / "t.bin", iter(documents), 10, end_of_text_id=9)
    assert tokens.tolist() == [1, 2, 3, 9, 9, 4, 9]
    assert tokens.dtype == np.uint16
    assert isinstance(tokens, np.memmap)
    assert json.loads((tmp_path / "t.bin.json").read_text())["documents"] == 3


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokens = batches.write_tokens(tmp_path / "t.bin", [[70_000]], 100_000, 0)
    assert tokens.tolist() == [70_000, 0]


def test_a_torn_token_file_is_named(tmp_path):
    batches.write_tokens(tmp_path / "t.bin", [[1] * 50], 10, 0)
    with (tmp_path / "t.bin").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(LabError, match="holds 20 tokens instead of 51"):
        batches.read_tokens(tmp_path / "t.bin")


def test_ids_outside_the_vocabulary_leave_nothing_behind(tmp_path):
    with pytest.raises(LabError, match="document 2 holds token 12"):
        batches.write_tokens(tmp_path / "t.bin", [[1], [12]], 10, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LabError, match="is missing"):
        batches.read_tokens(tmp_path / "t.bin")


def test_no_documents_is_named(tmp_path):
    with pytest.raises(LabError, match="0 documents"):
        batches.write_tokens(tmp_path / "t.bin", [], 10, 0)
    assert list(tmp_path.iterdir()) == []


def test_windows_can_be_iterated_and_end():
    windows = Windows(np.arange(10), context_length=4)
    assert [w["input_ids"].tolist() for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for outside in (-1, 2):
        with pytest.raises(IndexError, match=f"window {outside} of 2"):
            windows[outside]


# --- windows and packing ---


def test_windows_shift_the_targets_once():
    windows = Windows(np.arange(10), context_length=4)
    assert len(windows) == 2
    assert windows[1]["input_ids"].tolist() == [4, 5, 6, 7]
    assert windows[1]["labels"].tolist() == [5, 6, 7, 8]


def test_text_shorter_than_a_context_is_named():
    with pytest.raises(LabError, match="has 4 tokens, a context of 4 needs at least 5"):
        Windows(np.arange(4), 4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 50), max_size=20), min_size=1, max_size=12))
def test_packing_keeps_every_target_exactly_once(documents):
    items = batches.pack_documents(documents, context_length=8)
    got = sorted(
        (int(a), int(b))
        for item in items
        for a, b in zip(item["input_ids"], item["labels"], strict=True)
        if b != batches.IGNORE_INDEX
    )
    expected = sorted(pair for d in documents for pair in itertools.pairwise(d))
    assert got == expected


def test_packing_restarts_positions_in_each_document():
    (item,) = batches.pack_documents([[1, 2, 3], [4, 5]], context_length=5)
    assert item["position_ids"].tolist() == [0, 1, 0, 0, 0]
    assert item["document_ids"].tolist() == [0, 0, 1, -1, -1]
    assert item["labels"].tolist() == [2, 3, 5, -100, -100]


def test_instruction_loss_counts_answer_and_end_only():
    item = batches.instruction_example([1, 2, 3], [7, 8], end_id=9)
    assert item["input_ids"].tolist() == [1, 2, 3, 7, 8]
    assert item["labels"].tolist() == [-100, -100, 7, 8, 9]


@pytest.mark.parametrize(("prompt", "answer"), [([], [1]), ([1], [])])
def test_empty_prompt_or_answer_is_named(prompt, answer):
    with pytest.raises(LabError, match="both need at least 1"):
        batches.instruction_example(prompt, answer, 0)


def test_padding_is_of_the_batch_and_marked():
    examples = [
        {"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([6, 7, 8])},
        {"input_ids": torch.tensor([5]), "labels": torch.tensor([6])},
    ]
    batch = Pad(pad_id=0, multiple=4)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[6, 7, 8, -100], [6, -100, -100, -100]]


def test_padding_keeps_the_format_of_what_it_pads():
    examples = [
        {"input_ids": torch.tensor([5] * n), "weights": torch.full((n,), 0.5)} for n in (2, 1)
    ]
    batch = Pad(pad_id=0, multiple=2)(examples)
    assert batch["weights"].tolist() == [[0.5, 0.5], [0.5, 0.0]]


# --- the order ---


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 12),
    seed=st.integers(0, 5),
    bucketed=st.booleans(),
)
def test_every_example_is_seen_exactly_once_an_epoch(n, size, seed, bucketed):
    """Also where lengths sort the batches, and where a batch lies across two epochs."""
    lengths = list(range(n, 0, -1)) if bucketed else None
    data = Batches(numbered(n), size, seed=seed, lengths=lengths, bucket=2)
    seen = [i for step in range(2 * n) for i in data.indices(step)]
    assert len(seen) == 2 * n * size
    for epoch in range(2 * size):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n)), f"epoch {epoch}"


def test_the_order_is_a_pure_function_of_seed_and_step():
    first = Batches(numbered(23), 5, seed=3)
    later = Batches(numbered(23), 5, seed=3)
    expected = [first.indices(s) for s in range(20)]
    assert [later.indices(s) for s in reversed(range(20))] == expected[::-1]
    assert Batches(numbered(23), 5, seed=4).indices(0) != expected[0]


def test_epochs_differ_from_each_other():
    data = Batches(numbered(20), 20)
    assert data.indices(0) != data.indices(1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro", [None, 1, 3])
def test_ranks_and_micro_batches_split_the_same_global_batch(world_size, micro):
    data = Batches(numbered(30), 12, seed=1)
    parts = [data.micro_batches(2, micro, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    got = sorted(int(x) for part in parts for b in part for x in b["labels"])
    assert got == sorted(data.indices(2))


def test_buckets_need_less_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 200, size=512)
    examples = [{"input_ids": torch.ones(n, dtype=torch.long)} for n in lengths]

    def padded(data):
        sizes = [data.micro_batches(s)[0]["input_ids"].numel() for s in range(32)]
        return sum(sizes) / sum(lengths[i] for s in range(32) for i in data.indices(s))

    plain = padded(Batches(examples, 16, Pad(0, 1)))
    bucketed = padded(Batches(examples, 16, Pad(0, 1), lengths=lengths))
    assert bucketed < 1.1 < 1.5 < plain


def test_evaluation_sees_each_example_once():
    data = Batches(numbered(11), 4, lengths=[1] * 11)
    assert [len(b["labels"]) for b in data.evaluation_batches()] == [4, 4, 3]
    assert [int(x) for b in data.evaluation_batches() for x in b["labels"]] == list(range(11))


def test_indivisible_batch_is_named():
    with pytest.raises(LabError, match="batch_size 5 does not divide among 2 ranks"):
        Batches(numbered(9), 5).micro_batches(0, rank=0, world_size=2)


@pytest.mark.parametrize(("n", "size", "words"), [(0, 1, "0 examples"), (3, 0, "batch_size 0")])
def test_empty_data_or_batch_is_named(n, size, words):
    with pytest.raises(LabError, match=words):
        Batches(numbered(n), size)


def test_rolling_windows_make_every_token_a_target_and_cut_elsewhere_in_each_epoch():
    tokens = np.arange(1003)
    T, epochs = 10, 12
    rolling = RollingWindows(tokens, T)
    plain = Windows(tokens, T)
    n = len(rolling)
    assert n == len(plain) == 100
    assert all(torch.equal(rolling[i]["labels"], plain[i]["labels"]) for i in range(n))
    targets, first = set(), set()
    for epoch in range(epochs):
        items = [rolling[epoch * n + i] for i in range(n)]
        seen = torch.cat([item["labels"] for item in items]).tolist()
        assert len(set(seen)) == len(seen) == n * T, "once an epoch"
        for item in items:
            assert torch.equal(item["labels"], (item["input_ids"] + 1) % 1003), "one ring"
        targets |= set(seen)
        first |= {int(item["input_ids"][0]) % T for item in items}
    assert targets == set(range(1003))
    assert len(first) == T, "every place of the text stands first in some epoch"
    never = set(range(1003)) - set(torch.cat([w["labels"] for w in plain]).tolist())
    assert never == {0, 1001, 1002}, "which the windows of every epoch alike never ask for"


def test_batches_take_the_windows_of_their_epoch_however_they_are_cut():
    tokens = np.arange(95)
    rolling = RollingWindows(tokens, 10)  # 9 an epoch
    batches = Batches(rolling, 6, seed=3)
    flat = [row for step in range(6) for row in batches.micro_batches(step)[0]["input_ids"]]
    for epoch in range(4):
        wanted = {int(rolling[9 * epoch + i]["input_ids"][0]) for i in range(9)}
        assert {int(row[0]) for row in flat[9 * epoch : 9 * epoch + 9]} == wanted
    assert {int(row[0]) for row in flat[:9]} != {int(row[0]) for row in flat[9:18]}
    for step in range(6):
        (whole,) = batches.micro_batches(step)
        parts = [b for rank in range(3) for b in batches.micro_batches(step, 1, rank, 3)]
        cut = {int(b["input_ids"][0, 0]) for b in parts}
        assert cut == set(whole["input_ids"][:, 0].tolist())
    fixed = Batches(Windows(tokens, 10), 6, seed=3)
    starts = {int(row[0]) for step in range(6) for row in fixed.micro_batches(step)[0]["input_ids"]}
    assert starts == set(range(0, 90, 10)), "plain windows begin at the same places for ever"


def test_an_endless_sequence_has_no_item_before_the_first():
    with pytest.raises(IndexError, match="window -1"):
        RollingWindows(np.arange(30), 4)[-1]

"""pairs: neighbours, next sentence, sentence order, groups for contrast."""

import numpy as np
import pytest
import torch

from labkit.batches import NextSentence, SentenceOrder, document_windows, neighbours, pair_groups
from labkit.errors import LabError

CLS, SEP = 1, 2
# Token = 100 * document + place: every token tells where it comes from.
DOCUMENTS = [[100 * d + i for i in range(n)] for d, n in ((1, 9), (2, 14), (3, 4), (4, 8))]


def test_windows_stay_inside_a_document_and_reach_its_end():
    items = [item["input_ids"].tolist() for item in document_windows(DOCUMENTS, 5)]
    assert items == [
        [100, 101, 102, 103, 104], [104, 105, 106, 107, 108],
        [200, 201, 202, 203, 204], [205, 206, 207, 208, 209], [209, 210, 211, 212, 213],
        [400, 401, 402, 403, 404], [403, 404, 405, 406, 407],
    ]  # fmt: skip


def test_neighbours_are_neighbours():
    pairs = neighbours(DOCUMENTS, 4)
    assert [p["document"].item() for p in pairs] == [0, 1, 1, 3]
    for pair in pairs:
        joined = torch.cat((pair["first"], pair["second"]))
        assert torch.equal(joined.diff(), torch.ones(7, dtype=torch.long))


def test_half_of_the_pairs_are_true_and_the_rest_from_other_documents():
    pool = neighbours(DOCUMENTS, 4)
    draw, pair, true = NextSentence(pool, CLS, SEP), pool[1], 0
    for i in range(2000):
        item = draw(pair, np.random.default_rng(i))
        ids, label = item["input_ids"].tolist(), int(item["next_sentence_label"])
        assert (ids[0], ids[5], ids[10]) == (CLS, SEP, SEP)
        assert ids[1:5] == pair["first"].tolist()
        assert item["token_type_ids"].tolist() == [0] * 6 + [1] * 5
        if label:
            assert ids[6:10] == pair["second"].tolist()
        else:
            assert ids[6] // 100 != 2, "the random piece is of another document"
        true += label
    assert abs(true - 1000) < 4.5 * 500**0.5


def test_sentence_order_swaps_half_of_the_pairs():
    pool = neighbours(DOCUMENTS, 4)
    draw, swapped = SentenceOrder(CLS, SEP), 0
    for i in range(2000):
        item = draw(pool[0], np.random.default_rng(i))
        ids = item["input_ids"].tolist()
        assert sorted(ids[1:5] + ids[6:10]) == list(range(100, 108))
        assert (ids[1] < ids[6]) == bool(item["next_sentence_label"])
        swapped += ids[1] > ids[6]
    assert abs(swapped - 1000) < 4.5 * 500**0.5


def test_groups_hold_each_pair_at_most_once_in_its_place():
    pairs = neighbours([[100 * d + i for i in range(21)] for d in range(1, 6)], 3)
    groups = pair_groups(pairs, 4, seed=3)
    assert len(groups) == len(pairs) // 4
    first, second = torch.cat([g["input_ids"] for g in groups], dim=1)
    assert torch.equal(second - first, torch.full_like(first, 3))
    assert len(set(first[:, 0].tolist())) == 4 * len(groups)
    again = pair_groups(pairs, 4, seed=4)
    assert not torch.equal(groups[0]["input_ids"], again[0]["input_ids"])


def test_too_little_is_named():
    with pytest.raises(LabError, match="length 30 is out of range: the longest document has 14"):
        document_windows(DOCUMENTS, 30)
    with pytest.raises(LabError, match="no document holds two such pieces"):
        neighbours(DOCUMENTS, 8)
    with pytest.raises(LabError, match="the pool holds 1 document"):
        NextSentence(neighbours(DOCUMENTS[:1], 4), CLS, SEP)
    for size in (1, 5):
        with pytest.raises(LabError, match=f"group_size {size} is out of range: choose 2 to 4"):
            pair_groups(neighbours(DOCUMENTS, 4), size)

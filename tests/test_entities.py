"""Entity scores by hand and against a count of exact spans; baselines on rows made for them."""

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.evaluation import HiddenMarkov, MostFrequentTag, WordWindow, entity_scores
from labkit.evaluation.entities import Found, score_table
from labkit.evaluation.tagging_baselines import window_features
from labkit.text.bio import Tagged, check_tags, repaired, spans

RIGHT = [
    ["B-A", "I-A", "O", "B-B", "O", "O"],
    ["O", "O", "B-B", "I-B"],
    ["O", "O"],
]
SAID = [
    ["B-A", "I-A", "O", "B-A", "O", "B-B"],  # one right, one of another type, one of nothing
    ["O", "O", "O", "B-B"],  # half of it
    ["O", "O"],
]


def test_by_hand():
    scores = entity_scores(RIGHT, SAID)
    assert scores.overall["strict"] == Found(1 / 4, 1 / 3, 2 / 7, 3, 4)
    # partial: two spans are exact (types do not matter), one overlaps and counts a half
    assert scores.overall["partial"] == Found(2.5 / 4, 2.5 / 3, 5 / 7, 3, 4)
    assert scores.by_type["A"] == Found(1 / 2, 1.0, 2 / 3, 1, 2)
    assert scores.by_type["B"] == Found(0.0, 0.0, 0.0, 2, 2)
    assert scores.accuracy == 8 / 12
    assert scores.documents == 3
    assert scores.row()["strict"]["f1_interval"]["estimate"] == 2 / 7
    assert score_table({"it": scores})[0]["F1"] == "0.2857"


def test_strict_is_the_count_of_exact_spans_on_random_rows():
    random = np.random.default_rng(0)
    choices = ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    right = [repaired(random.choice(choices, random.integers(1, 20)).tolist()) for _ in range(60)]
    said = [
        repaired([t if random.random() < 0.7 else str(random.choice(choices)) for t in row])
        for row in right
    ]
    gold = [(i, *span) for i, row in enumerate(right) for span in spans(row)]
    mine = [(i, *span) for i, row in enumerate(said) for span in spans(row)]
    both = len(set(gold) & set(mine))
    scores = entity_scores(right, said)
    strict = scores.overall["strict"]
    assert (strict.right, strict.said) == (len(gold), len(mine))
    assert strict.precision == pytest.approx(both / len(mine))
    assert strict.recall == pytest.approx(both / len(gold))
    assert strict.f1 == pytest.approx(2 * both / (len(gold) + len(mine)))
    of_a = [x for x in gold if x[3] == "A"]
    assert scores.by_type["A"].recall == pytest.approx(len(set(of_a) & set(mine)) / len(of_a))
    assert scores.overall["partial"].f1 > strict.f1


def test_all_outside_is_mostly_right_about_words_and_finds_nothing():
    scores = entity_scores(RIGHT, [["O"] * len(row) for row in RIGHT])
    assert scores.accuracy > 0.5
    assert scores.overall["strict"] == Found(0.0, 0.0, 0.0, 3, 0)
    empty = entity_scores([["O"]], [["O"]])
    assert empty.overall["strict"].f1 == 0
    assert empty.by_type == {}


def test_an_i_without_a_beginning_counts_as_one():
    assert entity_scores([["B-A", "O"]], [["I-A", "O"]]).overall["strict"].f1 == 1


def test_intervals_resample_documents_and_not_rows():
    """Rows of a document are right or wrong together: the interval over rows is too narrow."""
    right = [["B-A", "O"]] * 200
    said = [["B-A", "O"] if (i // 20) % 2 else ["O", "O"] for i in range(200)]
    documents = [i // 20 for i in range(200)]
    widths = []
    for keys in (documents, None):
        interval = entity_scores(right, said, keys).f1_interval["strict"]
        widths.append(interval.high - interval.low)
    assert widths[0] > 3 * widths[1]


@pytest.mark.parametrize(
    ("right", "said", "documents", "words"),
    [
        ([], [], None, "0 rows of right tags"),
        ([["O"]], [["O"], ["O"]], None, "1 rows of right tags, 2 of said ones"),
        ([["O"]], [["O"]], [1, 2], "2 documents"),
        ([["O"], ["O", "O"]], [["O"], ["O"]], None, "row 2 has 2 right tags and 1 said ones"),
        ([["I-A"]], [["O"]], None, "I-A at word 1 after nothing"),
    ],
)
def test_rows_that_do_not_fit_are_named(right, said, documents, words):
    with pytest.raises(LabError, match=words):
        entity_scores(right, said, documents)


# --- baselines ---------------------------------------------------------------------------------


def rows(count: int, seed: int) -> list[Tagged]:
    """'key' is the end of a thing after 'brass', and else outside: its neighbour tells."""
    random = np.random.default_rng(seed)
    parts = [
        (["brass", "key"], ["B-THING", "I-THING"]),
        (["the", "key", "fits"], ["O", "O", "O"]),
        (["a", "key", "turns"], ["O", "O", "O"]),
    ]
    made = []
    for _ in range(count):
        words, tags = [], []
        for number in random.integers(0, 3, 4):
            words += parts[number][0]
            tags += parts[number][1]
        made.append(Tagged(words, tags))
    return made


@pytest.mark.parametrize(
    ("kind", "reaches"), [(MostFrequentTag, 0.0), (HiddenMarkov, 1.0), (WordWindow, 1.0)]
)
def test_a_baseline_knows_what_it_reads(kind, reaches):
    model, test = kind(rows(200, 0)), rows(50, 1)
    said = model.tag([row.words for row in test])
    for tags in said:
        check_tags(tags)
    f1 = entity_scores([row.tags for row in test], said).overall["strict"].f1
    assert f1 == pytest.approx(reaches, abs=0.02)
    assert [len(tags) for tags in model.tag([["never", "seen"], []])] == [2, 0]


def test_what_a_window_holds():
    words = ["Amara", "gave", "the", "key2", "to", "Omar"]
    found = window_features(words, 3)
    assert {"0:word=key2", "0:shape=x9", "-1:word=the", "2:word=omar", "0:suffix=ey2"} <= set(found)
    assert {"-1:none", "-2:none"} <= set(window_features(words, 0))


def test_baselines_refuse_what_teaches_nothing():
    with pytest.raises(LabError, match="0 rows"):
        MostFrequentTag([])
    with pytest.raises(LabError, match="all words have the tag O"):
        WordWindow([Tagged(["a"], ["O"])])

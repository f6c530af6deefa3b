"""Filters of a dirty pool: what they drop, against labels that are known because it was planted."""

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.models import PerplexityBand, quality_scores
from labkit.text import (
    broken_rules,
    cleaning,
    clusters,
    corpora,
    dirty,
    dirty_pool,
    filters,
    judge_filter,
    leaking,
    repeats,
    train_bpe,
)


@pytest.fixture(scope="module")
def news():
    train, test = (corpora.load("bbc_news", split)["text"] for split in ("train", "test"))
    return [str(text)[:900] for text in train[:160]], [str(text)[:900] for text in test[:6]]


@pytest.fixture(scope="module")
def pool(news):
    return dirty_pool(news[0][40:], news[1], clean=60, copied=5, copies=3, junk=8, seed=1)


def test_what_is_planted_is_counted(pool, news):
    counts = {kind: pool.kinds.count(kind) for kind in dirty.KINDS}
    assert counts == {"clean": 60, "exact": 15, "near": 15, "leak": 18} | dict.fromkeys(
        dirty.JUNK, 8
    )
    again = dirty_pool(news[0][40:], news[1], clean=60, copied=5, copies=3, junk=8, seed=1)
    other = dirty_pool(news[0][40:], news[1], clean=60, copied=5, copies=3, junk=8, seed=2)
    assert again == pool
    assert other.texts != pool.texts


def test_the_first_of_a_family_is_the_clean_one(pool):
    """Whichever copy comes first; and what is called exact has the words of an earlier one."""
    for family in range(10):
        kinds = [pool.kinds[i] for i in range(len(pool.texts)) if pool.families[i] == family]
        assert kinds[0] == "clean"
        assert set(kinds[1:]) == {"exact" if family < 5 else "near"}
    dropped = {found.dropped for found in cleaning.exact_duplicates(pool.texts)}
    assert dropped == set(pool.where("exact"))


def test_a_pool_needs_enough_articles(news):
    with pytest.raises(LabError, match="3 articles are too few: this pool uses 10"):
        dirty_pool(news[0][:3], [], clean=10, copied=1, junk=0)
    with pytest.raises(LabError, match="at least 2"):
        dirty_pool(news[0], [], clean=10, copied=6)


def test_misread_bytes_are_the_bytes():
    assert dirty.misread("news of").encode("utf-16-le") == b"news o"
    assert broken_rules(dirty.misread("The news of the day and that of the week. " * 20))


def test_rules_let_news_pass_and_name_what_a_text_breaks(news, pool):
    assert [text for text in news[0] if broken_rules(text)] == []
    assert "stop_words" in broken_rules("asdf " * 60)
    assert "words" in broken_rules("the cat and the dog")
    assert "repeated_lines" in broken_rules("Click on the menu to see more of it.\n" * 40)
    assert "alphabetic" in broken_rules("the 12 of 13 and 14 " * 40)
    dropped = {i for i, text in enumerate(pool.texts) if broken_rules(text)}
    shares = judge_filter(dropped, pool.kinds, dirty.JUNK).dropped
    assert shares["keyboard"] == shares["encoding"] == shares["boilerplate"] == 1
    assert shares["loop"] > 0.7
    assert shares["shuffled"] == 0 == shares["clean"]


def test_signals_by_hand():
    found = filters.signals("a b c d e\na b c d e\nx 1 2 3")
    assert found.words == 14
    assert found.repeated_lines == 1 / 3
    assert found.alphabetic == 11 / 14
    assert found.repeated_runs == 10 / 14
    assert found.top_bigram == 4 / 14, "'a b' twice, four letters of fourteen"


def test_of_a_cluster_the_first_that_is_left_stays(pool):
    first = clusters(cleaning.near_duplicates(pool.texts), len(pool.texts))
    gone = {i for i in range(len(pool.texts)) if i % 3 == 0}
    dropped = repeats(first, gone)
    assert not dropped & gone
    left = [first[i] for i in range(len(first)) if i not in gone | dropped]
    assert len(left) == len(set(left)), "one of each cluster"
    assert set(left) == {first[i] for i in range(len(first)) if i not in gone}, "and of every one"
    naive = {i for i in range(len(first)) if first[i] != i}
    lost = {first[i] for i in range(len(first)) if i not in gone}
    lost -= {first[i] for i in range(len(first)) if i not in gone | naive}
    assert lost, "dropping all but the very first loses clusters whose first is gone"


def test_leaks_whole_and_inside_are_found_and_texts_of_their_own_are_not(news, pool):
    dropped = leaking(pool.texts, news[1])
    judged = judge_filter(dropped, pool.kinds, {"leak"})
    assert judged.recall >= 2 / 3
    assert judged.precision > 0.8
    by_hash = {cleaning.content_hash(text) for text in news[1]}
    equal = {i for i, text in enumerate(pool.texts) if cleaning.content_hash(text) in by_hash}
    assert judge_filter(equal, pool.kinds, {"leak"}).recall == pytest.approx(1 / 3)


def test_judged_by_hand():
    kinds = ["leak", "leak", "clean", "near", "clean"]
    judged = judge_filter([0, 2, 3], kinds, {"leak", "near"})
    assert judged.precision == judged.recall == pytest.approx(2 / 3)
    assert judged.dropped == {"leak": 0.5, "clean": 0.5, "near": 1.0}
    assert judge_filter([], kinds, {"leak"})[:2] == (1.0, 0.0)


def test_a_band_of_perplexity_has_two_ends(news, pool):
    """Noise is above it; loops are among the easiest, where 'the lower the better' errs."""
    trusted = news[0][:40]
    band = PerplexityBand.fit(trusted, train_bpe(trusted, 600), outside=0.05)
    bits = band.bits(pool.texts)
    assert bits[pool.where("keyboard", "cipher", "encoding")].min() > band.high
    assert 0 < band.low < np.median(bits[pool.where("clean")]) < band.high
    assert band.bits([""]).tolist() == [np.inf]
    loops, clean = bits[pool.where("loop")], bits[pool.where("clean")]
    assert (loops < np.quantile(clean, 0.05)).any()
    assert band.outside(trusted[:1] * 2) in ({0, 1}, set())
    with pytest.raises(LabError, match="at least 4"):
        PerplexityBand.fit(trusted[:3], train_bpe(trusted, 600))


def test_a_text_is_judged_by_the_model_that_did_not_read_it(news, pool):
    """The same text on both sides: no score can tell its copies apart by the side alone."""
    trusted = news[0][:40]
    of_trusted, of_pool = quality_scores(trusted, pool.texts, seed=3)
    assert of_trusted.shape == (40,)
    assert of_pool.shape == (len(pool.texts),)
    junk = of_pool[pool.where("keyboard", "cipher", "encoding", "boilerplate")]
    assert np.median(junk) < np.median(of_pool[pool.where("clean")])
    halves = quality_scores(trusted[:20], trusted[20:], seed=3)
    assert abs(np.median(halves[0]) - np.median(halves[1])) < 1, "alike texts look alike"
    with pytest.raises(LabError, match="1 trusted"):
        quality_scores(trusted[:1], pool.texts)

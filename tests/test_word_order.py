"""Word order: what is exchanged, what never is, and that no article is on two sides."""

import pytest

from labkit.errors import LabError
from labkit.text.word_order import (
    AS_WRITTEN,
    EXCHANGED,
    LONGEST,
    SHORTEST,
    examples,
    exchange,
    exchangeable,
    sentences,
    word_order,
)

TEXT = (
    "Oil prices fell again today, and nobody knew why they did. They rose!\n"
    'The bank said: "We will wait." Shares in the large company fell by a third on Monday.'
)


@pytest.fixture(scope="module")
def order():
    return word_order()


def test_sentences_end_where_a_capital_follows():
    assert sentences(TEXT) == [
        "Oil prices fell again today, and nobody knew why they did.",
        "They rose!",
        'The bank said: "We will wait."',
        "Shares in the large company fell by a third on Monday.",
    ]
    assert sentences("It cost 3.5 million. it said. ") == ["It cost 3.5 million. it said."]


def test_only_plain_different_inner_neighbours_change_places():
    words = ["the", "the", "very", "very", "old,", "u2", "song", "was", "good"]
    assert exchangeable(words) == [1, 6]  # "the very" and "song was"; not what is alike or marked
    assert exchange(words, 1)[:4] == ["the", "very", "the", "very"]
    assert exchange(words, 1)[4:] == words[4:]
    assert words[1] == "the", "the list stays as it is"
    assert exchangeable(["a", "b", "c"]) == []
    with pytest.raises(LabError, match="place 8 is out of range: choose 0 to 7"):
        exchange(words, 8)


def test_an_exchange_undone_is_the_sentence():
    for seed in range(20):
        written = [s.lower() for s in sentences(TEXT)]
        for it in examples(TEXT, seed):
            if it.label == AS_WRITTEN:
                assert it.text in written
                assert it.place == -1
            else:
                assert it.text not in written
                assert " ".join(exchange(it.text.split(), it.place)) in written
    labels = {it.label for seed in range(20) for it in examples(TEXT, seed)}
    assert labels == {AS_WRITTEN, EXCHANGED}
    assert list(examples(TEXT, 3)) == list(examples(TEXT, 3))


def test_the_task_on_news_is_balanced_and_does_not_leak(order):
    seen = set()
    for rows in order.values():
        lengths = [len(text.split()) for text in rows["text"]]
        assert SHORTEST <= min(lengths) <= max(lengths) <= LONGEST
        assert abs(sum(rows["label"]) / len(rows) - 0.5) < 0.03
        words = {tuple(sorted(text.split())) for text in rows["text"]}
        assert len(words) == len(rows), "no sentence twice"
        assert not words & seen
        seen |= words
    assert len(order["train"]) > 20_000


def test_whoever_counts_words_knows_nothing(order):
    from labkit.evaluation.linear import BagOfWords

    train, test = order["train"].select(range(3000)), order["test"].select(range(1000))
    counted = BagOfWords(train["text"], train["label"]).predict(test["text"])
    assert abs((counted == test["label"]).mean() - 0.5) < 0.06


def test_a_corpus_without_such_sentences_is_named(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"Number {i}.")
    with pytest.raises(LabError, match="has no sentence of 8 to 25 words: give longer texts"):
        word_order(str(tmp_path))

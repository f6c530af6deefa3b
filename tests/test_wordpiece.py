"""WordPiece from scratch: transformers' ids on a real vocabulary, two scores."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.text import corpora, wordpiece

TEXTS = [
    "Unbelievable! Profits rose 76% to $1.13bn (£600m), didn't they?",
    "Crème BRÛLÉE in İstanbul; ΣΑΣ and ǅ; “quotes” and a dash — here.",
    "它在厨房里。 naïve co-operate ½ \t\x00\u200b\ufffd 🗝️ x" + "a" * 120,
    "",
]


@pytest.fixture(scope="module")
def minilm() -> wordpiece.WordPiece:
    return wordpiece.WordPiece.load(corpora.minilm_folder())


@pytest.fixture(scope="module")
def bert():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(corpora.minilm_folder())


def test_minilm_vocabulary_gives_the_ids_of_transformers(minilm, bert) -> None:
    news = corpora.load("bbc_news", "test")["text"][:40]
    code = corpora.load("python_source", "test")["text"][:2]
    for text in [*TEXTS, *news, *(text[:5000] for text in code)]:
        assert minilm.encode(text) == bert(text, add_special_tokens=False)["input_ids"]


@given(st.text("aeé unk#'-.中İΣ\t\u0301", max_size=40))
@settings(max_examples=200, deadline=None)
def test_strange_texts_have_the_ids_of_transformers_too(minilm, bert, text: str) -> None:
    assert minilm.encode(text) == bert(text, add_special_tokens=False)["input_ids"]


def test_the_longest_piece_wins_and_one_gap_makes_the_word_unknown() -> None:
    model = wordpiece.WordPiece(["[UNK]", "un", "una", "##ffa", "##ble", "##f", "u", "##b"])
    assert model.pieces("unaffable") == ["una", "##ffa", "##ble"]
    assert model.pieces("unx") == ["[UNK]"]
    assert model.pieces("ub" + "b" * 99) == ["[UNK]"]


def test_text_does_not_come_back(minilm) -> None:
    assert minilm.decode(minilm.encode("The CAFÉ,  it's open")) == "the cafe , it ' s open"


def test_counting_gives_the_pieces_of_the_crate() -> None:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    texts = corpora.load("bbc_news", "test")["text"][:60]
    counts = wordpiece.count_words(texts)
    letters = wordpiece.alphabet(counts)
    backend = tokenizers.Tokenizer(models.WordPiece())
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The crate numbers the ## characters in the random order of a hash map, and ties go by number:
    # naming them all in advance fixes the order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(letters) + 400, special_tokens=letters, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    theirs = backend.get_vocab()
    assert wordpiece.learn_by_count(counts, 400) == sorted(theirs, key=theirs.__getitem__)
    assert wordpiece.learn_by_likelihood(counts, 20) != wordpiece.learn_by_count(counts, 20)


def test_the_likelihood_score_by_hand() -> None:
    # t ##h and ##h ##e: 6 / (6 * 6); q ##u: 2 / (2 * 2); ##u ##x: 1 / (2 * 1)
    counts = {"the": 6, "qu": 1, "qux": 1}
    assert wordpiece.learn_by_likelihood(counts, 1)[-1] == "##ux"
    assert wordpiece.learn_by_likelihood(counts, 1, min_count=2)[-1] == "qu"
    assert wordpiece.learn_by_count(counts, 1)[-1] == "th"


def test_a_pair_is_joined_from_the_left_wherever_it_stands() -> None:
    assert wordpiece.learn_by_likelihood({"xaaaa": 5}, 2)[-2:] == ["xa", "xaa"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: wordpiece.WordPiece(["a"]), "no '\\[UNK\\]'"),
        (wordpiece.WordPiece.load, r"no tokenizer\.json"),
        (lambda _: wordpiece.learn_by_likelihood({"a": 1}, -1), "at least 0"),
        (lambda _: wordpiece.learn_by_count({"a": 1}, -1), "0 or more"),
    ],
)
def test_bad_input_is_said_in_one_sentence(make, message: str, tmp_path) -> None:
    with pytest.raises(LabError, match=message):
        make(tmp_path)


def test_another_kind_of_tokenizer_is_refused(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}', encoding="utf-8")
    with pytest.raises(LabError, match="WordPiece is needed"):
        wordpiece.WordPiece.load(tmp_path)

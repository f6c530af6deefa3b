"""BIO tags and files of them: what each row means, and what is refused in one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.text.bio import Span, Tagged, check_row, repaired, spans, tag_names, tags_of
from labkit.text.conll import read_conll, write_conll

CONLL = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O
German JJ B-MISC

Peter NNP B-PER
Blackburn NNP I-PER
-DOCSTART- -X- O
Paris NNP B-LOC
"""


def test_tags_and_spans_by_hand():
    tags = ["B-A", "I-A", "O", "B-A", "B-A", "B-B", "I-B", "I-B"]
    found = [Span(0, 2, "A"), Span(3, 4, "A"), Span(4, 5, "A"), Span(5, 8, "B")]
    assert spans(tags) == found
    assert tags_of(found, 8) == tags
    assert tag_names(["B", "A", "B"]) == ["O", "B-A", "I-A", "B-B", "I-B"]


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=12))
def test_whatever_a_model_says_is_repaired_to_one_reading(tags):
    good = repaired(tags)
    assert tags_of(spans(good), len(good)) == good
    assert repaired(good) == good
    assert [tag[1:] for tag in good] == [tag[1:] for tag in tags]


@pytest.mark.parametrize(
    ("words", "tags", "said"),
    [
        ([], [], "row 7 is empty: give at least one word"),
        (["a", "b"], ["O"], "row 7 has 2 words and 1 tags: give one tag for each word"),
        (["a", " "], ["O", "O"], "row 7 has nothing as word 2"),
        (["a"], ["PLACE"], "row 7 has tag 'PLACE' at word 1: a tag is O, or B- or I- and a type"),
        (["a"], ["B-"], "row 7 has tag 'B-' at word 1"),
        (["a"], ["S-A"], "row 7 has tag 'S-A' at word 1"),
        (["a", "b"], ["O", "I-A"], "I-A at word 2 after O: the first word of a span is B-A"),
        (["a", "b"], ["B-B", "I-A"], "I-A at word 2 after B-B"),
        (["a"], ["I-A"], "I-A at word 1 after nothing"),
        (["a"], ["B-C"], "row 7 has tag 'B-C', which is none of the tags known: O, B-A, I-A"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(words, tags, said):
    with pytest.raises(LabError, match=said.replace("(", r"\(")):
        check_row(words, tags, "row 7", ["O", "B-A", "I-A"] if "known" in said else None)


def test_spans_that_share_a_word_have_no_tags():
    with pytest.raises(LabError, match="shares a word"):
        tags_of([Span(0, 2, "A"), Span(1, 3, "B")], 4)
    with pytest.raises(LabError, match="out of range"):
        tags_of([Span(0, 5, "A")], 4)


def test_columns_rows_and_documents_of_a_file(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    rows = read_conll(file)
    assert rows == [
        Tagged(["EU", "rejects", "German"], ["B-ORG", "O", "B-MISC"], "document 1"),
        Tagged(["Peter", "Blackburn"], ["B-PER", "I-PER"], "document 1"),
        Tagged(["Paris"], ["B-LOC"], "document 2"),
    ]
    write_conll(tmp_path / "b.conll", rows)
    assert read_conll(tmp_path / "b.conll") == rows
    assert "Peter\tB-PER\nBlackburn\tI-PER\n\n" in (tmp_path / "b.conll").read_text()


def test_without_documents_every_row_is_its_own_and_line_ends_do_not_matter(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"a\tO\r\nb\tB-X\r\n\r\n\r\nc\tO")
    assert read_conll(tmp_path / "a.conll") == [
        Tagged(["a", "b"], ["O", "B-X"], "row 1"),
        Tagged(["c"], ["O"], "row 2"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tO\nlonely\n", "line 2 is 'lonely': write a word, a tab and its tag"),
        ("New York\tB-LOC\n", "line 1 has 'New York' as one word"),
        ("a\t\n", "line 1 is 'a'"),
        ("\n\n-DOCSTART-\tO\n\n", "has no row of words and tags"),
        ("a\tO\n\nb\tI-X\n", r"row 2 \(from line 3\) has I-X at word 1 after nothing"),
        ("a\tB-Y\n", "none of the tags known: O, B-X"),
        ("", "is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, said):
    (tmp_path / "a.conll").write_text(text)
    with pytest.raises(LabError, match=said):
        read_conll(tmp_path / "a.conll", ["O", "B-X"] if "known" in said else None)

"""Tagged words from pieces to a trained tagger: alignment token by token, losses, folders."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from labkit.batches import (
    IGNORE_INDEX,
    Batches,
    Pad,
    piece_table,
    tagged_examples,
    word_examples,
    word_pieces,
)
from labkit.errors import LabError
from labkit.generation.classifier import Reading
from labkit.generation.tagger import TaggedText, WordTagger, load_tagger, split_words
from labkit.models import Tagger, Transformer, TransformerConfig, open_tagger
from labkit.models.adapting import strategies
from labkit.models.huggingface import save_pretrained
from labkit.objectives import gather_words, token_classification
from labkit.objectives.tagging import tagging
from labkit.text import Tokenizer, bio, corpora, train_bpe
from labkit.text.bio import Tagged
from labkit.training import TrainConfig, train

TAGS = bio.tag_names(["PERSON", "PLACE"])
ROW = Tagged(
    ["Zofia", "Baker", "saw", "the", "harbourmaster", "\u200b", "don't", "é!"],
    ["B-PERSON", "I-PERSON", "O", "O", "B-PLACE", "I-PLACE", "O", "O"],
)


@pytest.fixture(scope="module")
def minilm():
    return Tokenizer.from_pretrained(corpora.minilm_folder())


@pytest.fixture(scope="module")
def bytes_tokenizer():
    return train_bpe(["Zofia saw the harbour and the harbour saw her. Don't!"] * 9, 300)


# --- pieces and windows ------------------------------------------------------------------------


def test_pieces_are_those_of_transformers_word_for_word(minilm):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(corpora.minilm_folder())
    words = [
        "Zofia",
        "Baker",
        "saw",
        "the",
        "harbourmaster",
        "don't",
        "é!",
        "os.path",
        "東京",
        "x" * 9,
    ]
    found = theirs([words], is_split_into_words=True, add_special_tokens=False)
    (pieces,) = word_pieces(minilm, [words])
    assert [i for ids in pieces for i in ids] == found["input_ids"][0]
    owners = [w for w, ids in enumerate(pieces) for _ in ids]
    assert owners == found.word_ids(0)


def test_token_by_token(minilm):
    (example,) = tagged_examples(minilm, [ROW], TAGS, 64)
    names = [minilm.backend.id_to_token(i) for i in example["input_ids"].tolist()]
    said = [TAGS[k] if k >= 0 else "-" for k in example["labels"].tolist()]
    assert list(zip(names, said, strict=True)) == [
        ("[CLS]", "-"),
        ("z", "B-PERSON"),
        ("##of", "-"),
        ("##ia", "-"),
        ("baker", "I-PERSON"),
        ("saw", "O"),
        ("the", "O"),
        ("harbour", "B-PLACE"),
        ("##master", "-"),
        ("[UNK]", "I-PLACE"),
        ("don", "O"),
        ("'", "-"),
        ("t", "-"),
        ("e", "O"),
        ("!", "-"),
        ("[SEP]", "-"),
    ]


def test_all_pieces_labelled_go_on_with_their_span(minilm):
    (example,) = tagged_examples(minilm, [ROW], TAGS, 64, label="all")
    said = [TAGS[k] if k >= 0 else "-" for k in example["labels"].tolist()]
    assert said[:9] == [
        *("-", "B-PERSON", "I-PERSON", "I-PERSON", "I-PERSON", "O", "O", "B-PLACE", "I-PLACE"),
    ]
    bio.check_tags(said[1:-1])


def test_a_table_to_read(minilm):
    table = piece_table(minilm, ROW.words, ROW.tags)
    assert table.iloc[4].tolist() == ["harbourmaster", "harbour ##master", "B-PLACE"]
    assert list(piece_table(minilm, ["a"]).columns) == ["word", "pieces"]


def test_a_byte_level_vocabulary_reads_words_as_after_a_space(bytes_tokenizer):
    words = ["the", "harbour", "é", "saw"]
    (pieces,) = word_pieces(bytes_tokenizer, [words])
    assert [i for ids in pieces for i in ids] == bytes_tokenizer.encode(" ".join(words))
    assert [bytes_tokenizer.decode(ids) for ids in pieces] == ["the", " harbour", " é", " saw"]


def test_windows_lose_no_word_and_cut_no_span(minilm):
    random = np.random.default_rng(0)
    words = [str(random.choice(["Zofia", "harbourmaster", "saw", "the"])) for _ in range(200)]
    raw = random.choice(["O", "B-PERSON", "I-PERSON", "I-PERSON"], 200).tolist()
    row = Tagged(words, bio.repaired(raw))
    examples = tagged_examples(minilm, [row], TAGS, 40)
    assert len(examples) > 5
    tags, tokens = [], []
    for example in examples:
        assert len(example["input_ids"]) <= 40
        own = [TAGS[k] for k in example["labels"].tolist() if k >= 0]
        bio.check_tags(own)  # would refuse a window that begins inside a span
        tags += own
        tokens += example["input_ids"].tolist()[1:-1]
    assert tags == row.tags
    assert tokens == [i for ids in word_pieces(minilm, [words])[0] for i in ids]
    blind, places = word_examples(minilm, [words], 40)
    assert [p.start for p in places[1:]] == [p.end for p in places[:-1]]
    assert (places[0].start, places[-1].end) == (0, 200)
    assert [int((e["labels"] == 0).sum()) for e in blind] == [p.end - p.start for p in places]
    cut_anywhere = [row.tags[p.start] for p in places]
    assert "I-PERSON" in cut_anywhere, "windows that do not look at the tags do begin inside"


@pytest.mark.parametrize(
    ("rows", "length", "said"),
    [
        ([ROW, Tagged(["a", "b"], ["O"])], 64, "row 2 has 2 words and 1 tags"),
        ([Tagged([], [])], 64, "row 1 is empty"),
        ([Tagged(["a"], ["B-CITY"])], 64, "none of the tags known"),
        ([Tagged(["a"], ["city"])], 64, "a tag is O, or B- or I-"),
        ([Tagged(["a" * 90, "b"], ["O", "O"])], 16, "word 1 of row 1 has .* pieces, and a window"),
        ([Tagged(["a"] * 30, ["B-PLACE", *["I-PLACE"] * 29])], 16, "span at word 1 of row 1 has"),
        ([ROW], 2, "max_length 2 is out of range"),
    ],
)
def test_rows_that_cannot_be_read_are_named(minilm, rows, length, said):
    with pytest.raises(LabError, match=said):
        tagged_examples(minilm, rows, TAGS, length)


# --- objectives --------------------------------------------------------------------------------


def small_body(kind: str = "encoder", vocab: int = 300) -> Transformer:
    shape = {"d_model": 32, "num_heads": 2, "num_layers": 2, "context_length": 64}
    shape |= {"dropout": 0.0, "initializer_range": 0.18}
    if kind == "encoder":
        config = TransformerConfig.bert(vocab_size=vocab, **shape)
    else:
        config = getattr(TransformerConfig, kind)(vocab_size=vocab, **shape)
    return Transformer(config)


def ragged_batch() -> dict[str, torch.Tensor]:
    """Three rows of different lengths; later pieces and marks without a label."""
    labels = [[-100, 0, -100, 1, 2, -100], [-100, 3, -100, -100], [-100, 0, 1, 2, 2, 0, -100]]
    items = [
        {"input_ids": torch.randint(4, 300, (len(row),)), "labels": torch.tensor(row)}
        for row in labels
    ]
    return Pad(0)(items)


def test_words_are_gathered_at_the_left_in_their_order():
    batch = ragged_batch()
    scores = torch.randn(3, 8, 5)
    gathered, labels, words = gather_words(scores, batch["labels"])
    assert labels.tolist() == [[0, 1, 2, -100, -100], [3, *[-100] * 4], [0, 1, 2, 2, 0]]
    assert torch.equal(words, labels != IGNORE_INDEX)
    assert torch.equal(gathered[0, :3], scores[0, [1, 3, 4]])
    nothing = gather_words(scores, torch.full((3, 8), IGNORE_INDEX))
    assert nothing[0].shape == (3, 1, 5)
    assert not nothing[2].any()


@pytest.mark.parametrize("head", ["softmax", "crf"])
def test_a_loss_counts_words_and_splits_into_its_rows(head):
    tagger = Tagger(small_body(), TAGS, head).eval()
    batch = ragged_batch()
    if tagger.crf is not None:
        torch.nn.init.normal_(tagger.crf.transitions_KK, std=0.02)
    loss, count = tagging(tagger, batch)
    assert int(count) == 9
    parts = [tagging(tagger, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(3)]
    assert_close(loss, sum(part for part, _ in parts), rtol=1e-5, atol=1e-5)
    wide = {
        k: torch.nn.functional.pad(v, (0, 5), value=-100 if k == "labels" else 0)
        for k, v in batch.items()
    }
    assert_close(tagging(tagger, wide)[0], loss, rtol=1e-5, atol=1e-5)


def test_a_crf_over_pieces_is_another_loss_than_over_words():
    """The naive variant: transitions through later pieces, as if they were words."""
    tagger = Tagger(small_body(), TAGS, "crf").eval()
    torch.nn.init.normal_(tagger.crf.transitions_KK, std=0.05)
    batch = ragged_batch()
    loss, _ = tagging(tagger, batch)
    logits = tagger(batch["input_ids"], batch["attention_mask"]).logits
    mask = batch["attention_mask"].bool()
    over_pieces, _ = tagger.crf(logits, batch["labels"].clamp(min=0).clamp(max=0), mask)
    assert abs(float((over_pieces - loss).detach())) > 1.0


def test_softmax_is_the_loss_of_transformers():
    tagger = Tagger(small_body(), TAGS).eval()
    batch = ragged_batch()
    loss, count = token_classification(tagger, batch)
    theirs = tagger.as_token_classifier()(**batch).loss
    assert_close(loss / count, theirs, rtol=1e-5, atol=1e-6)


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "llama", "gpt2"])
@pytest.mark.parametrize("head", ["softmax", "crf"])
def test_a_folder_opens_here_and_in_transformers_with_the_same_logits(tmp_path, kind, head):
    from transformers import AutoModelForTokenClassification

    tagger = Tagger(small_body(kind), TAGS, head).eval()
    if tagger.crf is not None:
        for parameter in tagger.crf.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    save_pretrained(tagger, tmp_path)
    batch = ragged_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == dict(enumerate(TAGS))
    again = open_tagger(tmp_path)
    assert again.tags == TAGS
    wanted = tagger(**inputs).logits[real]
    assert_close(theirs(**inputs).logits[real], wanted)
    assert_close(again(**inputs).logits[real], wanted)
    assert_close(tagging(again, batch)[0], tagging(tagger, batch)[0])
    save_pretrained(again, tmp_path / "twice")
    assert_close(tagging(open_tagger(tmp_path / "twice"), batch)[0], tagging(tagger, batch)[0])
    assert (tmp_path / "crf.safetensors").exists() == (head == "crf")


def test_a_folder_that_has_lost_its_crf_does_not_open(tmp_path):
    save_pretrained(Tagger(small_body(), TAGS, "crf"), tmp_path)
    (tmp_path / "crf.safetensors").write_bytes(b"broken")
    with pytest.raises(LabError, match=r"crf.safetensors is missing or damaged"):
        open_tagger(tmp_path)
    (tmp_path / "crf.safetensors").unlink()
    with pytest.raises(LabError, match=r"crf.safetensors is missing or damaged"):
        open_tagger(tmp_path)
    assert open_tagger(tmp_path, head="softmax").crf is None


def test_other_tags_get_a_new_classifier_and_the_same_ones_keep_theirs(tmp_path):
    tagger = Tagger(small_body(), TAGS)
    save_pretrained(tagger, tmp_path)
    same = open_tagger(tmp_path, TAGS, "crf")
    assert torch.equal(same.classifier.weight, tagger.classifier.weight)
    other = open_tagger(tmp_path, bio.tag_names(["X"]))
    assert other.classifier.out_features == 3
    body = dict(tagger.body.state_dict())
    assert torch.equal(other.body.get_input_embeddings().weight, body["embedding.weight"])


@pytest.mark.parametrize("head", ["softmax", "crf"])
def test_the_strategy_head_trains_the_classifier_and_the_crf_alone(head):
    tagger = Tagger(small_body(), TAGS, head)
    trained = strategies.apply(tagger, "head")
    crf = [f"crf.{name}" for name in ("start_K", "end_K", "transitions_KK")]
    assert trained == ["classifier.weight", "classifier.bias", *(crf if head == "crf" else [])]


def test_what_no_tagger_can_be_is_one_sentence():
    with pytest.raises(LabError, match="head 'hmm' is unknown: choose softmax or crf"):
        Tagger(small_body(), TAGS, "hmm")
    from labkit.models import EncoderDecoder

    config = TransformerConfig.bart(
        vocab_size=50, d_model=16, num_heads=2, num_layers=1, context_length=32
    )
    with pytest.raises(LabError, match="an encoder-decoder writes"):
        Tagger(EncoderDecoder(config), TAGS)


# --- learning and answering --------------------------------------------------------------------


def toy_rows(count: int, seed: int) -> list[Tagged]:
    """A name of two words that also stand alone: only their neighbour tells."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words: list[str] = []
        tags: list[str] = []
        for _ in range(int(random.integers(3, 7))):
            if random.random() < 0.4:
                words += ["the", str(random.choice(["harbour", "saw"]))]
                tags += ["O", "O"]
            else:
                words += ["Zofia", *["harbour"] * int(random.integers(0, 3))]
                tags += ["B-PERSON", *["I-PERSON"] * (len(words) - len(tags) - 1)]
        rows.append(Tagged(words, tags))
    return rows


@pytest.mark.parametrize("head", ["softmax", "crf"])
def test_a_tagger_learns(head, bytes_tokenizer, tmp_path):
    rows = toy_rows(120, 0)
    tags = bio.tag_names(["PERSON"])
    examples = tagged_examples(bytes_tokenizer, rows, tags, 64)
    batches = Batches(examples, 16, Pad(bytes_tokenizer.pad_id))
    torch.manual_seed(0)
    tagger = Tagger(small_body(vocab=bytes_tokenizer.vocab_size), tags, head, dropout=0.0)
    config = TrainConfig(
        steps=250, learning_rate=3e-3, warmup_steps=10, precision="fp32", out=tmp_path / "run"
    )
    train(tagger, tagging, batches, config, tokenizer=bytes_tokenizer)
    test = toy_rows(40, 1)
    reader = load_tagger(tmp_path / "run", device="cpu")
    said = reader.tag([row.words for row in test])
    pairs = [
        (mine, right)
        for text, row in zip(said, test, strict=True)
        for mine, right in zip(text.tags, row.tags, strict=True)
    ]
    assert np.mean([mine == right for mine, right in pairs]) > 0.97
    assert np.mean([right == "O" for _, right in pairs]) < 0.7
    for text in said:
        bio.check_tags(text.tags)
        assert all(0 < p <= 1 + 1e-6 for p in text.probabilities)


def test_a_crf_decodes_the_row_and_not_the_window(bytes_tokenizer):
    """Windows of 12 tokens: joined before the CRF, no span is torn where a window ends."""
    tags = bio.tag_names(["PERSON"])
    tagger = Tagger(small_body(vocab=bytes_tokenizer.vocab_size), tags, "crf").eval()
    words = ["harbour", "saw", "the"] * 10
    short = WordTagger(tagger, bytes_tokenizer, Reading(12))
    (scores,) = short.scores([words])
    assert scores.shape == (30, 3)
    whole, _ = tagger.crf.decode(scores[None])
    assert short.tag([words])[0].tags == [tags[k] for k in whole[0].tolist()]
    many = short.scores([words, ["the"], words[:7]], batch_size=2)
    assert [len(row) for row in many] == [30, 1, 7]
    assert_close(many[0], scores, atol=1e-5, rtol=1e-5)


def test_an_answer_shows_its_entities():
    text = TaggedText(["Zofia", "Baker", "saw", "it"], ["B-P", "I-P", "O", "O"], [0.9, 0.8, 1, 1])
    assert str(text) == "[Zofia Baker P] saw it"
    assert text.entities == [
        {"type": "P", "text": "Zofia Baker", "start": 0, "end": 2, "probability": 0.8}
    ]
    assert split_words("Amara's key, there!") == ["Amara", "'", "s", "key", ",", "there", "!"]

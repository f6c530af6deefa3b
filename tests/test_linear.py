"""Linear baselines, heads that begin from a fit, the block that begins as a mean, long texts."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from labkit.batches import Batches, Marks, Pad, RandomPiece, average_pieces, pieces
from labkit.errors import LabError
from labkit.evaluation import (
    BagOfWords,
    block_means,
    classify,
    last_vectors,
    logistic_regression,
    set_head,
)
from labkit.models import Transformer, TransformerConfig
from labkit.models.adapting import add_mean_block
from labkit.models.adapting.mean_block import MEAN_TO_CLS, POOLED
from labkit.text import Tokenizer, corpora, train_bpe

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLASSES = 3


def bert(**more) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, intermediate_size=64, num_labels=CLASSES, **SHAPE, **more)
    return BertForSequenceClassification(config).eval()


def models():
    llama = LlamaConfig(
        vocab_size=50, intermediate_size=64, num_labels=CLASSES, pad_token_id=0, **SHAPE
    )
    gpt2 = GPT2Config(
        vocab_size=50, n_embd=32, n_layer=1, n_head=2, num_labels=CLASSES, pad_token_id=0
    )
    roberta = RobertaConfig(vocab_size=50, intermediate_size=64, num_labels=CLASSES, **SHAPE)
    ours = TransformerConfig(
        vocab_size=50,
        d_model=32,
        num_layers=1,
        num_heads=2,
        kind="encoder",
        context_length=64,
        num_labels=CLASSES,
    )
    return {
        "bert": bert,
        "roberta": lambda: RobertaForSequenceClassification(roberta),
        "llama": lambda: LlamaForSequenceClassification(llama),
        "gpt2": lambda: GPT2ForSequenceClassification(gpt2),
        "labkit": lambda: Transformer(ours),
    }


def batches(count: int = 24, classes: int = CLASSES) -> Batches:
    draw = np.random.default_rng(0)
    examples = [
        {
            "input_ids": torch.tensor(draw.integers(5, 50, 3 + i % 9)),
            "labels": torch.tensor(i % classes),
        }
        for i in range(count)
    ]
    return Batches(examples, 8, Pad(0), shuffle=False)


# --- vectors and heads -------------------------------------------------------------------------


@pytest.mark.parametrize("family", models())
def test_the_head_says_what_the_fit_on_the_vectors_says(family):
    """Whatever the family: the model's probabilities are those of scikit-learn's fit."""
    torch.manual_seed(0)
    model = models()[family]().eval()
    vectors_NH, labels_N = last_vectors(model, batches().evaluation_batches())
    biased = family not in ("llama", "gpt2")
    fitted = logistic_regression(vectors_NH, labels_N, intercept=biased)
    before = classify(model, batches().evaluation_batches()).probabilities_NC
    set_head(model, fitted)
    said = classify(model, batches().evaluation_batches())
    assert said.labels_N.tolist() == labels_N.tolist()
    expected = torch.from_numpy(fitted.predict_proba(vectors_NH)).float()
    assert_close(said.probabilities_NC, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 0.01


def test_a_head_of_two_classes_gives_the_fits_probabilities():
    model = bert()
    model.classifier = torch.nn.Linear(32, 2)
    model.config.num_labels = 2
    data = batches(classes=2)
    vectors_NH, labels_N = last_vectors(model, data.evaluation_batches())
    fitted = logistic_regression(vectors_NH, labels_N)
    set_head(model, fitted)
    said = classify(model, data.evaluation_batches()).probabilities_NC
    assert_close(
        said, torch.from_numpy(fitted.predict_proba(vectors_NH)).float(), atol=1e-5, rtol=0
    )


def test_a_class_that_the_fit_never_saw_is_unlikely_but_possible():
    model = bert()
    vectors_NH, labels_N = last_vectors(model, batches(classes=2).evaluation_batches())
    set_head(model, logistic_regression(vectors_NH, labels_N))
    said = classify(model, batches(classes=2).evaluation_batches()).probabilities_NC
    assert said[:, 2].max() < 0.05
    assert said[:, 2].min() > 0


def test_the_strength_of_the_penalty_follows_from_unseen_rows():
    """Noise wants a strong penalty, a clean rule a weak one; the scale of the rows is no matter."""
    draw = np.random.default_rng(0)
    x_NH = draw.normal(size=(300, 40))
    clean = (x_NH[:, 0] + 0.01 * x_NH[:, 1] > 0).astype(int)
    noisy = draw.integers(0, 2, 300)
    strengths = [
        logistic_regression(scale * x_NH, y).C * scale**2
        for y, scale in ((clean, 1.0), (clean, 100.0), (noisy, 1.0))
    ]
    assert strengths[0] == pytest.approx(strengths[1])
    assert logistic_regression(x_NH, clean).score(x_NH, clean) > 0.97


def test_labels_that_are_all_alike_are_refused():
    with pytest.raises(LabError, match="all labels are alike"):
        logistic_regression(np.eye(4), np.zeros(4))


# --- counting words ----------------------------------------------------------------------------


def test_counted_words_tell_apart_what_words_tell_apart():
    texts = [f"{'cheap' if i % 2 else 'dear'} thing {i}" for i in range(40)]
    words = BagOfWords(texts, [i % 2 for i in range(40)])
    assert words.predict(["a cheap one", "a dear one"]).tolist() == [1, 0]


def test_counted_words_of_pairs_see_what_both_texts_hold():
    """Same or different is no matter of either text alone."""
    names = [f"name{i}" for i in range(12)]
    draw = np.random.default_rng(0)
    firsts = draw.choice(names, 600).tolist()
    seconds = [a if draw.random() < 0.5 else str(draw.choice(names)) for a in firsts]
    same = [int(a == b) for a, b in zip(firsts, seconds, strict=True)]
    pairs = BagOfWords(firsts[:500], same[:500], seconds[:500])
    assert np.mean(pairs.predict(firsts[500:], seconds[500:]) == same[500:]) > 0.95
    for alone in (firsts, seconds):
        words = BagOfWords(alone[:500], same[:500])
        assert np.mean(words.predict(alone[500:]) == same[500:]) < 0.7


def test_texts_without_words_are_refused():
    with pytest.raises(LabError, match="no word of two letters"):
        BagOfWords(["?", "!"], [0, 1])


# --- the block that begins as a mean -----------------------------------------------------------


def test_the_new_block_reads_the_mean_of_the_real_tokens():
    model = bert()
    before = copy.deepcopy(model)
    add_mean_block(model)
    batch = next(batches().evaluation_batches())
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.inference_mode():
        hidden_BTD = before.bert(**inputs).last_hidden_state
        model.eval()(**inputs)
    real_BT1 = inputs["attention_mask"].unsqueeze(-1)
    mean_BD = (hidden_BTD * real_BT1).sum(1) / real_BT1.sum(1)
    cls_BD = hidden_BTD[:, 0]

    def read(vector_BD):
        normed = F.layer_norm(F.layer_norm(vector_BD, (32,)), (32,))
        return torch.tanh(POOLED * normed)

    assert_close(seen[0], read(MEAN_TO_CLS * mean_BD + cls_BD), atol=1e-4, rtol=1e-4)
    with_padding = read(MEAN_TO_CLS * hidden_BTD.mean(1) + cls_BD)
    assert (seen[0] - with_padding).abs().max() > 0.01


def test_the_block_is_saved_as_an_ordinary_bert_and_everything_in_it_learns(tmp_path):
    model = bert()
    add_mean_block(model)
    batch = next(batches().evaluation_batches())
    loss = F.cross_entropy(
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
        batch["labels"],
    )
    loss.backward()
    block = model.bert.encoder.layer[-1]
    for linear in (block.attention.self.query, block.attention.self.value, block.output.dense):
        assert linear.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(opened) is BertForSequenceClassification
    assert opened.config.num_hidden_layers == SHAPE["num_hidden_layers"] + 1
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        assert_close(opened(**inputs).logits, model.eval()(**inputs).logits, atol=1e-6, rtol=0)


def test_only_a_bert_classifier_takes_the_block():
    with pytest.raises(LabError, match="no BERT encoder with a pooler"):
        add_mean_block(models()["gpt2"]())


# --- long texts --------------------------------------------------------------------------------

MARKS = Marks([1], [2])
IDS = [1, *range(10, 30), 2]


def test_pieces_hold_every_token_once_between_the_marks():
    parts = [part.tolist() for part in pieces(IDS, 8, 10, MARKS)]
    assert {(part[0], part[-1]) for part in parts} == {(1, 2)}
    assert max(map(len, parts)) == 8
    assert [i for part in parts for i in part[1:-1]] == IDS[1:-1]
    assert [p.tolist() for p in pieces(IDS, 8, 2, MARKS)] == parts[:2]
    assert pieces([1, 2], 8, 3, MARKS)[0].tolist() == [1, 2]
    with pytest.raises(LabError, match="max_length 2 is out of range"):
        pieces(IDS, 2, 1, MARKS)


def test_a_random_piece_comes_from_everywhere_and_stays_in_the_text():
    piece = RandomPiece(8, 2, MARKS)
    draw = np.random.default_rng(0)
    example = {"input_ids": torch.tensor(IDS), "labels": torch.tensor(1)}
    seen = [piece(example, draw) for _ in range(200)]
    starts = {int(e["input_ids"][1]) for e in seen}
    assert starts == set(range(10, 17))  # the first two pieces' worth of text
    for e in seen:
        inside = e["input_ids"].tolist()[1:-1]
        assert inside == list(range(inside[0], inside[0] + 6))
    assert {int(e["labels"]) for e in seen} == {1}
    short = {"input_ids": torch.tensor(IDS[:8]), "labels": torch.tensor(0)}
    assert piece(short, draw)["input_ids"].tolist() == IDS[:8]


def test_an_answer_is_the_mean_of_its_pieces_log_probabilities():
    logits_PC = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    said = average_pieces(logits_PC, torch.tensor([1, 0, 1, 1, 2]))
    logs = logits_PC.log_softmax(-1)
    assert_close(said[0], logs[1])
    assert_close(said[1], logs[[0, 2, 3]].mean(0).log_softmax(-1))
    assert_close(said.exp().sum(-1), torch.ones(3))


def test_marks_of_the_tokenizers():
    ours = train_bpe(["some words to learn " * 20], 300)
    assert ours.marks == ([], [])
    bert_marks = Tokenizer.from_pretrained(corpora.minilm_folder()).marks
    assert bert_marks == ([101], [102])


# --- pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [64, 12])
def test_pairs_are_encoded_as_transformers_encodes_them(limit):
    from transformers import AutoTokenizer

    folder = corpora.minilm_folder()
    theirs = AutoTokenizer.from_pretrained(folder)
    firsts = ["A man sleeps.", "Two dogs run across the wide green field, [SEP] barking."]
    seconds = ["Somebody is awake in the house tonight, it seems.", "Dogs run."]
    ours = Tokenizer.from_pretrained(folder).encode_pairs(firsts, seconds, limit)
    for first, second, (ids, kinds) in zip(firsts, seconds, ours, strict=True):
        wanted = theirs(first, second, truncation=True, max_length=limit, split_special_tokens=True)
        assert len(ids) <= limit
        if "[SEP]" not in first:
            assert ids == wanted["input_ids"]
            assert kinds == wanted["token_type_ids"]
        assert ids.count(102) == 2, "the name of a mark in a text stays text"


def test_pairs_without_marks_are_divided_by_a_line_break():
    tokenizer = train_bpe(["some words to learn\n" * 20], 300)
    ((ids, _),) = tokenizer.encode_pairs(["some"], ["words"], 20)
    assert tokenizer.decode(ids) == "some\nwords"
    with pytest.raises(LabError, match="max_length 1 is out of range"):
        tokenizer.encode_pairs(["some"], ["words"], 1)


def test_means_after_each_block_leave_padding_out():
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig.bert(
            vocab_size=30, context_length=16, d_model=16, num_layers=3, num_heads=2, num_labels=2,
            pooling="mean", dropout=0.1,
        )
    ).train()  # fmt: skip
    texts = [torch.randint(0, 30, (length,)) for length in (3, 9, 12)]
    rows = [{"input_ids": ids, "labels": torch.tensor(0)} for ids in texts]

    def means(some):
        return block_means(model, Batches(some, 3, Pad(0), shuffle=False).evaluation_batches())

    together = means(rows)
    assert together.shape == (3, 3, 16)
    assert model.training, "its mode is as it was"
    for alone, row in zip(together, rows, strict=True):
        np.testing.assert_allclose(means([row])[0], alone, atol=1e-5)
    with torch.no_grad():
        last = model.eval()(texts[2][None]).hidden.mean(1)[0]
    np.testing.assert_allclose(together[2, -1], last, atol=1e-5)
    assert not np.allclose(together[2, 0], last, atol=1e-4)
    assert not any(block._forward_hooks for block in model.blocks), "no hook stays"

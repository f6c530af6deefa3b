"""Choices by log-probability: read once = read whole, cut at the prompt, plain errors."""

import doctest
import json
import math

import numpy as np
import pytest
import torch
from commands import here, sentences
from torch.testing import assert_close

from labkit import evaluation, text
from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import save_pretrained, to_huggingface
from labkit.text import ChoiceQuestion, train_bpe

SHAPES = {
    "llama": lambda **size: TransformerConfig.llama(num_kv_heads=2, **size),
    "gpt2": lambda **size: TransformerConfig.gpt2(dropout=0.1, **size),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([*sentences(60), *["unable undo able"] * 40], 320)


def model_of(shape, tokenizer):
    torch.manual_seed(0)
    size = {"context_length": 96, "d_model": 16, "num_layers": 2, "num_heads": 4}
    model = Transformer(SHAPES[shape](vocab_size=tokenizer.vocab_size, **size))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


QUESTIONS = [
    ChoiceQuestion("the key went took the red blue lamp", ("garden", "kitchen door"), 0),
    ChoiceQuestion("the key", ("house ate bread found the", "red", "blue house"), 2),
    ChoiceQuestion("the key took ", ("lamp", "the garden"), 1),
    ChoiceQuestion("", ("the lamp", "door"), 0),
    ChoiceQuestion("the key un", ("able", "do"), 1),
    ChoiceQuestion("the key went\n", ("red", "a"), 1),
]


def by_hand(model, tokenizer, question):
    """ln p of each choice from the whole text, one token after the other."""
    found = []
    for continuation in question.continuations:
        prompt = question.prompt.rstrip()
        ids = [tokenizer.end_of_text_id, *tokenizer.encode(question.prompt + continuation)]
        start = 1 + len(tokenizer.encode(prompt)) if prompt else 1
        total = 0.0
        for t in range(start, len(ids)):
            log_p_V = model(torch.tensor([ids[:t]])).logits[0, -1].log_softmax(-1)
            total += float(log_p_V[ids[t]])
        found.append(total)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("some", [slice(0, 3), slice(0, 6), slice(3, 4), slice(1, 2)])
def test_what_is_read_once_gives_what_reading_all_gives(shape, batch_size, some, tokenizer):
    model, asked = model_of(shape, tokenizer), QUESTIONS[some]
    once = evaluation.score_choices(model, tokenizer, asked, batch_size=batch_size)
    plain = evaluation.score_choices(model, tokenizer, asked, share=False)
    for name in ("log_probabilities", "unconditional", "tokens", "bytes"):
        for ours, theirs in zip(getattr(once, name), getattr(plain, name), strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert model.training, "the model's mode came back"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_ways_differ_by_rounding_alone(shape, tokenizer):
    """In float64 the gate is 1e-11; a score that went through fp32 on its way fails it."""
    model = model_of(shape, tokenizer).double()
    once = evaluation.score_choices(model, tokenizer, QUESTIONS, batch_size=4)
    plain = evaluation.score_choices(model, tokenizer, QUESTIONS, share=False)
    for ours, theirs in zip(once.log_probabilities, plain.log_probabilities, strict=True):
        assert_close(ours, theirs, atol=1e-11, rtol=0)
        assert np.abs(ours.astype(np.float32) - theirs).max() > 1e-11


def test_choices_of_one_token_share_the_rows_of_their_prompts(tokenizer, monkeypatch):
    """Label words behind a long prompt: one batch, as nothing is copied for them."""
    read = []
    model = model_of("llama", tokenizer)
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda ids, **k: read.append(ids.shape) or encode(ids, **k)
    )
    monkeypatch.setattr(evaluation.choices, "MOST_CACHED", 60)
    prompts = ["the key went took the red blue lamp", "the lamp went", "the key took the red"]
    words = ("red", "blue", "lamp", "key", "took")
    assert all(len(tokenizer.encode(f" {it}")) == 1 for it in words)
    asked = [ChoiceQuestion(it, words, 0) for it in prompts]
    once = evaluation.score_choices(model, tokenizer, asked)
    assert max(rows for rows, _ in read[:2]) == 3
    plain = evaluation.score_choices(model, tokenizer, asked, share=False)
    for ours, theirs in zip(once.log_probabilities, plain.log_probabilities, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_sums_are_those_of_one_token_after_the_other(tokenizer):
    model = model_of("llama", tokenizer).eval()
    found = evaluation.score_choices(model, tokenizer, QUESTIONS)
    for question, log_p in zip(QUESTIONS, found.log_probabilities, strict=True):
        with torch.no_grad():
            hand = by_hand(model, tokenizer, question)
        # "un" + "able" is one word of this vocabulary: its tokens are cut before it.
        if question.prompt != "the key un":
            assert_close(log_p, np.array(hand), atol=1e-5, rtol=0)


def test_padding_takes_no_room_that_the_context_has_not(tokenizer):
    """A long prompt with short choices beside a short one with a long choice."""
    model = model_of("gpt2", tokenizer)
    long = ("the key " * 60).split()
    while len(tokenizer.encode(" ".join(long))) > 80:
        del long[-1]
    asked = [
        ChoiceQuestion(" ".join(long), ("red", "blue"), 0),
        ChoiceQuestion("the", (" ".join(long[1:]), "red"), 0),
    ]
    once = evaluation.score_choices(model, tokenizer, asked)
    plain = evaluation.score_choices(model, tokenizer, asked, share=False)
    for ours, theirs in zip(once.log_probabilities, plain.log_probabilities, strict=True):
        assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_naive_batch_fails_the_gate(tokenizer):
    """Prompts padded on the left, and nobody told the model."""
    model = model_of("llama", tokenizer).eval()
    long, short = (
        [tokenizer.end_of_text_id, *tokenizer.encode(QUESTIONS[i].prompt)] for i in (0, 1)
    )
    padded = [0] * (len(long) - len(short)) + short
    with torch.no_grad():
        naive = model(torch.tensor([long, padded])).logits[1, -1].log_softmax(-1)
    (right,) = evaluation.score_choices(model, tokenizer, [QUESTIONS[1]]).log_probabilities
    (red,) = tokenizer.encode(" red")
    assert abs(float(naive[red]) - right[1]) > 1e-2


def test_transformers_models_are_scored_the_plain_way(tokenizer):
    model = model_of("gpt2", tokenizer).eval()
    ours = evaluation.score_choices(model, tokenizer, QUESTIONS)
    theirs = evaluation.score_choices(to_huggingface(model), tokenizer, QUESTIONS)
    for a, b in zip(ours.log_probabilities, theirs.log_probabilities, strict=True):
        assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("context", "continuation"), [("the key ", "red"), ("un", "able"), ("the\n", "red"), ("a", "b")]
)
def test_ids_join_to_those_of_the_whole_text(context, continuation, tokenizer):
    front, back = evaluation.split_at_boundary(tokenizer, context, continuation)
    assert front + back == tokenizer.encode(context + continuation)
    assert back


def test_two_texts_encoded_apart_have_other_tokens(tokenizer):
    """The naive way, which the gate above must reject: a lone space, a word cut in two."""
    for context, continuation in (("the key ", "red"), ("un", "able")):
        whole = tokenizer.encode(context + continuation)
        assert tokenizer.encode(context) + tokenizer.encode(continuation) != whole


def test_nothing_to_score_is_an_error(tokenizer):
    with pytest.raises(LabError, match="continuation '' has no token"):
        evaluation.split_at_boundary(tokenizer, "the key", "")


def test_normalisations_by_hand():
    found = evaluation.ChoiceScores(
        [np.array([-6.0, -8.0, -9.0])],
        [np.array([2, 4, 3])],
        [np.array([4, 20, 12])],
        [np.array([-7.0, -8.5, -12.0])],
    )
    assert found.scores()[0].tolist() == [-6, -8, -9]
    assert found.scores("token")[0].tolist() == [-3, -2, -3]
    assert found.scores("byte")[0].tolist() == [-1.5, -0.4, -0.75]
    assert found.scores("unconditional")[0].tolist() == [1, 0.5, 3]
    chosen = [int(found.chosen(how)[0]) for how in evaluation.choices.NORMALISATIONS]
    assert chosen == [0, 1, 1, 2]
    with pytest.raises(LabError, match="'words' is unknown: choose none, token, byte"):
        found.scores("words")  # type: ignore[arg-type]


def test_bytes_leave_out_the_space_and_count_utf8(tokenizer):
    model = model_of("llama", tokenizer)
    asked = [ChoiceQuestion("the", ("né", "red"), 0)]
    found = evaluation.score_choices(model, tokenizer, asked)
    assert found.bytes[0].tolist() == [3, 3]


def test_a_premise_stands_before_the_unconditional_choice(tokenizer):
    model = model_of("llama", tokenizer)
    asked = [ChoiceQuestion("the key", ("red", "blue"), 0)]
    found = evaluation.score_choices(model, tokenizer, asked, premise="the key")
    assert_close(found.unconditional, found.log_probabilities, atol=1e-5, rtol=0)


def test_calibration_makes_the_content_free_input_uniform():
    free = np.log([[0.7, 0.2, 0.1]])
    assert_close(
        evaluation.contextual_calibration(free, free), np.full((1, 3), -math.log(3)), atol=1e-12,
        rtol=0,
    )  # fmt: skip
    rows = np.log([[0.6, 0.3, 0.1]]) + 5.0  # a constant a row changes nothing
    expected = np.array([0.6 / 0.7, 0.3 / 0.2, 0.1 / 0.1])
    found = np.exp(evaluation.contextual_calibration(rows, free))
    assert_close(found, (expected / expected.sum())[None], atol=1e-12, rtol=0)
    assert rows.argmax() == 0
    assert found.argmax() == 1


def test_calibration_means_probabilities_not_logarithms():
    free = np.log([[0.9, 0.1], [0.5, 0.5]])
    found = np.exp(evaluation.contextual_calibration(np.log([[0.5, 0.5]]), free))[0]
    assert found[1] / found[0] == pytest.approx(0.7 / 0.3)


def test_an_interval_resamples_documents():
    """Ten questions about one text are not ten texts."""
    alone = [ChoiceQuestion("", ("a", "b"), 0)] * 40
    grouped = [ChoiceQuestion("", ("a", "b"), 0, document=str(i // 10)) for i in range(40)]
    chosen = np.array([0] * 20 + [1] * 20)
    narrow = evaluation.choice_accuracy(alone, chosen)
    wide = evaluation.choice_accuracy(grouped, chosen)
    assert narrow.estimate == wide.estimate == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_lazy_choices():
    asked = [ChoiceQuestion("", ("aa", "b", "ccc"), 1), ChoiceQuestion("", ("bb", "c"), 1)]
    lazy = evaluation.lazy_choices(asked)
    assert {name: it.tolist() for name, it in lazy.items()} == {
        "most frequent index": [1, 1],
        "longest choice": [2, 0],
        "shortest choice": [1, 1],
    }


def test_a_prompt_that_does_not_fit_is_named(tokenizer):
    long = ChoiceQuestion("the key " * 100, ("red", "blue"), 0)
    with pytest.raises(LabError, match=r"question 2 has \d+ tokens .* reads 96: shorten"):
        evaluation.score_choices(model_of("llama", tokenizer), tokenizer, [QUESTIONS[0], long])
    with pytest.raises(LabError, match="0 questions"):
        evaluation.score_choices(model_of("llama", tokenizer), tokenizer, [])


# --- prompts -----------------------------------------------------------------------------------


def test_a_few_shot_prompt_ends_where_its_label_begins():
    prompt = text.few_shot_prompt("Text: {text}\nTopic: {label}", [("x {label}", "a")], "{text} y")
    assert prompt == "Text: x {label}\nTopic: a\n\nText: {text} y\nTopic:"
    assert ChoiceQuestion(prompt, ("a", " b"), 0).continuations == (" a", " b")
    assert ChoiceQuestion("Topic:\n", ("a", "b"), 0).continuations == ("a", "b")


@pytest.mark.parametrize("template", ["{text}", "{label} {text}", "{text} {text} {label}"])
def test_a_template_needs_both_places(template):
    with pytest.raises(LabError, match="template"):
        text.few_shot_prompt(template, [], "x")


def test_orders_differ_and_follow_from_the_seed():
    orders = text.example_orders(4, 20, seed=1)
    assert len(set(orders)) == 20
    assert all(sorted(it) == [0, 1, 2, 3] for it in orders)
    assert orders == text.example_orders(4, 20, seed=1) != text.example_orders(4, 20, seed=2)
    assert len(text.example_orders(3, 100)) == 6


def test_examples_are_drawn_of_every_class():
    labels = [0] * 10 + [1] * 3
    drawn = text.draw_examples(labels, 3, seed=0)
    assert len(set(drawn)) == 6
    assert sum(labels[i] for i in drawn) == 3
    assert drawn != text.draw_examples(labels, 3, seed=1)
    with pytest.raises(LabError, match="per_class 4 is out of range: class 1 has 3 examples"):
        text.draw_examples(labels, 4)


def test_docstrings():
    assert doctest.testmod(text.prompting).failed == 0


# --- files and the command ---------------------------------------------------------------------

GOOD = {"prompt": "the key", "choices": ["red", "blue"], "answer": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "row 2 has no text in column 'prompt'"),
        ({"choices": "red"}, "row 2 has choices 'red': give a list of two or more texts"),
        ({"choices": ["red"]}, "give a list of two or more texts"),
        ({"choices": ["red", " "]}, "give a list of two or more texts"),
        ({"choices": ["red", "red"]}, "row 2 has the same choice twice"),
        ({"answer": 2}, "row 2 has answer 2: give the index of the right choice, 0 to 1"),
        ({"answer": -1}, "answer -1"),
        ({"answer": True}, "answer True"),
        ({"answer": "blue"}, "answer 'blue'"),
    ],
)
def test_a_bad_row_is_one_sentence(change, message, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (GOOD, {**GOOD, **change})))
    with pytest.raises(LabError) as caught:
        text.read_choices(file)
    assert message in str(caught.value)


def test_a_question_may_be_called_question_and_a_table_is_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "q", "choices": ["a", "b"], "answer": 0, "document": 7}')
    assert text.read_choices(file) == [ChoiceQuestion("q", ("a", "b"), 0, "7")]
    with pytest.raises(LabError, match=r"must end in \.jsonl"):
        text.read_choices(tmp_path / "a.csv")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices") / "model"
    save_pretrained(model_of("llama", tokenizer), folder, tokenizer)
    return folder


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": q.prompt, "choices": q.choices, "answer": q.answer} for q in QUESTIONS]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_evaluate_scores_a_file_of_choices(folder, file, tokenizer, capsys):
    assert here("evaluate", folder, "--choices", file, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    found = evaluation.score_choices(model_of("llama", tokenizer), tokenizer, QUESTIONS)
    answers = np.array([q.answer for q in QUESTIONS])
    rows = said["accuracy"]
    assert rows["log-probability"]["estimate"] == np.mean(found.chosen() == answers)
    per_byte = np.mean(found.chosen("byte") == answers)
    assert rows["log-probability / bytes"]["estimate"] == per_byte
    assert rows["most frequent index"]["estimate"] == 3 / 6
    assert said["questions"] == 6
    assert said["chance"] == pytest.approx((5 / 2 + 1 / 3) / 6)
    assert here("evaluate", folder, "--choices", file) == 0
    shown = capsys.readouterr().out
    for name in rows:
        assert name in shown
    assert "choosing at random: 0.4722" in shown


def test_evaluate_takes_data_or_choices(folder, file, capsys):
    assert here("evaluate", folder, "--choices", file, "--data", "bbc") == 2
    assert "none beside --choices" in capsys.readouterr().err
    assert here("evaluate", folder, "--choices", file.with_name("none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err

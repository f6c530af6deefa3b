"""Answers that are spans: windows, loss, decoding, thresholds, folders for transformers."""

import doctest
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from labkit.batches import Batches, Pad, span_windows
from labkit.errors import LabError
from labkit.evaluation import best_spans, choose_threshold, join_windows, spans
from labkit.models import SpanReader, Transformer, TransformerConfig
from labkit.objectives import span_answer, span_logits
from labkit.text import Tokenizer, corpora, span_questions, storyworld, train_bpe
from labkit.training import TrainConfig, train

TEXT = "Amara was in the kitchen and Omar had the red lamp. Mei went to the harbour to sing."


@pytest.fixture(scope="module")
def minilm():
    return Tokenizer.from_pretrained(corpora.minilm_folder())


@pytest.fixture(scope="module")
def own():
    return train_bpe([story.text for story in storyworld.stories(300)], 400)


def reader_of(vocab_size=40, **changes):
    torch.manual_seed(0)
    shape = {"context_length": 64, "d_model": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
    config = TransformerConfig.bert(vocab_size=vocab_size, **(shape | changes))
    return SpanReader(Transformer(config))


def scattered(reader):
    with torch.no_grad():
        for p in reader.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return reader.eval()


# --- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["minilm", "own"])
@pytest.mark.parametrize("answer", ["Amara", "kitchen", "Omar", "red lamp", "harbour", "to sing"])
def test_tokens_lead_back_to_the_characters_of_the_answer(which, answer, request):
    tokenizer, start = request.getfixturevalue(which), TEXT.index(answer)
    where = [(start, start + len(answer))]
    windows = span_windows(tokenizer, ["Where is Mei?"], [TEXT], 24, 6, where)
    assert len(windows) > 1
    holding = [w for w in windows if int(w.example["start_positions"])]
    assert holding, "some window holds the whole answer"
    for window in windows:
        first, last = (int(window.example[f"{side}_positions"]) for side in ("start", "end"))
        if first:
            assert TEXT[window.offsets[first][0] : window.offsets[last][1]] == answer
        else:
            assert last == 0
        assert len(window.example["input_ids"]) == len(window.offsets) <= 24
        assert window.example["token_type_ids"].tolist().index(1) == window.offsets.index(
            next(o for o in window.offsets if o != (-1, -1))
        )


def test_windows_hold_every_token_and_overlap(minilm):
    windows = span_windows(minilm, ["Who?"], [TEXT * 5], 32, 11)
    covered = [place for w in windows for place in w.offsets if place != (-1, -1)]
    whole = span_windows(minilm, ["Who?"], [TEXT * 5], 512, 11)
    assert len(whole) == 1
    assert sorted(set(covered)) == [place for place in whole[0].offsets if place != (-1, -1)]
    assert len(covered) > len(set(covered))
    one = minilm.encode("Who?")
    assert windows[0].example["input_ids"].tolist()[: len(one)] == one
    assert span_windows(minilm, ["Who?"], [""], 32, 11)[0].offsets == [(-1, -1)] * (len(one) + 1)


def test_a_window_is_what_transformers_makes_of_the_pair(minilm):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(corpora.minilm_folder())
    pair = theirs(
        "Who?", TEXT, max_length=20, stride=20 - 5 - 6, truncation="only_second",
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    ours = span_windows(minilm, ["Who?"], [TEXT], 20, 6)
    assert [w.example["input_ids"].tolist() for w in ours] == pair.input_ids
    assert [w.example["token_type_ids"].tolist() for w in ours] == pair.token_type_ids


def test_windows_that_cannot_be_made_are_said(minilm):
    with pytest.raises(LabError, match=r"max_length 6 leaves 1 tokens of the text .* stride is 2"):
        span_windows(minilm, ["Who?"], [TEXT], 6, 2)
    with pytest.raises(LabError, match="stride is 0"):
        span_windows(minilm, ["Who?"], [TEXT], 32, 0)
    for answer in ((5, 5), (0, 1000), (-1, 4)):
        with pytest.raises(LabError, match=f"answer at {answer[0]} to {answer[1]} lies outside"):
            span_windows(minilm, ["Who?"], [TEXT], 32, 8, [answer])


# --- loss --------------------------------------------------------------------------------------


def batch_of(lengths=(9, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = [
        {
            "input_ids": torch.randint(1, 40, (n,), generator=generator),
            "token_type_ids": torch.tensor([0] * 3 + [1] * (n - 3)),
            "start_positions": torch.tensor(start),
            "end_positions": torch.tensor(end),
        }
        for n, start, end in zip(lengths, (4, 0), (7, 0), strict=True)
    ]
    return Pad(0)(examples), examples


def test_the_loss_by_hand_and_padding_takes_no_probability():
    reader = scattered(reader_of())
    batch, examples = batch_of()
    total = 0.0
    for example in examples:
        output = reader(example["input_ids"][None], None, example["token_type_ids"][None])
        for name, logits in zip(("start", "end"), output, strict=True):
            total -= float(logits[0].detach().log_softmax(-1)[example[f"{name}_positions"]])
    loss, count = span_answer(reader.requires_grad_(False), batch)
    assert count == 4
    assert float(loss) == pytest.approx(total, abs=1e-4)
    naive = reader(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    naive = sum(
        float(F.cross_entropy(logits, batch[f"{name}_positions"], reduction="sum"))
        for name, logits in zip(("start", "end"), naive, strict=True)
    )
    assert naive > total + 0.1, "logits at padding must not be read"


def test_without_padding_it_is_the_loss_of_transformers_and_the_logits_are_its_too():
    reader = scattered(reader_of())
    batch, _ = batch_of((8, 8))
    theirs = reader.to_huggingface().requires_grad_(False)
    loss, count = span_answer(reader.requires_grad_(False), batch)
    with torch.no_grad():
        said = theirs(**batch)
    assert float(said.loss) == pytest.approx(float(loss / count), abs=1e-5)
    for ours, other in zip(
        span_logits(reader, batch), (said.start_logits, said.end_logits), strict=True
    ):
        assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert float(span_answer(theirs, batch)[0]) == pytest.approx(float(loss), abs=1e-4)


def test_a_batch_without_answers_and_a_decoder_are_refused():
    batch, _ = batch_of()
    del batch["end_positions"]
    with pytest.raises(LabError, match="no end_positions: give span_windows the answers"):
        span_answer(reader_of(), batch)
    config = TransformerConfig.llama(vocab_size=9, d_model=16, num_layers=1, num_heads=2)
    with pytest.raises(LabError, match="kind is 'decoder': a reader of spans needs an encoder"):
        SpanReader(Transformer(config))


# --- decoding ----------------------------------------------------------------------------------


def by_brute_force(start, end, allowed, most):
    every = [
        (float(start[i] + end[j]), i, j)
        for i, j in itertools.product(range(len(start)), repeat=2)
        if i <= j < i + most and allowed[i] and allowed[j]
    ]
    return sorted(every, key=lambda it: -it[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_best_spans_are_those_of_brute_force_and_not_two_argmaxes(seed):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 12, generator=generator)
    allowed = torch.rand(12, generator=generator) > 0.2
    expected = by_brute_force(start, end, allowed, 4)
    found = best_spans(start, end, allowed, 4, 5)
    assert [(s.start, s.end) for s in found] == [(i, j) for _, i, j in expected[:5]]
    assert_close([s.score for s in found], [value for value, _, _ in expected[:5]])
    assert len(best_spans(start, end, allowed, 4, 1000)) == len(expected)


def test_beginning_and_end_chosen_apart_are_often_no_span():
    wrong = 0
    for seed in range(40):
        start, end = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed))
        best = best_spans(start, end, torch.ones(12) > 0, 4)[0]
        naive = int(start.argmax()), int(end.argmax())
        wrong += naive != (best.start, best.end)
    assert wrong > 10


def test_windows_of_one_question_are_joined_in_characters():
    places = [(-1, -1), (0, 3), (4, 7)], [(-1, -1), (4, 7), (8, 9)]
    starts = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 5.0, 0.0])
    ends = torch.tensor([3.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 9.0])
    found = join_windows(starts, ends, places, most_tokens=2, count=3)
    assert [span[:2] for span in found.spans] == [(4, 9), (8, 9), (4, 7)]
    assert found.spans[2].score == 6.0, "of a span in two windows the better one counts"
    assert (found.null, found.gap) == (2.0, 2.0 - 14.0)
    nothing = join_windows([torch.zeros(1)], [torch.zeros(1)], [[(-1, -1)]])
    assert (nothing.spans, nothing.gap) == ([], math.inf)
    with pytest.raises(LabError, match="0 windows"):
        join_windows([], [], [])
    with pytest.raises(LabError, match="most_tokens is 0"):
        best_spans(torch.zeros(2), torch.zeros(2), torch.ones(2) > 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randint(-5, 6, (30,), generator=generator).double().tolist()
    gaps[0] = math.inf
    scores = torch.rand(30, generator=generator).tolist()
    scores[0] = 0.0
    possible = (torch.rand(30, generator=generator) > 0.3).tolist()
    scores = [s * p for s, p in zip(scores, possible, strict=True)]

    def mean(threshold):
        said = [
            (1.0 - p) if g > threshold else s
            for g, s, p in zip(gaps, scores, possible, strict=True)
        ]
        return sum(said) / len(said)

    threshold, best = choose_threshold(gaps, scores, possible)
    assert math.isfinite(threshold)
    assert mean(threshold) == pytest.approx(best)
    assert best == pytest.approx(max(mean(t / 2) for t in range(-20, 21)))
    assert best >= mean(0.0)


def test_a_threshold_of_nothing_is_refused():
    with pytest.raises(LabError, match="0 gaps, 0 scores and 0 truths"):
        choose_threshold([], [], [])
    assert choose_threshold([1.0], [0.0], [False])[1] == 1.0
    assert choose_threshold([1.0], [1.0], [True])[1] == 1.0


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(spans).failed == 0


# --- folders, learning -------------------------------------------------------------------------


def test_a_trained_reader_opens_in_transformers_and_says_the_same(tmp_path, own):
    from transformers import AutoModelForQuestionAnswering

    reader = reader_of(own.vocab_size)
    stories = [storyworld.story(i) for i in range(12)]
    asked = [q for s in stories for q in span_questions.story_questions(s)][:48]
    windows = span_windows(
        own,
        [q.question for q in asked],
        [q.context for q in asked],
        64,
        24,
        [(q.start, q.start + len(q.answer)) if q.possible else (-1, -1) for q in asked],
    )
    batches = Batches([w.example for w in windows], 24, Pad(own.pad_id))
    config = TrainConfig(steps=120, learning_rate=1e-2, out=tmp_path / "run", precision="fp32")
    history = train(reader, span_answer, batches, config, tokenizer=own).history
    assert history[-1].loss < 0.8 * history[0].loss
    opened = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / "model")
    batch = next(iter(batches.evaluation_batches()))
    for ours, theirs in zip(span_logits(reader, batch), span_logits(opened, batch), strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# --- questions ---------------------------------------------------------------------------------


def test_every_answer_stands_where_it_is_said_to_and_a_third_has_none():
    for name, options in (("storyworld", {"count": 300}),):
        rows = span_questions.span_questions(name, **options)
        for part in rows:
            for row in rows[part]:
                end = row["start"] + len(row["answer"])
                assert row["start"] == -1 or row["context"][row["start"] : end] == row["answer"]
                assert (row["start"] == -1) == (row["answer"] == "")
        none = sum(start < 0 for start in rows["train"]["start"]) / len(rows["train"])
        assert 0.25 < none < 0.35
        contexts = [set(rows[part]["context"]) for part in ("train", "validation", "test")]
        assert not contexts[0] & contexts[1]
        assert not (contexts[0] | contexts[1]) & contexts[2]


def test_a_story_has_no_answer_only_where_nothing_happened():
    """The impossible ones against the hidden state, told again from the same choices."""
    checked = 0
    for index in range(150):
        narrator = storyworld.Sampler(random.Random(f"storyworld 0 {index}"))
        world = storyworld.tell(narrator)
        went = {(person, place) for person, place, _ in world.moves}
        for it in span_questions.story_questions(storyworld.story(index)):
            words = it.question.rstrip("?").split()
            if it.kind == "who_has":
                assert (words[-1] in world.holder_of) == it.possible
                assert not it.possible or world.holder_of[words[-1]] == it.answer
            elif it.kind == "why":
                assert ((words[2], words[-1]) in went) == it.possible
                checked += not it.possible
    assert checked > 100


CODE = """class Plain:
    pass

class Small(Plain):
    def cut(self, text, width: int = 70, *, strict=None):
        return text[:width]

def cut(text, width="a b"):
    return text
"""


def test_questions_about_code_are_answered_from_its_tree():
    asked = {it.question: it for it in span_questions.code_questions(CODE)}
    assert {question: it.answer for question, it in asked.items() if "Small" in question} == {
        "What is the base class of Small?": "Plain"
    }
    assert asked["What is the base class of Plain?"].start == -1
    defaults = [it for it in span_questions.code_questions(CODE) if it.kind == "default"]
    assert {(it.question.split()[5], it.answer) for it in defaults} == {
        ("text", ""), ("width", "70"), ("strict", "None"), ("width", '"a b"'),
    }  # fmt: skip
    for it in defaults:
        assert it.context[it.start :].startswith(it.answer) or not it.possible
    assert span_questions.code_questions("def broken(:") == []


def test_the_lazy_readers_answer_some_and_fail_where_the_text_must_be_followed():
    rows = span_questions.span_questions("storyworld", count=300)["train"]
    right = [
        span_questions.lazy_story_answer(c, q) == a
        for c, q, a in zip(rows["context"], rows["question"], rows["answer"], strict=True)
    ]
    assert 0.5 < sum(right) / len(right) < 0.8
    ask = "What is the default of width in cut?"
    assert span_questions.lazy_code_answer(CODE, ask) == "70", (
        "of the first cut, whichever is asked"
    )
    assert span_questions.lazy_code_answer(CODE, "What is the base class of Small?") == "Plain"
    assert span_questions.lazy_code_answer(CODE, "Why?") == ""


def test_questions_that_cannot_be_made_are_said():
    with pytest.raises(LabError, match="no questions on 'bbc_news': choose storyworld"):
        span_questions.span_questions("bbc_news")
    with pytest.raises(LabError, match="most 0 is out of range"):
        span_questions.balanced([], 0)

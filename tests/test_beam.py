"""Beam search: equal to trying every text, greedy with one beam, transformers' by its own rule."""

import dataclasses
import doctest
import itertools

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.generation import beam, beam_search, generate
from labkit.models import EncoderDecoder, Transformer, TransformerConfig
from labkit.models.huggingface import to_huggingface

TINY = {"vocab_size": 4, "context_length": 12, "d_model": 16, "num_layers": 2, "num_heads": 4}
WIDE = {**TINY, "vocab_size": 23, "context_length": 24}
SHAPES = {
    "llama": TransformerConfig.llama(**TINY, num_kv_heads=2),
    "gpt2": TransformerConfig.gpt2(**TINY, dropout=0.0),
    "bart": TransformerConfig.bart(**TINY, dropout=0.0),
    "wide_llama": TransformerConfig.llama(**WIDE),
    "wide_gpt2": TransformerConfig.gpt2(**WIDE, dropout=0.0),
    "wide_bart": TransformerConfig.bart(**WIDE, dropout=0.0),
}
END, LONGEST = 3, 4
PENALTIES = (0.0, 0.6, 1.0, 2.0, -1.0)


def model_of(shape, seed=0, spread=0.5):
    torch.manual_seed(seed)
    config = SHAPES[shape]
    model = (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * spread)
    return model.eval()


def next_logs(model, prompt, text):
    """ln p(next token | prompt, text), from the whole text, without a cache."""
    with torch.no_grad():
        if isinstance(model, EncoderDecoder):
            answer = torch.tensor([[0, *text]])
            return (
                model(torch.tensor([prompt]), decoder_input_ids=answer)
                .logits[0, -1]
                .log_softmax(-1)
            )
        return model(torch.tensor([[*prompt, *text]])).logits[0, -1].log_softmax(-1)


def every_text(model, prompt):
    """(text, log-probability, length) of all texts of up to LONGEST tokens."""
    letters = [token for token in range(SHAPES["llama"].vocab_size) if token != END]
    logs = {
        text: next_logs(model, prompt, text)
        for n in range(LONGEST)
        for text in itertools.product(letters, repeat=n)
    }
    for text, row in logs.items():
        total = sum(float(logs[text[:i]][text[i]]) for i in range(len(text)))
        yield list(text), total + float(row[END]), len(text) + 1
        if len(text) == LONGEST - 1:
            for token in letters:
                yield [*text, token], total + float(row[token]), LONGEST


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "bart"])
def test_with_enough_beams_it_is_exhaustive_search(shape, penalty):
    """V^(T - 1) beams: the best three of all texts, for two prompts of unequal length at once."""
    model, prompts = model_of(shape), [[1, 2, 0], [2]]
    beams = TINY["vocab_size"] ** (LONGEST - 1)
    found = beam_search(model, prompts, LONGEST, beams, penalty, END, start_id=0)
    for prompt, hypotheses in zip(prompts, found, strict=True):
        every = sorted(every_text(model, prompt), key=lambda t: -(t[1] / t[2] ** penalty))
        for ours, (text, log_p, length) in zip(hypotheses[:3], every[:3], strict=True):
            assert ours.ids == text
            assert ours.log_probability == pytest.approx(log_p, abs=1e-4)
            assert ours.score == pytest.approx(log_p / length**penalty, abs=1e-4)


def best_of_all(model, prompt, key):
    return max(every_text(model, prompt), key=key)[0]


def test_a_search_without_the_penalty_or_without_the_ended_texts_finds_another_text():
    """What the test above would catch: each naive rule is wrong for some of these models."""
    wrong = {"penalty": 0, "ended": 0}
    for seed in range(12):
        model, prompt = model_of("llama", seed), [1, 2]
        ((best, *_),) = beam_search(model, [prompt], LONGEST, 64, 1.0, END)
        assert best.ids == best_of_all(model, prompt, lambda t: t[1] / t[2])
        wrong["penalty"] += best.ids != best_of_all(model, prompt, lambda t: t[1])
        cut = [t for t in every_text(model, prompt) if t[2] == LONGEST]
        wrong["ended"] += best.ids != max(cut, key=lambda t: t[1] / t[2])[0]
    assert min(wrong.values()) >= 2, wrong


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("shape", ["wide_llama", "wide_gpt2", "wide_bart"])
def test_one_beam_is_greedy(shape, penalty):
    model, prompts = model_of(shape), [[1, 2, 5, 4], [7], [9, 9]]
    greedy = generate(model, prompts, 9, temperature=0, end_id=END, start_id=0)
    found = beam_search(model, prompts, 9, 1, penalty, END, start_id=0)
    assert [hypotheses[0].ids for hypotheses in found] == greedy


def test_two_beams_find_a_likelier_text_than_greedy():
    gains = []
    for seed in range(6):
        model, prompt = model_of("wide_llama", seed), [[1, 2, 5]]
        one, two = (beam_search(model, prompt, 8, n, 0.0)[0][0] for n in (1, 2))
        gains.append(two.log_probability - one.log_probability)
        assert len(one.ids) == len(two.ids) == 8
    assert max(gains) > 0.1


@pytest.mark.parametrize("shape", ["wide_llama", "wide_gpt2", "wide_bart"])
def test_prompts_together_are_prompts_alone_and_the_cache_changes_nothing(shape):
    model, prompts = model_of(shape), [[1, 2, 5, 4], [7], [9, 9], [4, 4, 1]]
    together = beam_search(model, prompts, 9, 3, 0.7, END, start_id=0)
    plain = beam_search(model, prompts, 9, 3, 0.7, END, start_id=0, use_cache=False)
    for prompt, some, uncached in zip(prompts, together, plain, strict=True):
        (alone,) = beam_search(model, [prompt], 9, 3, 0.7, END, start_id=0)
        for other in (alone, uncached):
            assert [h.ids for h in some] == [h.ids for h in other]
            assert_close([h.score for h in some], [h.score for h in other], rtol=0, atol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, -0.5])
@pytest.mark.parametrize("shape", ["wide_llama", "wide_gpt2", "wide_bart"])
def test_it_is_transformers_beam_search_under_early_stopping_never(shape, penalty):
    model = model_of(shape)
    theirs, prompt = to_huggingface(model), [1, 2, 5, 4]
    likely = generate(model, prompt, 8, temperature=0, start_id=0)
    options = {
        "num_beams": 4, "num_return_sequences": 4, "do_sample": False, "max_new_tokens": 8,
        "early_stopping": "never", "length_penalty": penalty, "pad_token_id": 0,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    if shape == "wide_bart":
        options |= {"decoder_start_token_id": 0, "forced_eos_token_id": None}
    ended, skip = 0, 1 if shape == "wide_bart" else len(prompt)
    for ends in ([3], [likely[2]], [likely[5], 3, 8]):
        with torch.no_grad():
            found = theirs.generate(torch.tensor([prompt]), eos_token_id=ends, **options)
        for ours, row, value in zip(
            beam_search(model, [prompt], 8, 4, penalty, ends, start_id=0)[0],
            found.sequences[:, skip:].tolist(),
            found.sequences_scores.tolist(),
            strict=True,
        ):
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            assert ours.ids == row[:stop]
            assert ours.score == pytest.approx(value, abs=1e-4)
            ended += ours.ended
    assert ended, "no text ended: the penalty was not tried"


def test_a_model_of_transformers_is_searched_alike():
    model, prompts = model_of("wide_llama"), [[1, 2, 5, 4], [7]]
    ours = beam_search(model, prompts, 7, 3, 1.0, END)
    for use_cache in (True, False):
        theirs = beam_search(to_huggingface(model), prompts, 7, 3, 1.0, END, use_cache=use_cache)
        assert [[h.ids for h in some] for some in ours] == [
            [h.ids for h in some] for some in theirs
        ]


def test_a_layer_with_a_hook_is_searched_through_the_model_itself():
    model, prompts = model_of("wide_llama"), [[1, 2, 5, 4]]
    before = beam_search(model, prompts, 7, 3)
    handle = model.blocks[0].register_forward_hook(lambda _, __, out: out * 0.5)
    assert beam_search(model, prompts, 7, 3) != before
    handle.remove()
    assert beam_search(model, prompts, 7, 3) == before
    assert not model.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beams": 0}, "beams is 0; it must be at least 1"),
        ({"prompts": [[1], []]}, "a prompt is empty"),
        ({"prompts": []}, "a prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 12}, "2 tokens and max_new_tokens 12 do not fit .* context of 12"),
    ],
)
def test_what_cannot_be_searched_is_said(change, words):
    options = {"prompts": [[1, 2]], "max_new_tokens": 3, "beams": 2} | change
    with pytest.raises(LabError, match=words):
        beam_search(model_of("llama"), **options)


def test_an_encoder_decoder_needs_the_token_that_begins_an_answer():
    with pytest.raises(LabError, match="start_id is None"):
        beam_search(model_of("bart"), [[1]], 3)
    encoder = Transformer(dataclasses.replace(SHAPES["llama"], kind="encoder"))
    with pytest.raises(LabError, match="needs a decoder with a language-model head"):
        beam_search(encoder, [[1]], 3)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(beam).failed == 0

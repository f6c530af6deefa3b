"""Sampling and generation. Cached = uncached: test_exactness.py."""

import pytest
import torch
from torch.testing import assert_close
from training import tiny_model

from labkit.errors import LabError
from labkit.generation import generate, left_pad, next_token_probabilities, stream
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import to_huggingface

CONFIG = TransformerConfig.llama(
    vocab_size=31, context_length=20, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_temperature_sharpens_and_flattens():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert_close(next_token_probabilities(logits), logits.softmax(-1))
    assert_close(next_token_probabilities(logits, temperature=0.5), (logits * 2).softmax(-1))
    assert next_token_probabilities(logits, temperature=0).tolist() == [[0, 0, 1]]


def test_top_k_and_top_p_keep_the_head_of_the_distribution():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert_close(next_token_probabilities(logits, top_k=2), torch.tensor([[0, 2 / 3, 0, 1 / 3]]))
    assert_close(next_token_probabilities(logits, top_p=0.6), torch.tensor([[0, 2 / 3, 0, 1 / 3]]))
    assert_close(next_token_probabilities(logits, top_p=0.5), torch.tensor([[0, 1.0, 0, 0]]))
    assert_close(next_token_probabilities(logits, top_k=9, top_p=1.0), logits.exp())
    nucleus_of_two = next_token_probabilities(logits, top_k=3, top_p=0.5)
    assert (nucleus_of_two > 0).sum() == 1


def test_sampling_follows_the_distribution():
    torch.manual_seed(0)
    p = next_token_probabilities(torch.tensor([[0.2, 0.3, 0.5]]).log())
    draws = torch.multinomial(p.expand(4000, 3), 1).flatten().bincount() / 4000
    assert_close(draws, p[0], rtol=0, atol=0.03)


def test_greedy_is_the_argmax_of_the_model(model):
    text = [3, 1, 4]
    new = generate(model, text, 6, temperature=0)
    for _ in range(6):
        text = [*text, int(model.eval()(torch.tensor([text])).logits[0, -1].argmax())]
    assert new == text[3:]


def test_both_libraries_write_the_same(model):
    prompts = [[1, 2, 3, 4], [5]]
    ours = generate(model, prompts, 8, temperature=0.9, top_k=5, seed=3)
    theirs = generate(to_huggingface(model), prompts, 8, temperature=0.9, top_k=5, seed=3)
    assert ours == theirs
    assert [len(answer) for answer in ours] == [8, 8]


def test_the_seed_decides_and_the_mode_is_restored(model):
    model.train()
    texts = [tuple(generate(model, [1, 2], 8, seed=seed)) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
    assert model.training


def test_stops_before_end_id(model):
    free = generate(model, [[1, 2], [7]], 12, temperature=0)
    end = free[0][4]
    ended = generate(model, [[1, 2], [7]], 12, temperature=0, end_id=end)
    assert ended[0] == free[0][: free[0].index(end)]
    expected = free[1][: free[1].index(end)] if end in free[1] else free[1]
    assert ended[1] == expected
    steps = list(stream(model, [[1, 2]], 12, temperature=0, end_id=end))
    assert len(steps) == free[0].index(end) + 1


def test_a_long_prompt_keeps_its_end(model):
    long = list(range(1, 31))
    assert generate(model, long, 5, temperature=0) == generate(model, long[-15:], 5, temperature=0)


def test_one_prompt_gives_one_answer_and_a_tensor_a_batch(model):
    one = generate(model, [1, 2], 3, temperature=0)
    assert generate(model, torch.tensor([[1, 2]]), 3, temperature=0) == [one]


def test_left_pad_ends_together():
    ids, mask = left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"ids": []}, "prompt is empty"),
        ({"ids": [[1], []]}, "prompt is empty"),
    ],
)
def test_impossible_values_are_named(model, arguments, named):
    with pytest.raises(LabError, match=named):
        generate(model, **{"ids": [1], "max_new_tokens": 2, **arguments})


def test_an_encoder_cannot_write():
    tiny = {"vocab_size": 9, "context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2}
    encoder = Transformer(TransformerConfig.bert(**tiny))
    with pytest.raises(LabError, match="decoder"):
        generate(encoder, [1], 2)


def test_only_a_labkit_decoder_with_a_cache_is_compiled(model):
    with pytest.raises(LabError, match="use_cache=True"):
        generate(model, [1], 2, use_cache=False, compile=True)
    with pytest.raises(LabError, match="labkit decoder"):
        generate(to_huggingface(model), [1], 2, compile=True)


def test_a_caller_may_train_on_what_a_stream_gives(model):
    weight = torch.ones(1, requires_grad=True)
    for step in stream(model, [[1, 2, 3]], 3, temperature=0):
        (step.logits * weight).sum().backward()
        assert model.embedding(step.tokens).requires_grad
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_prompt_is_read_and_the_window_slides_when_it_is_full(use_cache):
    """Longer than the context: token by token, from the definition of the window."""
    model = tiny_model(context_length=16, initializer_range=0.5).eval()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    new = generate(model, prompt, 40, temperature=0, use_cache=use_cache)
    text, begin = list(prompt), 0
    with torch.no_grad():
        for written in range(40):
            if written in (8, 16, 24, 32):  # the window of 16 is full: its second half goes on
                begin = len(text) - 8
            logits = model(torch.tensor([text[begin:]])).logits[0, -1]
            text.append(int(logits.argmax()))
    assert new == text[len(prompt) :]
    assert new[0] != generate(model, prompt[-1:], 1, temperature=0)[0], "the prompt matters"


def test_a_prompt_longer_than_the_context_keeps_its_end():
    model = tiny_model(context_length=16, initializer_range=0.5).eval()
    long = [(7 * i) % 31 for i in range(50)]
    assert generate(model, long, 4, temperature=0) == generate(model, long[-12:], 4, temperature=0)
    assert len(generate(model, long, 60, temperature=0)) == 60

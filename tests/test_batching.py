"""Continuous batching: what joins and leaves a batch is written as if it were alone."""

import dataclasses
import random

import pytest
import torch
from torch.testing import assert_close
from training import tiny_lora, tiny_model

from labkit.errors import LabError
from labkit.generation import Batcher, Request, generate, generate_each, left_pad
from labkit.models import SlotCache, Transformer, TransformerConfig
from labkit.models.adapting import Strategy, apply
from labkit.models.huggingface import to_huggingface

SHAPE = {"vocab_size": 31, "context_length": 64, "d_model": 16, "num_layers": 2, "num_heads": 4}


def spread(model: Transformer) -> Transformer:
    """Weights so large that a wrong position or a foreign key changes what is written."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def llama() -> Transformer:
    return spread(Transformer(TransformerConfig.llama(num_kv_heads=2, **SHAPE)))


@pytest.fixture(scope="module")
def gpt2() -> Transformer:
    return spread(Transformer(TransformerConfig.gpt2(**SHAPE)))


def requests(count: int = 40) -> list[Request]:
    """Prompts of 1 to 20 tokens, answers of up to 30, greedy and drawn, with ends and without."""
    chance = random.Random(0)
    return [
        Request(
            ids=[chance.randrange(31) for _ in range(chance.randint(1, 20))],
            max_new_tokens=chance.randint(1, 30),
            temperature=(0, 1.0, 0.7)[i % 3],
            top_k=(None, 8)[i % 2],
            top_p=(None, 0.9, None, 0.8)[i % 4],
            seed=i,
            end_id=(None, 5, (2, 9))[i % 3 if i % 5 else 0],
        )
        for i in range(count)
    ]


def alone(model, asked: Request) -> list[int]:
    return generate(model, **dataclasses.asdict(asked))


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_each_request_is_written_as_if_it_were_alone(shape, slots, request):
    model, asked = request.getfixturevalue(shape), requests()
    expected = [alone(model, it) for it in asked]
    assert generate_each(model, asked, slots) == expected
    assert len({len(answer) for answer in expected}) > 5, "they end at different times"


def test_a_request_that_joins_later_changes_nothing(llama):
    """One every third step, whatever the others have reached, and the cache's rows move."""
    asked = requests(20)
    batcher, coming, answers = Batcher(llama, 4), list(enumerate(asked)), {}
    place: dict[int, int] = {}
    steps = 0
    while coming or batcher.waiting or batcher.running:
        if coming and steps % 3 == 0:
            i, it = coming.pop(0)
            place[batcher.submit(it)] = i
            answers[i] = []
        for ticket, token, end in batcher.step():
            if end != "stop":
                answers[place[ticket]].append(token)
        steps += 1
    assert [answers[i] for i in range(20)] == [alone(llama, it) for it in asked]


def test_the_logits_are_those_of_the_model_to_rounding(llama):
    """Of texts of three lengths in one batch, beside each read whole; tokens are not all of it."""
    texts = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]
    slots = llama.new_slots(5, 12)
    with torch.no_grad():
        for text in texts:
            cache = llama.new_cache(1, len(text))
            llama(torch.tensor([text]), cache=cache)
            slots.join(cache)
        slots.leave(0)  # the third text moves to row 0, where the first stood
        new = torch.tensor([[20], [21]])
        said = llama(
            new, attention_mask=slots.mask(), position_ids=slots.places()[:, None], cache=slots
        ).logits[:, -1]
        whole = [llama(torch.tensor([it])).logits[0, -1] for it in ([*texts[2], 20], [8, 9, 21])]
    assert_close(said, torch.stack(whole), atol=1e-5, rtol=1e-5)
    assert slots.lengths == [5, 3]


@pytest.mark.parametrize("naive", ["sees its neighbour's past", "stands in the longest's place"])
def test_the_gate_sees_a_careless_cache(gpt2, naive, monkeypatch):
    asked = [dataclasses.replace(it, temperature=0, end_id=None) for it in requests()]
    expected = [alone(gpt2, it) for it in asked]
    if naive == "sees its neighbour's past":
        monkeypatch.setattr(SlotCache, "mask", lambda self: _everything(self))
    else:
        monkeypatch.setattr(
            SlotCache, "places", lambda self: torch.full((len(self.lengths),), self.length)
        )
    assert generate_each(gpt2, asked, 8) != expected


def _everything(cache: SlotCache) -> torch.Tensor:
    return torch.ones(len(cache.lengths), cache.length + 1, dtype=torch.long)


def test_one_seed_for_a_batch_is_not_a_seed_for_each(llama):
    """Why a request carries its own random numbers: in `generate` a batch shares them."""
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    together = generate(llama, prompts, 8, seed=3)
    each = generate_each(llama, [Request(it, 8, seed=3) for it in prompts])
    assert each == [generate(llama, it, 8, seed=3) for it in prompts]
    assert together != each


def test_left_padding_needs_positions_of_its_own(gpt2):
    """The other way to batch: padded on the left, with the positions of the real tokens."""
    prompts = [[1, 2, 3, 4, 5, 6], [7, 8]]
    ids, mask = left_pad(prompts)
    with torch.no_grad():
        right = gpt2(ids, attention_mask=mask).logits[:, -1]
        columns = torch.arange(ids.shape[1]).expand_as(ids)
        shifted = gpt2(ids, attention_mask=mask, position_ids=columns).logits[:, -1]
        single = torch.stack([gpt2(torch.tensor([it])).logits[0, -1] for it in prompts])
    assert_close(right, single, atol=1e-5, rtol=1e-5)
    assert (shifted[1] - single[1]).abs().max() > 0.1


def test_a_layer_that_was_replaced_is_called():
    """LoRA listens to its layer with a hook, which a step without modules would not call."""
    model = tiny_lora()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    asked = [Request([1, 2, 3], 8, temperature=0), Request([4], 12, seed=1)]
    assert generate_each(model, asked) == [alone(model, it) for it in asked]


def test_a_cancelled_request_leaves_and_the_others_go_on(llama):
    asked = [dataclasses.replace(it, end_id=None, max_new_tokens=12) for it in requests(5)]
    batcher = Batcher(llama, 3)
    tickets = [batcher.submit(it) for it in asked]
    answers = {ticket: [] for ticket in tickets}
    steps = 0
    while batcher.running or batcher.waiting:
        for ticket, token, _ in batcher.step():
            answers[ticket].append(token)
        steps += 1
        if steps == 3:
            assert (batcher.running, batcher.waiting) == (3, 2)
            assert batcher.cancel(tickets[0])
            assert batcher.cancel(tickets[4])
            assert (batcher.running, batcher.waiting) == (2, 1)
            assert not batcher.cancel(tickets[0])
    assert len(answers[tickets[0]]) == 4
    assert answers[tickets[4]] == []
    for i in (1, 2, 3):
        assert answers[tickets[i]] == alone(llama, asked[i])


def test_a_batch_ends_when_its_work_does(llama):
    """16 requests in 4 slots take as many steps as their tokens need, not 4 times the longest."""
    asked = [Request([1, 2], 2 + 26 * (i % 4 == 0), temperature=0) for i in range(16)]
    batcher = Batcher(llama, 4)
    for it in asked:
        batcher.submit(it)
    steps = 0
    while batcher.running or batcher.waiting:
        batcher.step()
        steps += 1
    assert steps < 40, "four batches of the longest, 28 tokens each, take 112 steps"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ids": []}, "prompt is empty"),
        ({"ids": [31]}, "outside the vocabulary, 0 to 30"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 60}, "5 tokens and max_new_tokens is 60, 65 together.* room for 64"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_an_impossible_request_is_named(llama, changes, named):
    with pytest.raises(LabError, match=named):
        Batcher(llama).submit(Request(**{"ids": [1] * 5, "max_new_tokens": 4, **changes}))


def test_impossible_batches_are_named(llama):
    with pytest.raises(LabError, match="slots 0 is out of range"):
        Batcher(llama, 0)
    with pytest.raises(LabError, match="capacity 65 is out of range: choose 1 to 64"):
        Batcher(llama, capacity=65)
    with pytest.raises(LabError, match="labkit decoder"):
        Batcher(to_huggingface(llama))
    prompted = tiny_model()
    apply(prompted, Strategy("prompt", length=3))
    with pytest.raises(LabError, match="no learned prompt"):
        Batcher(prompted)
    assert generate_each(llama, []) == []


def test_the_slots_of_a_cache_have_limits(llama):
    slots = llama.new_slots(1, 3)
    read = llama.new_cache(1, 4)
    with torch.no_grad():
        llama(torch.tensor([[1, 2, 3, 4]]), cache=read)
    with pytest.raises(LabError, match="4 positions and a slot holds 3"):
        slots.join(read)
    read.forget(3)
    slots.join(read)
    with pytest.raises(LabError, match="all 1 slots are in use"):
        slots.join(read)
    with pytest.raises(LabError, match="holds 3 positions and 4 are asked for"):
        slots.extended(0, 1)
    with pytest.raises(LabError, match="1 at a time"):
        slots.extended(0, 2)
    with pytest.raises(LabError, match="join and leave"):
        slots.keep_rows(torch.tensor([0]))

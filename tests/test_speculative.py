"""Speculative decoding: the judge's own distribution, exactly, with fewer passes."""

import math

import pytest
import torch
from torch.testing import assert_close
from training import tiny_model

from labkit.errors import LabError
from labkit.generation import generate, next_token_probabilities, speculate, token_step
from labkit.generation.speculative import counted, judged, left_over, lookup
from labkit.generation.token_step import TokenStep
from labkit.models import KneserNey
from labkit.objectives import PrefixTable, every_answer, every_outcome

V, L = 3, 3


@pytest.fixture(scope="module")
def tables() -> tuple[PrefixTable, PrefixTable]:
    """A judge and a draft, two distributions over texts of three tokens that disagree a lot."""
    torch.manual_seed(0)
    return PrefixTable(V, L, scale=1.5), PrefixTable(V, L, scale=1.5)


def chance(table: PrefixTable, answer: list[int], temperature: float = 1.0) -> float:
    ids = torch.tensor([[table.start_id, *answer[:-1]]])
    with torch.no_grad():
        log_p = (table(ids).logits[0] / temperature).log_softmax(-1)
    return math.exp(sum(float(log_p[i, token]) for i, token in enumerate(answer)))


def distance(found: dict, expected: dict) -> float:
    """Half the sum of differences: the total variation, 0 to 1."""
    return sum(abs(found.get(k, 0) - expected.get(k, 0)) for k in found | expected) / 2


@pytest.mark.parametrize("guesses", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_distribution_is_the_judges_by_enumeration(tables, guesses, temperature):
    """Every draw of the program itself is tried: no sampling error, so a wrong rule shows."""
    judge, draft = tables

    def run(draw):
        found = speculate(
            judge, draft, [judge.start_id], L, temperature, guesses=guesses, draw=draw
        )
        return tuple(found.ids)

    found = every_outcome(run)
    expected = {tuple(it): chance(judge, it, temperature) for it in every_answer(V, L)}
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert distance(found, expected) < 1e-5
    drafts = {tuple(it): chance(draft, it, temperature) for it in every_answer(V, L)}
    assert distance(drafts, expected) > 0.2, "the draft is another model"


def drawn_again_from_p(p_GV, q_GV, guessed, draw):
    """The likeliest mistake: what was refused is drawn from p, which gives p's favourites twice."""
    for i, token in enumerate(guessed):
        keep = min(1.0, float(p_GV[i, token] / q_GV[i, token]))
        if not draw(torch.tensor([1 - keep, keep])):
            return [*guessed[:i], draw(p_GV[i])]
    return [*guessed, draw(p_GV[-1])]


def kept_when_likely(p_GV, q_GV, guessed, draw):
    """Another: a guess is kept when the judge finds it likely enough."""
    for i, token in enumerate(guessed):
        if p_GV[i, token] < 0.3:
            return [*guessed[:i], draw(p_GV[i])]
    return [*guessed, draw(p_GV[-1])]


@pytest.mark.parametrize("rule", [drawn_again_from_p, kept_when_likely])
def test_the_gate_sees_a_wrong_rule(tables, rule):
    with torch.no_grad():
        p_GV, q_GV = (table.logits[:2].softmax(-1) for table in tables)

    def run(rule):
        def once(draw):
            guess = draw(q_GV[0])
            return rule(p_GV, q_GV[:1], [guess], draw)[0]

        return every_outcome(once)

    expected = dict(enumerate(p_GV[0].tolist()))
    assert distance(run(judged), expected) < 1e-6
    assert distance(run(rule), expected) > 0.02


def test_the_ends_and_the_cut_distribution_hold_too(tables):
    judge, draft = tables

    def run(draw):
        it = speculate(judge, draft, [judge.start_id], L, top_k=2, end_id=0, guesses=2, draw=draw)
        return tuple(it.ids)

    def plainly(draw):
        text = []
        while len(text) < L:
            ids = torch.tensor([[judge.start_id, *text]])
            logits = judge(ids).logits[0, -1].detach()
            p = logits.masked_fill(logits < logits.topk(2).values[-1], -torch.inf).softmax(-1)
            token = draw(p)
            if token == 0:
                break
            text.append(token)
        return tuple(text)

    assert distance(every_outcome(run), every_outcome(plainly)) < 1e-5


@pytest.mark.parametrize("drafts", ["itself", "another", "lookup"])
def test_greedy_text_is_that_of_generate(drafts):
    """With caches that go back where a guess was refused."""
    model = tiny_model(context_length=64, initializer_range=0.5)
    draft = {
        "itself": model,
        "another": tiny_model(seed=1, context_length=64, num_layers=1, initializer_range=0.5),
        "lookup": lookup(31),
    }[drafts]
    prompt = [3, 1, 4, 1, 5, 9, 3, 1]
    found = speculate(model, draft, prompt, 40, temperature=0, guesses=3)
    assert found.ids == generate(model, prompt, 40, temperature=0)
    assert 0 <= found.kept <= found.guesses
    assert found.passes + found.kept == 40
    if drafts == "itself":
        assert (found.passes, found.kept) == (10, 30)
    end = found.ids[17]
    ended = speculate(model, draft, prompt, 40, temperature=0, guesses=3, end_id=end)
    assert ended.ids == generate(model, prompt, 40, temperature=0, end_id=end)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_a_block_of_guesses_is_read_as_the_model_reads_them(count, several, monkeypatch):
    """Whatever the number of rows; and one that looks ahead is seen."""
    model = tiny_model(context_length=32, initializer_range=0.5, num_kv_heads=1).eval()
    text = torch.arange(20)

    def said():
        cache = model.new_cache(1, 32)
        with torch.no_grad():
            model(text[None, :11], cache=cache)
        return TokenStep(model, several=several).of_block(text[11 : 11 + count], cache)

    with torch.no_grad():
        whole = model(text[None, : 11 + count]).logits[0, 11:]
    assert_close(said(), whole, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(token_step, "causal_mask", lambda t, s, device: torch.ones(t, s).bool())
    assert (said() - whole).abs().max() > 0.01 or count == 1


def test_drawn_texts_follow_the_judge_through_the_caches():
    """Of a Transformer: enumerated, with every rejection going back in both caches."""
    judge = tiny_model(vocab_size=4, initializer_range=0.6)
    draft = tiny_model(seed=3, vocab_size=4, num_layers=1, initializer_range=0.6)
    prompt = [1, 2, 3]

    def run(draw):
        return tuple(speculate(judge, draft, prompt, 3, guesses=2, draw=draw).ids)

    expected = {}
    for answer in every_answer(4, 3):
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        with torch.no_grad():
            log_p = judge.eval()(ids).logits[0, 2:].log_softmax(-1)
        expected[tuple(answer)] = math.exp(sum(float(log_p[i, t]) for i, t in enumerate(answer)))
    found = every_outcome(run)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0])
def test_a_draft_that_counts_leaves_the_judge_its_distribution(temperature):
    judge, prompt = tiny_model(vocab_size=4, initializer_range=0.6).eval(), [1, 2, 3]
    counts = counted(KneserNey.fit([1, 2, 3, 0, 1, 2, 2, 3, 1, 0, 1, 2] * 9, 4, 2), temperature)

    def run(draw):
        return tuple(speculate(judge, counts, prompt, 2, temperature, guesses=1, draw=draw).ids)

    def plainly(draw):
        text = list(prompt)
        for _ in range(2):
            with torch.no_grad():
                logits = judge(torch.tensor([text])).logits[:, -1]
            text.append(draw(next_token_probabilities(logits, temperature)[0]))
        return tuple(text[3:])

    assert distance(every_outcome(run), every_outcome(plainly)) < 1e-5


def test_a_perfect_draft_is_kept_and_a_seed_repeats():
    model = tiny_model(context_length=64)
    texts = [speculate(model, model, [1, 2], 21, seed=seed, guesses=4) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].kept / texts[0].guesses > 0.9, "q = p up to rounding"
    assert model.training, "its mode is restored"


def test_the_left_over_is_a_distribution():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    assert left_over(p, q).tolist() == pytest.approx([0.75, 0.25, 0])
    assert left_over(p, p).tolist() == p.tolist()


def test_lookup_finds_the_longest_ending_and_the_latest():
    draft = lookup(10)
    assert draft([1, 2, 3, 9, 2, 3, 5, 1, 2, 3], 2, None)[0] == [9, 2]
    assert draft([2, 3, 5, 7, 3, 6, 3], 2, None)[0] == [6, 3]
    assert draft([1, 2, 3], 2, None)[0] == []
    assert lookup(10, shortest=2)([2, 3, 5, 7, 3, 6, 3], 2, None)[0] == []
    assert lookup(10, shortest=2)([2, 3, 5, 7, 2, 3], 1, None)[0] == [5]
    with pytest.raises(LabError, match="shortest 4 is out of range: choose 1 to longest, 3"):
        lookup(10, shortest=4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"guesses": 0}, "guesses is 0"),
        ({"ids": []}, "prompt is empty"),
        ({"max_new_tokens": 16}, "17 tokens together and a model reads 16"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"draft": tiny_model(vocab_size=7)}, "vocabulary of 7 and the model one of 31"),
    ],
)
def test_impossible_values_are_named(changes, named):
    model = tiny_model()
    given = {"draft": model, "ids": [1], "max_new_tokens": 4, **changes}
    with pytest.raises(LabError, match=named):
        speculate(model, **given)

"""Speculative decoding: a small model guesses ahead, the large one judges all guesses in one pass.

    text ──> draft: x1 ~ q1, x2 ~ q2, ... ──┐
      │                                     v
      └──> judge: p1, p2, ..., p_{G+1} in ONE pass over text, x1 .. xG
                     │
           keep x1 with probability min(1, p1(x1)/q1(x1)); if kept, x2; ...
           the first that is refused is drawn again from max(0, p - q), normalised
           none refused: one more token, from p_{G+1}

What is written has exactly the judge's distribution, whatever the draft: with probability
min(p, q) a token comes as a guess, and with p - min(p, q) as a second draw. Greedy is the same rule
with all probability on one token, and writes the judge's greedy text.

It pays because a step of decoding spends its time on reading weights: G + 1 positions in a pass
cost little more than one, if the judge is large enough. With a share a of guesses that are kept, a
pass yields (1 - a^(G+1)) / (1 - a) tokens on average (if each is kept with the same chance a). With
few kept it costs more than it saves: what was measured stands in docs/LOG.md, chapter 20.

Legend: G guesses of a round, V vocabulary.

Sources: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318;
Saxena 2023, "Prompt Lookup Decoding" (guesses from the text itself).
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.generation.sampling import COPY_FROM, next_token_probabilities
from labkit.generation.token_step import TokenStep, is_plain
from labkit.models.config import context_length
from labkit.models.kv_cache import KVCache
from labkit.models.ngrams import NgramModel
from labkit.models.transformer import Transformer

Draw = Callable[[Tensor], int]
"""draw(probabilities) -> index: all that is random comes from it."""
Draft = Callable[[list[int], int, Draw], tuple[list[int], Tensor]]
"""draft(text, G, draw) -> up to G guesses and the distributions (G, V) they were drawn from."""


class Speculated(NamedTuple):
    """A text and what it took."""

    ids: list[int]
    """The new ids, without the end."""
    passes: int
    """Forward passes of the judge; without a draft it needs one for each token."""
    guesses: int
    """Tokens that the draft proposed."""
    kept: int
    """Guesses that the judge kept."""


def speculate(
    model: nn.Module,
    draft: nn.Module | Draft,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_id: int | Collection[int] | None = None,
    guesses: int = 4,
    draw: Draw | None = None,
) -> Speculated:
    """Continue a prompt as `generate` does, with fewer passes of the model.

    Greedy, the tokens are those of `generate`. Otherwise they have the same distribution, but
    another seed's luck: a seed gives the same text each time, not that of `generate`.

    Args:
        model: the judge: a labkit decoder (with its cache), or any causal module from (1, T) ids
            to `.logits` (1, T, V), which reads the whole text in each pass.
        draft: a smaller model of the same vocabulary, whose guesses are drawn with the same
            settings; or a function such as `lookup` or `counted`.
        ids: the prompt.
        max_new_tokens: at least 1; prompt and answer must fit into the context of both.
        temperature, top_k, top_p: as in `next_token_probabilities`.
        seed: of the draws; None draws from torch's global generator.
        end_id: it stops before this id, or the first of several.
        guesses: G, tokens to guess in a round, at least 1.
        draw: how an index is drawn from probabilities; None: by `seed`. See `every_outcome`.

    Raises:
        LabError: a value out of range, or models of different vocabularies.
    """
    for name, given in (("max_new_tokens", max_new_tokens), ("guesses", guesses)):
        if given < 1:
            raise LabError(f"{name} is {given}; it must be at least 1")
    if len(ids) == 0:
        raise LabError("the prompt is empty; give at least one token, such as the end-of-text id")
    drawing = _drawing(model, seed) if draw is None else draw
    ends = frozenset(() if end_id is None else (end_id,) if isinstance(end_id, int) else end_id)

    def probabilities(logits_TV: Tensor) -> Tensor:
        return next_token_probabilities(logits_TV, temperature, top_k, top_p)

    judge = _Reader(model, len(ids), max_new_tokens)
    guess = draft
    if isinstance(draft, nn.Module):
        guess = _drafting(_Reader(draft, len(ids), max_new_tokens), probabilities)
    text, new, passes, proposed, kept = list(ids), [], 0, 0, 0
    while len(new) < max_new_tokens:
        room = min(guesses, max_new_tokens - len(new) - 1)  # the judge adds a token of its own
        guessed, q_GV = guess(text, room, drawing) if room else ([], torch.empty(0, 0))
        logits_TV = judge(text + guessed)[-len(guessed) - 1 :]
        if len(guessed) and q_GV.shape[1] != logits_TV.shape[1]:
            raise LabError(
                f"the draft has a vocabulary of {q_GV.shape[1]} and the model one of"
                f" {logits_TV.shape[1]}: they must share a tokenizer"
            )
        q_GV = q_GV.to(logits_TV.device)  # a draft that counts lives on the CPU
        said = judged(probabilities(logits_TV), q_GV, guessed, drawing)
        passes, proposed, kept = passes + 1, proposed + len(guessed), kept + len(said) - 1
        text, new = text + said, new + said
        if any(token in ends for token in said):
            first = next(i for i, token in enumerate(new) if token in ends)
            new = new[:first]
            break
    return Speculated(new, passes, proposed, kept)


def judged(p_GV: Tensor, q_GV: Tensor, guessed: list[int], draw: Draw) -> list[int]:
    """What is kept of the guesses, and one token of the judge: together distributed as p.

    Args:
        p_GV: (G + 1, V) what the judge would draw from: after the text, after each guess.
        q_GV: (G, V) what each guess was drawn from.
        guessed: G tokens.
        draw: what is random.

    Returns:
        1 to G + 1 tokens.
    """
    for i, token in enumerate(guessed):
        p, q = float(p_GV[i, token]), float(q_GV[i, token])
        keep = min(1.0, p / q)
        if not draw(torch.tensor([1 - keep, keep])):
            return [*guessed[:i], draw(left_over(p_GV[i], q_GV[i]))]
    return [*guessed, draw(p_GV[-1])]


def left_over(p_V: Tensor, q_V: Tensor) -> Tensor:
    """max(0, p - q), normalised: what a guess from q has not yet given of p.

    >>> left_over(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])).tolist()
    [0.0, 1.0]
    """
    rest_V = (p_V - q_V).clamp(min=0)
    total = rest_V.sum()
    return rest_V / total if total > 0 else p_V  # p = q up to rounding: a refusal is rounding, too


def lookup(vocab_size: int, longest: int = 3, shortest: int = 1) -> Draft:
    """A draft without a model: what followed the last few tokens when they stood there before.

    It guesses well where a text repeats itself or its prompt, and nothing where it does not.

    Args:
        vocab_size: V.
        longest: it looks for the last `longest` tokens first, then for fewer.
        shortest: it guesses nothing from fewer than these, 1 to `longest`; 1 guesses often, and
            often wrongly.

    Raises:
        LabError: shortest is out of range.
    """
    if not 1 <= shortest <= longest:
        raise LabError(f"shortest {shortest} is out of range: choose 1 to longest, {longest}")

    def draft(text: list[int], count: int, draw: Draw) -> tuple[list[int], Tensor]:
        for length in range(min(longest, len(text) - 1), shortest - 1, -1):
            ending = text[-length:]
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == ending:
                    found = text[start + length : start + length + count]
                    q_GV = torch.zeros(len(found), vocab_size)
                    q_GV[torch.arange(len(found)), found] = 1.0
                    return found, q_GV
        return [], torch.empty(0, vocab_size)

    return draft


def counted(
    model: NgramModel,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Draft:
    """A draft that counts: an n-gram model over the judge's tokens, with the judge's settings.

    Args:
        model: such as `KneserNey.fit(tokens, vocab_size, order=3)`.
        temperature, top_k, top_p: as in `next_token_probabilities`.
    """

    def draft(text: list[int], count: int, draw: Draw) -> tuple[list[int], Tensor]:
        guessed: list[int] = []
        rows = []
        for _ in range(count):
            logits_1V = torch.from_numpy(model.next_probabilities(text + guessed)).log()[None]
            rows.append(next_token_probabilities(logits_1V, temperature, top_k, top_p).float())
            guessed.append(draw(rows[-1][0]))
        return guessed, torch.cat(rows)

    return draft


def _drafting(reader: "_Reader", probabilities: Callable[[Tensor], Tensor]) -> Draft:
    def draft(text: list[int], count: int, draw: Draw) -> tuple[list[int], Tensor]:
        guessed: list[int] = []
        rows = []
        for _ in range(count):
            q_1V = probabilities(reader(text + guessed)[-1:])
            rows.append(q_1V)
            guessed.append(draw(q_1V[0]))
        return guessed, torch.cat(rows)

    return draft


class _Reader:
    """text -> logits (T, V) of the positions not read before; a cache follows the text back."""

    def __init__(self, model: nn.Module, prompt: int, new_tokens: int):
        longest = prompt + new_tokens
        self.model, self.cache, self.seen = model, None, []
        if not isinstance(model, Transformer):
            return
        if model.config.kind != "decoder" or model.lm_head is None:
            raise LabError("speculative decoding needs decoders with a language-model head")
        if longest > context_length(model):
            raise LabError(
                f"prompt and max_new_tokens are {longest} tokens together and a model reads"
                f" {context_length(model)}: shorten one of them"
            )
        self.cache: KVCache | None = model.new_cache(1, longest)
        plain = is_plain(model)
        self.step = TokenStep(model, new_tokens >= COPY_FROM, several=True) if plain else None

    @torch.inference_mode()
    def __call__(self, text: list[int]) -> Tensor:
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            if self.cache is None:
                return self.model(torch.tensor([text], device=device)).logits[0]
            same = next(
                (i for i, (a, b) in enumerate(zip(self.seen, text, strict=False)) if a != b),
                min(len(self.seen), len(text)),
            )
            same = min(same, len(text) - 1)  # its last position is always read
            self.cache.forget(same)
            new_T = torch.tensor(text[same:], device=device)
            if self.step is not None and same:
                logits_TV = self.step.of_block(new_T, self.cache)
            else:
                logits_TV = self.model(new_T[None], cache=self.cache).logits[0]
        self.seen = list(text)
        return logits_TV


def _drawing(model: nn.Module, seed: int | None) -> Draw:
    device = next(model.parameters()).device
    random = None if seed is None else torch.Generator(device).manual_seed(seed)

    def draw(p_V: Tensor) -> int:
        return int(torch.multinomial(p_V.to(device), 1, generator=random))

    return draw

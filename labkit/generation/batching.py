"""Continuous batching: requests join and leave the batch between two steps.

    submit ──> waiting ──> a slot is free: read the prompt ──> first token ─┐
                                                                           v
    one step: a token of every running request, one forward pass ──> Written(ticket, token, end)
                  ^                                                        │
                  └───────────── runs on <── no end ── end ──> its slot is free at once

A batch of `generate` begins together and lasts as long as its longest answer; whoever comes later
waits. Here a step asks no such thing: a step of decoding reads every weight once, for one text or
for many, so a request that joins costs the others little.

Each request is its own: its settings, its seed, its random numbers. It writes what `generate`
writes for it alone, token for token (its logits differ in the last bits, as sums of matrix products
do when more rows are multiplied; a tie closer than that could fall the other way).

A prompt is read alone, all its tokens in one pass: that keeps a core busy with arithmetic, and two
prompts in one pass would take as long as one after the other. While it is read, the others wait.

Legend: N running requests, T positions, V vocabulary.

Source: Yu et al. 2022, OSDI (Orca: scheduling by iteration).
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.generation.sampling import next_token_probabilities
from labkit.generation.token_step import TokenStep, is_plain
from labkit.models.transformer import Transformer

End = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """What `generate` takes for one prompt."""

    ids: Sequence[int]
    """The prompt, at least one token."""
    max_new_tokens: int
    """At least 1; prompt and answer must fit into a slot."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    """As in `next_token_probabilities`."""
    top_p: float | None = None
    """As in `next_token_probabilities`."""
    seed: int | None = None
    """Of this request alone; None draws from torch's global generator."""
    end_id: int | Collection[int] | None = None
    """It stops before this id, or the first of several."""


class Written(NamedTuple):
    """A token of a request."""

    ticket: int
    """Of the request, from `submit`."""
    token: int
    """With end "stop" it is the one that ends the text and is no part of it."""
    end: End | None
    """Why this is the last one: "stop" (an end_id), "length" (max_new_tokens); None: more come."""


@dataclass
class _Running:
    ticket: int
    request: Request
    ends: frozenset[int]
    random: torch.Generator | None
    left: int
    newest: int = -1


class Batcher:
    """Requests that run together on one model, up to `slots` at a time; the rest wait in order.

    Not for several threads: one calls it, and `step` does all the work.

    Args:
        model: a labkit decoder with a language-model head; put into evaluation mode.
        slots: requests that run at a time, at least 1.
        capacity: tokens of a prompt and its answer, at least 1; None: the model's context. The
            cache takes 2·layers·slots·key/value width·capacity numbers.

    Raises:
        LabError: a model or value that cannot be used.
    """

    def __init__(self, model: nn.Module, slots: int = 16, capacity: int | None = None):
        if not isinstance(model, Transformer) or not model.lm_head or model.before is not None:
            raise LabError(
                f"a batch that requests join needs a labkit decoder with a language-model head and"
                f" no learned prompt, not this {type(model).__name__}: use generate"
            )
        context = model.config.context_length
        capacity = context if capacity is None else capacity
        if not 1 <= capacity <= context:
            raise LabError(f"capacity {capacity} is out of range: choose 1 to {context}")
        self.model, self.capacity = model.eval(), capacity
        self.cache = model.new_slots(slots, capacity)
        self._step = TokenStep(model, several=True) if is_plain(model) else None
        self._device = next(model.parameters()).device
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._tickets = 0

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return len(self._running)

    def check(self, request: Request) -> None:
        """Raise a LabError unless `submit` would take the request."""
        next_token_probabilities(
            torch.zeros(1, 1), request.temperature, request.top_k, request.top_p
        )
        if len(request.ids) == 0:
            raise LabError("the prompt is empty; give at least one token, such as the end of text")
        vocabulary = self.model.config.vocab_size
        if not all(0 <= token < vocabulary for token in request.ids):
            raise LabError(
                f"a token of the prompt is outside the vocabulary, 0 to {vocabulary - 1}"
            )
        if request.max_new_tokens < 1:
            raise LabError(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
        whole = len(request.ids) + request.max_new_tokens
        if whole > self.capacity:
            raise LabError(
                f"the prompt has {len(request.ids)} tokens and max_new_tokens is"
                f" {request.max_new_tokens}, {whole} together; a request has room for"
                f" {self.capacity}: shorten one of them"
            )

    def submit(self, request: Request) -> int:
        """Put a request in line; returns its ticket.

        Raises:
            LabError: a value out of range, or more tokens than a slot holds.
        """
        self.check(request)
        random = None
        if request.seed is not None:
            random = torch.Generator(self._device).manual_seed(request.seed)
        ends = request.end_id
        ends = () if ends is None else (ends,) if isinstance(ends, int) else ends
        self._tickets += 1
        self._waiting.append(
            _Running(self._tickets, request, frozenset(ends), random, request.max_new_tokens)
        )
        return self._tickets

    def cancel(self, ticket: int) -> bool:
        """Forget a request, whether it waits or runs; False if it had ended already."""
        for place, one in enumerate(self._waiting):
            if one.ticket == ticket:
                del self._waiting[place]
                return True
        for row, one in enumerate(self._running):
            if one.ticket == ticket:
                self._leave(row)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[Written]:
        """One token of every running request; first, those that wait take the free slots.

        Returns:
            What was written, oldest first: of a request that has joined its first two tokens.

        Raises:
            LabError: the weights are damaged.
        """
        written = []
        while self._waiting and self.running < self.cache.slots:
            written.append(self._join(self._waiting.popleft()))
        if not self._running:
            return written
        ids_N = torch.tensor([one.newest for one in self._running], device=self._device)
        if self._step is not None:
            logits_NV = self._step.of_slots(ids_N, self.cache)
        else:
            logits_NV = self.model(
                ids_N[:, None],
                attention_mask=self.cache.mask(),
                position_ids=self.cache.places()[:, None],
                cache=self.cache,
            ).logits[:, -1]
        best_N = logits_NV.argmax(dim=-1).tolist()
        rows = list(enumerate(self._running))
        new = [
            self._write(one, best_N[row] if one.request.temperature == 0 else None, logits_NV[row])
            for row, one in rows
        ]
        for row, _ in reversed([it for it, of in zip(rows, new, strict=True) if of.end]):
            self._leave(row)
        return written + new

    def _join(self, one: _Running) -> Written:
        """Read the prompt, choose the first token and, unless that ends it, take a slot."""
        cache = self.model.new_cache(1, len(one.request.ids))
        ids_1T = torch.tensor([list(one.request.ids)], device=self._device)
        logits_V = self.model(ids_1T, cache=cache).logits[0, -1]
        if not bool(logits_V.isfinite().any()):
            raise LabError("the model's logits are not finite: its weights are damaged")
        first = self._write(one, None, logits_V)
        if first.end is None:
            self.cache.join(cache)
            self._running.append(one)
        return first

    def _write(self, one: _Running, best: int | None, logits_V: Tensor) -> Written:
        asked = one.request
        if asked.temperature == 0:
            token = int(logits_V.argmax()) if best is None else best
        else:
            likely_1V = next_token_probabilities(
                logits_V[None], asked.temperature, asked.top_k, asked.top_p
            )
            token = int(torch.multinomial(likely_1V, 1, generator=one.random))
        one.newest, one.left = token, one.left - 1
        end: End | None = "stop" if token in one.ends else "length" if one.left == 0 else None
        return Written(one.ticket, token, end)

    def _leave(self, row: int) -> None:
        self.cache.leave(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last


def generate_each(
    model: nn.Module, requests: Sequence[Request], slots: int = 16, capacity: int | None = None
) -> list[list[int]]:
    """The answer to each request, without prompt and end: `generate` for each, in one batch.

    Unlike `generate` with a list, each request keeps its own settings and its own seed, and a slot
    that has become free takes the next one.

    Args:
        model, slots, capacity: as in `Batcher`; capacity None: what the longest request needs.
        requests: any number.

    Raises:
        LabError: a model or value that cannot be used.
    """
    if not requests:
        return []
    longest = max(len(it.ids) + max(it.max_new_tokens, 0) for it in requests)
    batcher = Batcher(model, min(slots, len(requests)), capacity or longest)
    answers: dict[int, list[int]] = {batcher.submit(it): [] for it in requests}
    while batcher.waiting or batcher.running:
        for ticket, token, end in batcher.step():
            if end != "stop":
                answers[ticket].append(token)
    return list(answers.values())

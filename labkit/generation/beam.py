"""Beam search: keep the W likeliest texts at every length, and compare those that have ended.

    W texts of t tokens ──> model ──> W x V log-probabilities ──> the best ──┬─ ended: kept aside
          ^                                                                  └─ open ─┐
          └────────────────── W open texts of t + 1 tokens, the cache follows <───────┘

Each token more makes a text less likely, so texts of different lengths are compared by

    score(y) = log p(y | x) / |y|^a          |y| counts the token that ends the text

with the length penalty a: 0 takes the likeliest text (a short one), 1 the mean of its tokens. The
search goes on until no open text can still get among the W best ended ones: as the sum only falls,
an open text of sum s reaches at most s / T^a, T the longest length (a above 0). That is the rule
that transformers calls early_stopping="never". A text that is cut at T counts as ended.

Legend: P prompts, W beams, R = P W rows of a batch, V vocabulary, S positions so far.

Sources: Graves 2012, arXiv:1211.3711, section 2.5 (beam search); Boulanger-Lewandowski et al. 2013,
ISMIR, and Jean et al. 2015, WMT, section 3.1 (dividing by the length, a = 1); Wu et al. 2016,
arXiv:1609.08144, eq. 14 (a power a; theirs is of (5 + |y|) / 6).
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.generation.sampling import left_pad, right_pad
from labkit.generation.token_step import TokenStep, is_plain
from labkit.models.attention import Source
from labkit.models.config import context_length
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.transformer import Transformer


class Hypothesis(NamedTuple):
    """One text that a search ended with."""

    ids: list[int]
    """Without the token that ended it."""
    log_probability: float
    """log p(text, end | prompt) in nats; of a text that was cut, without an end."""
    score: float
    """`log_probability` divided by the length to the power of the penalty."""
    ended: bool
    """False: cut at max_new_tokens."""


def score(log_probability: float, length: int, length_penalty: float) -> float:
    """log p / length^a, by which texts that ended are compared.

    >>> score(-6.0, 4, 0.0), score(-6.0, 4, 1.0)
    (-6.0, -1.5)
    """
    return log_probability / length**length_penalty


def beam_search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    beams: int = 4,
    length_penalty: float = 1.0,
    end_id: int | Collection[int] | None = None,
    start_id: int | None = None,
    use_cache: bool = True,
) -> list[list[Hypothesis]]:
    """The best texts that continue each prompt, or answer each source.

    One beam is greedy generation: it stops at its first end. With V^(T - 1) beams nothing is ever
    dropped, and the first hypothesis is the best of all texts of up to T tokens.
    Cost: W times that of one text, and a copy of the cache where beams change places.

    Args:
        model: A labkit decoder or encoder-decoder, or a transformers causal model.
        prompts: P lists of ids, of any lengths; of an encoder-decoder the sources.
        max_new_tokens: T, the end included; with a prompt it must fit into the context.
        beams: W, at least 1.
        length_penalty: a, any number: 0 for the likeliest text, above 0 for longer ones.
        end_id: The token, or tokens, with which a text ends; None: all are cut at T.
        start_id: The token that stood first in decoder_input_ids; an encoder-decoder needs it.
        use_cache: Keep keys and values; without, the whole text is read again for each token.

    Returns:
        For each prompt up to W hypotheses, the best first.

    Raises:
        LabError: A value out of range, an empty prompt, or too long a text for the context.
    """
    _check(model, prompts, max_new_tokens, beams, start_id)
    ends = frozenset(() if end_id is None else (end_id,) if isinstance(end_id, int) else end_id)
    searches = [_Search(beams, max_new_tokens, length_penalty, ends) for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            _run(model, prompts, searches, start_id, use_cache)
    finally:
        model.train(was_training)
    return [search.best() for search in searches]


def _run(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    searches: list["_Search"],
    start_id: int | None,
    use_cache: bool,
) -> None:
    """Read and extend until every search is done; only rows of open searches are read."""
    device = next(model.parameters()).device
    T, W = searches[0].longest, searches[0].beams
    if isinstance(model, EncoderDecoder):
        new_R1 = torch.full((len(prompts), 1), int(start_id or 0), device=device)
        reader = _Answering(model, model.read(*right_pad(prompts, device)), 1 + T, use_cache)
    else:
        new_R1, mask_RS = left_pad(prompts, device)
        reader = _reading(model, mask_RS, new_R1.shape[1] + T, use_cache)
    logs_RV = reader.read(new_R1).float().log_softmax(-1)
    if not bool(logs_RV.isfinite().any(-1).all()):
        raise LabError("the model's logits are not finite: its weights are damaged")
    rows_R = torch.arange(len(prompts), device=device).repeat_interleave(W)
    reader.keep(rows_R)
    logs_RV, open_ = logs_RV[rows_R], list(searches)
    while True:
        sums_PW = torch.tensor([search.sums for search in open_], device=device)
        all_PN = (sums_PW.unsqueeze(-1) + logs_RV.view(len(open_), W, -1)).flatten(1)
        # So many candidates hold W open texts even if each of the best ends in every way.
        some = min((1 + max(1, len(searches[0].ends))) * W, all_PN.shape[1])
        best = all_PN.topk(some, dim=-1)
        rows: list[int] = []
        going: list[_Search] = []
        V = logs_RV.shape[-1]
        for place, search in enumerate(open_):
            values, where = best.values[place].tolist(), best.indices[place].tolist()
            parents = search.extend(
                [(v, n // V, n % V) for v, n in zip(values, where, strict=True)]
            )
            if not search.done:
                going.append(search)
                rows += [place * W + parent for parent in parents]
        if not going:
            return
        open_ = going
        reader.keep(torch.tensor(rows, device=device))
        new_R1 = torch.tensor([text[-1:] for s in open_ for text in s.texts], device=device)
        logs_RV = reader.read(new_R1).float().log_softmax(-1)


class _Search:
    """The beams of one prompt: the open texts, the ended ones, and whether more can come."""

    def __init__(self, beams: int, longest: int, penalty: float, ends: frozenset[int]):
        self.beams, self.longest, self.penalty, self.ends = beams, longest, penalty, ends
        self.texts: list[list[int]] = [[] for _ in range(beams)]
        # All beams begin with the same nothing: one of them counts, the others are not there.
        self.sums = [0.0] + [-torch.inf] * (beams - 1)
        self.ended: list[Hypothesis] = []
        self.done = False

    def extend(self, candidates: list[tuple[float, int, int]]) -> list[int]:
        """Take (sum, parent, token), the best first; returns the parent of each open text."""
        length = len(self.texts[0]) + 1
        following: list[tuple[float, int, int]] = []
        for rank, (total, parent, token) in enumerate(candidates):
            if total == -torch.inf:
                break
            over, ends = length == self.longest, token in self.ends
            if ends or over:
                if rank < self.beams:  # what is not among the best W has no place, ended or open
                    text = self.texts[parent] + ([] if ends else [token])
                    value = score(total, length, self.penalty)
                    self.ended.append(Hypothesis(text, total, value, ends))
            elif len(following) < self.beams:
                following.append((total, parent, token))
        self.ended = sorted(self.ended, key=lambda h: -h.score)[: self.beams]
        self.done = self._over(following, length)
        # A beam that is not there writes what its first neighbour writes, with probability 0.
        if following:
            missing = self.beams - len(following)
            following += [(-torch.inf, *following[0][1:])] * missing
        self.texts = [[*self.texts[parent], token] for _, parent, token in following]
        self.sums = [total for total, _, _ in following]
        return [parent for _, parent, _ in following]

    def _over(self, following: list[tuple[float, int, int]], length: int) -> bool:
        """Whether no open text can come among the best W that ended."""
        if not following or (self.beams == 1 and self.ended):
            return True
        if len(self.ended) < self.beams:
            return False
        reach = self.longest if self.penalty > 0 else length + 1
        return score(following[0][0], reach, self.penalty) <= self.ended[-1].score

    def best(self) -> list[Hypothesis]:
        return self.ended


class _Reader:
    """Reads new tokens of each row after those that it has read, and lets rows change places."""

    def read(self, new_RT: Tensor) -> Tensor:
        """logits_RV of the next token."""
        raise NotImplementedError

    def keep(self, rows_R: Tensor) -> None:
        """Row r becomes what row rows_R[r] was; their number may change."""
        raise NotImplementedError


def _reading(model: nn.Module, mask_RS: Tensor, capacity: int, use_cache: bool) -> _Reader:
    if isinstance(model, Transformer):
        if model.config.kind != "decoder" or model.lm_head is None:
            raise LabError("generation needs a decoder with a language-model head")
        return _Continuing(model, mask_RS, capacity, use_cache)
    if not hasattr(model, "config"):
        raise LabError(
            f"{type(model).__name__} has no cache to follow beams: give a labkit or transformers"
            " model"
        )
    return _Transformers(model, mask_RS, use_cache)


class _Continuing(_Reader):
    """A labkit decoder."""

    def __init__(self, model: Transformer, mask_RS: Tensor, capacity: int, use_cache: bool):
        self.model, self.mask_RS = model, mask_RS
        self.cache = model.new_cache(len(mask_RS), capacity) if use_cache else None
        self.step = TokenStep(model, copy=False) if use_cache and is_plain(model) else None
        self.seen_RS = mask_RS[:, :0]

    def read(self, new_RT: Tensor) -> Tensor:
        if self.seen_RS.shape[1]:
            self.mask_RS = torch.cat((self.mask_RS, torch.ones_like(new_RT)), dim=1)
        self.seen_RS = torch.cat((self.seen_RS, new_RT), dim=1)
        padded = None if bool(self.mask_RS.all()) else self.mask_RS
        if self.cache is None:
            return self.model(self.seen_RS, attention_mask=padded).logits[:, -1]
        if self.step is not None and self.cache.length:
            return self.step(new_RT[:, 0], self.cache, padded)
        return self.model(new_RT, attention_mask=padded, cache=self.cache).logits[:, -1]

    def keep(self, rows_R: Tensor) -> None:
        self.mask_RS, self.seen_RS = self.mask_RS[rows_R], self.seen_RS[rows_R]
        if self.cache is not None:
            self.cache.keep_rows(rows_R)


class _Answering(_Reader):
    """An encoder-decoder; its source was read once."""

    def __init__(self, model: EncoderDecoder, source: Source, capacity: int, use_cache: bool):
        if model.lm_head is None:
            raise LabError("generation needs a language-model head; vocabulary_head is False")
        self.model, self.source = model, source
        rows = len(source.hidden_BSD)
        self.cache = model.new_cache(rows, capacity) if use_cache else None
        self.seen_RS = torch.zeros(rows, 0, dtype=torch.long, device=source.hidden_BSD.device)

    def read(self, new_RT: Tensor) -> Tensor:
        self.seen_RS = torch.cat((self.seen_RS, new_RT), dim=1)
        ids = self.seen_RS if self.cache is None else new_RT
        output = self.model(decoder_input_ids=ids, cache=self.cache, source=self.source)
        return output.logits[:, -1]

    def keep(self, rows_R: Tensor) -> None:
        hidden_BSD, mask, ids = self.source
        self.source = Source(
            hidden_BSD[rows_R],
            None if mask is None else mask[rows_R],
            None if ids is None else ids[rows_R],
        )
        self.seen_RS = self.seen_RS[rows_R]
        if self.cache is not None:
            self.cache.keep_rows(rows_R)


class _Transformers(_Reader):
    """A causal model of transformers."""

    def __init__(self, model: nn.Module, mask_RS: Tensor, use_cache: bool):
        self.model, self.mask_RS, self.use_cache = model, mask_RS, use_cache
        self.past: Any = None
        self.seen_RS = mask_RS[:, :0]

    def read(self, new_RT: Tensor) -> Tensor:
        if self.seen_RS.shape[1]:
            self.mask_RS = torch.cat((self.mask_RS, torch.ones_like(new_RT)), dim=1)
        self.seen_RS = torch.cat((self.seen_RS, new_RT), dim=1)
        ids = new_RT if self.use_cache else self.seen_RS
        positions = (self.mask_RS.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask_RS,
            position_ids=positions,
            past_key_values=self.past,
            use_cache=self.use_cache,
        )
        self.past = output.past_key_values if self.use_cache else None
        return output.logits[:, -1]

    def keep(self, rows_R: Tensor) -> None:
        self.mask_RS, self.seen_RS = self.mask_RS[rows_R], self.seen_RS[rows_R]
        if self.past is not None:
            self.past.reorder_cache(rows_R)


def _check(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    beams: int,
    start_id: int | None,
) -> None:
    if beams < 1:
        raise LabError(f"beams is {beams}; it must be at least 1")
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise LabError("a prompt is empty; give at least one token, such as the end-of-text id")
    if max_new_tokens < 1:
        raise LabError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    answers = isinstance(model, EncoderDecoder)
    if answers and start_id is None:
        raise LabError(
            "start_id is None; an encoder-decoder begins its answer with the token that stood first"
            " in decoder_input_ids: give its id"
        )
    longest = 1 if answers else max(map(len, prompts))
    context = context_length(model)
    if longest + max_new_tokens > context + 1:
        raise LabError(
            f"{longest} tokens and max_new_tokens {max_new_tokens} do not fit into the model's"
            f" context of {context}: give a shorter prompt or ask for fewer tokens"
        )

"""Which of several texts a language model finds likeliest behind a prompt.

    prompt ids ──read once──> KV cache ──a copy a choice──> ln p of the tokens of each choice
                                                                 │ sums
       none             ln p(choice | prompt)                    │
       token            the same / its tokens                    │
       byte             the same / its bytes          <──────────┘
       unconditional    ln p(choice | prompt) - ln p(choice): PMI

Where all prompts begin alike (the same examples before each question), that part is read once for
all questions. Text is encoded as a whole and cut where the prompt ends: two texts encoded apart
may have other tokens, which the model never saw behind one another.

Legend: Q questions, C choices, N examples, F content-free inputs, R rows, T new tokens, S all
positions, V vocabulary.

Sources: Brown et al. 2020, section 2.4 (normalisations); Holtzman et al. 2021 (PMI); Zhao et al.
2021 (contextual calibration); lm-evaluation-harness (where the prompt is cut).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.evaluation.intervals import Interval, bootstrap_interval
from labkit.models.config import context_length
from labkit.models.kv_cache import KVCache
from labkit.models.transformer import Transformer
from labkit.text.prompting import ChoiceQuestion
from labkit.text.tokenizers import Tokenizer

Normalisation = Literal["none", "token", "byte", "unconditional"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
#: Positions that are read at the same time.
MOST_READ = 2048
#: Positions that all rows of a cache hold together.
MOST_CACHED = 8192


@dataclass(frozen=True)
class ChoiceScores:
    """What a model gave each choice of each question: one array of C numbers a question."""

    log_probabilities: list[np.ndarray]
    """ln p(choice | prompt), summed over the tokens of the choice."""
    tokens: list[np.ndarray]
    """Tokens of each choice."""
    bytes: list[np.ndarray]
    """UTF-8 bytes of each choice, without the space before it."""
    unconditional: list[np.ndarray]
    """ln p(choice) where nothing, or a premise, stands before it."""

    def scores(self, normalisation: Normalisation = "none") -> list[np.ndarray]:
        """What is compared: the greatest of a question is chosen.

        Raises:
            LabError: there is no such normalisation.
        """
        if normalisation == "none":
            return self.log_probabilities
        if normalisation == "unconditional":
            pairs = zip(self.log_probabilities, self.unconditional, strict=True)
            return [log_p - alone for log_p, alone in pairs]
        if normalisation not in NORMALISATIONS:
            raise LabError(
                f"normalisation {normalisation!r} is unknown: choose {', '.join(NORMALISATIONS)}"
            )
        lengths = self.tokens if normalisation == "token" else self.bytes
        return [log_p / n for log_p, n in zip(self.log_probabilities, lengths, strict=True)]

    def chosen(self, normalisation: Normalisation = "none") -> np.ndarray:
        """The index of the best choice of each question (Q,); of equal ones the first."""
        return np.array([int(it.argmax()) for it in self.scores(normalisation)])


@dataclass(frozen=True)
class _Row:
    """A prompt, or its end, with one choice behind it."""

    ids: list[int]
    start: int
    """The first id that is scored."""


def split_at_boundary(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Ids of context + continuation, encoded as one text and cut where the context ends.

    Spaces at the context's end go to the continuation. A token that holds the end of the one and
    the beginning of the other counts to the continuation, so that the two always join to the whole.

    Raises:
        LabError: nothing is left to score.
    """
    kept = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    alone = tokenizer.encode(kept) if kept else []
    cut = _common(whole, alone)
    if cut == len(whole):
        raise LabError(f"continuation {continuation!r} has no token: give at least one character")
    return whole[:cut], whole[cut:]


def score_choices(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[ChoiceQuestion],
    *,
    premise: str = "",
    start: bool = True,
    share: bool = True,
    batch_size: int = 16,
    precision: str = "fp32",
) -> ChoiceScores:
    """The log-probability of every choice behind its prompt, and alone.

    Cost: with `share` a pass over what all prompts begin with, one over the rest of each prompt,
    one over each choice; without it prompt and choice are read whole, C times a question.

    Args:
        model: a decoder of labkit or `transformers` with a language-model head.
        tokenizer: its tokenizer.
        questions: at least one.
        premise: what stands before a choice for its unconditional probability, such as "Topic:".
        start: begin with the end of text, as every document of pretraining did. An empty prompt
            always does: something must be read before the first token is predicted.
        share: read what is common once; False is the plain way, for comparison. In fp32 the two
            differ by rounding alone (in float64 by less than 1e-12, on `smollm2` too).
        batch_size: questions at a time, at least 1; long ones come in smaller batches.
        precision: of the matrix products.

    Raises:
        LabError: no question, or one that is longer than the model's context.
    """
    if not questions:
        raise LabError("0 questions: give at least 1")
    if batch_size < 1:
        raise LabError(f"batch_size {batch_size} is out of range: choose at least 1")

    def log_probabilities(asked: Sequence[ChoiceQuestion]) -> tuple[list[np.ndarray], list[int]]:
        rows = [_encoded(tokenizer, one, start) for one in asked]
        _check_length(model, rows)
        device = next(model.parameters()).device
        with evaluating(model), runtime.autocast(device, precision):
            if share and isinstance(model, Transformer) and model.before is None:
                found = _shared(model, rows, batch_size)
            else:
                found = _whole(model, rows)
        return found, [len(row.ids) - row.start for some in rows for row in some]

    log_p, lengths = log_probabilities(questions)
    counts = iter(lengths)
    tokens = [np.array([next(counts) for _ in one.choices]) for one in questions]
    bare = list(dict.fromkeys(it.lstrip() for one in questions for it in one.continuations))
    alone, _ = log_probabilities([ChoiceQuestion(premise, (it,), 0) for it in bare])
    by_text = {it: float(sums[0]) for it, sums in zip(bare, alone, strict=True)}
    return ChoiceScores(
        log_p,
        tokens,
        [np.array([len(it.encode()) for it in one.choices]) for one in questions],
        [np.array([by_text[it.lstrip()] for it in one.continuations]) for one in questions],
    )


def choice_accuracy(
    questions: Sequence[ChoiceQuestion], chosen_Q: Sequence[int] | np.ndarray
) -> Interval:
    """The share of questions answered rightly, and its 95 % interval over documents."""
    documents: dict[str, list[bool]] = {}
    for number, (one, choice) in enumerate(zip(questions, chosen_Q, strict=True)):
        right = bool(choice == one.answer)
        documents.setdefault(one.document or f"question {number}", []).append(right)
    right = [sum(some) for some in documents.values()]
    asked = [len(some) for some in documents.values()]
    return bootstrap_interval(lambda right, asked: right.sum() / asked.sum(), right, asked)


def lazy_choices(questions: Sequence[ChoiceQuestion]) -> dict[str, np.ndarray]:
    """What takes no model, by name: an index for each question (Q,).

    "most frequent index" knows the answers of these very questions, so it is the best of its kind.
    """
    indices = [one.answer for one in questions]
    common = max(sorted(set(indices)), key=indices.count)
    sizes = [[len(it.encode()) for it in one.choices] for one in questions]
    return {
        "most frequent index": np.array([min(common, len(it.choices) - 1) for it in questions]),
        "longest choice": np.array([int(np.argmax(it)) for it in sizes]),
        "shortest choice": np.array([int(np.argmin(it)) for it in sizes]),
    }


def contextual_calibration(log_p_NC: np.ndarray, content_free_FC: np.ndarray) -> np.ndarray:
    """Label log-probabilities, freed of what the prompt prefers whatever the text is.

    q_c ∝ p_c / p̄_c, where p̄ is the mean over content-free inputs, such as "N/A". The paper takes
    a softmax of p / p̄, which orders the labels in the same way.

    Args:
        log_p_NC: ln p(label | prompt) up to a constant a row.
        content_free_FC: the same for the content-free inputs, one a row.

    Returns:
        ln q_NC, each row normalised.

    Source: Zhao et al. 2021, section 4.
    """
    log_p = torch.as_tensor(log_p_NC).double().log_softmax(-1)
    free_C = torch.as_tensor(content_free_FC).double().softmax(-1).reshape(-1, log_p.shape[-1])
    return (log_p - free_C.mean(0).log()).log_softmax(-1).numpy()


def _encoded(tokenizer: Tokenizer, question: ChoiceQuestion, start: bool) -> list[_Row]:
    rows = []
    for continuation in question.continuations:
        context, rest = split_at_boundary(tokenizer, question.prompt, continuation)
        begin = [tokenizer.end_of_text_id] if start or not context else []
        rows.append(_Row([*begin, *context, *rest], len(begin) + len(context)))
    return rows


def _check_length(model: nn.Module, rows: list[list[_Row]]) -> None:
    longest = context_length(model)
    for number, some in enumerate(rows, start=1):
        if (size := max(len(row.ids) for row in some)) > longest:
            raise LabError(
                f"question {number} has {size} tokens with its longest choice and the model reads "
                f"{longest}: shorten its prompt or give fewer examples"
            )


def _common(*texts: list[int]) -> int:
    """How many ids all texts begin with."""
    first, last = min(texts), max(texts)  # of sorted texts these two differ first
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))


def _whole(model: nn.Module, rows: list[list[_Row]]) -> list[np.ndarray]:
    """The plain way: each prompt with each choice behind it is a text of its own."""
    device = next(model.parameters()).device
    found = []
    for some in rows:
        sums = []
        for row in some:
            ids_1S = torch.tensor([row.ids], device=device)
            log_p_SV = _wide(model(ids_1S[:, :-1]).logits[0]).log_softmax(-1)
            log_p_S = log_p_SV.gather(-1, ids_1S[0, 1:, None])[:, 0]
            sums.append(float(log_p_S[row.start - 1 :].double().sum()))
        found.append(np.array(sums))
    return found


def _shared(model: Transformer, rows: list[list[_Row]], batch_size: int) -> list[np.ndarray]:
    """Read once what is common to all questions, then to the choices of each."""
    device = next(model.parameters()).device
    prompts = [some[0].ids[: min(row.start for row in some)] for some in rows]
    # Every question keeps a token of its own: its pass predicts the first token of the choices.
    shared = min(_common(*prompts), min(map(len, prompts)) - 1)
    first: KVCache | None = None
    if shared:
        first = model.new_cache(1, shared)
        for ids in torch.tensor([prompts[0][:shared]], device=device).split(MOST_READ, dim=1):
            model.encode(ids, cache=first)
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    room = context_length(model)
    for some in _batches([p[shared:] for p in prompts], rows, shared, batch_size, room):
        own = [prompts[i][shared:] for i in some]
        rests = [
            [_Row(r.ids[len(prompts[i]) :], r.start - len(prompts[i])) for r in rows[i]]
            for i in some
        ]
        for i, sums in zip(some, _batch(model, first, own, rests), strict=True):
            found[i] = sums
    return found


def _batches(
    own: list[list[int]], rows: list[list[_Row]], shared: int, batch_size: int, room: int
) -> Iterator[list[int]]:
    """Indices of questions, the longest first, as many at a time as memory is meant for."""
    order = sorted(range(len(own)), key=lambda i: -len(own[i]))
    while order:
        near = order[:batch_size]
        longest, choices = len(own[order[0]]), max(len(rows[i]) for i in near)
        behind = max(len(row.ids) - shared - len(own[i]) for i in near for row in rows[i])
        copies = choices if behind > 1 else 1  # choices of one token need no row of their own
        held = MOST_CACHED // ((shared + longest + behind) * copies)
        size = max(1, min(batch_size, MOST_READ // max(longest, behind * copies), held))
        if shared + longest + behind > room:  # padding would not fit; alone each does
            size = 1
        yield order[:size]
        order = order[size:]


def _batch(
    model: Transformer, first: KVCache | None, own: list[list[int]], rests: list[list[_Row]]
) -> list[np.ndarray]:
    """Sums of ln p for every choice of a batch of questions.

    Args:
        model: the decoder.
        first: what all questions begin with, read already; None: nothing.
        own: the rest of each prompt, at least one id.
        rests: what follows it, a row a choice.
    """
    device = next(model.parameters()).device
    ids_BT, mask_BT = _padded(own, device, "left")
    past = first.length if first else 0
    longest = max(len(row.ids) for some in rests for row in some)
    cache = model.new_cache(len(own), past + ids_BT.shape[1] + longest)
    if first is not None:
        for mine, theirs in ((cache.keys, first.keys), (cache.values, first.values)):
            for layer, read in enumerate(theirs):
                mine[layer][:, :, :past] = read[:, :, :past]
        cache.advance(past)
    mask_BS = torch.cat([mask_BT.new_ones(len(own), past), mask_BT], dim=1)
    last_BV = _log_p(model, _read(model, ids_BT, mask_BS, cache)[:, -1])

    flat = [(b, row) for b, some in enumerate(rests) for row in some]
    sums = [float(last_BV[b, row.ids[0]]) if row.start == 0 else 0.0 for b, row in flat]
    if more := [r for r, (_, row) in enumerate(flat) if len(row.ids) > 1]:
        which_R = torch.tensor([flat[r][0] for r in more], device=device)
        cache.keep_rows(which_R)
        ids_RT, mask_RT = _padded([flat[r][1].ids[:-1] for r in more], device, "right")
        mask_RS = torch.cat([mask_BS[which_R], mask_RT], dim=1)
        log_p_RTV = _log_p(model, _read(model, ids_RT, mask_RS, cache))
        for place, r in enumerate(more):
            row = flat[r][1]
            following = torch.tensor(row.ids[1:], device=device)
            log_p_T = log_p_RTV[place, : len(following)].gather(-1, following[:, None])[:, 0]
            sums[r] += float(log_p_T[max(row.start - 1, 0) :].double().sum())
    each = iter(sums)
    return [np.array([next(each) for _ in some]) for some in rests]


def _read(model: Transformer, ids_RT: Tensor, mask_RS: Tensor, cache: KVCache) -> Tensor:
    padded = None if bool(mask_RS.all()) else mask_RS
    return model.encode(ids_RT, attention_mask=padded, cache=cache)


def _log_p(model: Transformer, hidden: Tensor) -> Tensor:
    assert model.lm_head is not None
    return _wide(model.lm_head(hidden)).log_softmax(-1)


def _wide(logits: Tensor) -> Tensor:
    """In fp32, or in float64 where the model computes so."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _padded(
    texts: Sequence[Sequence[int]], device: torch.device, side: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    empty = [[0] * (longest - len(text)) for text in texts]
    pairs = list(zip(empty, texts, strict=True))
    ids = [[*e, *t] if side == "left" else [*t, *e] for e, t in pairs]
    mask = [
        [0] * len(e) + [1] * len(t) if side == "left" else [1] * len(t) + [0] * len(e)
        for e, t in pairs
    ]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

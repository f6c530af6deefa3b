"""Generation: read a prompt, choose the next token, append it, read on.

    prompt ──> model ──> logits of the last position ──> temperature, top-k, top-p ──> draw ─┐
                 ^                                                                           │
                 └────────────────── one new token per sequence (the cache holds the rest) <─┘

Sources: Holtzman et al. 2020 (nucleus sampling); Fan et al. 2018 (top-k).
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.generation.token_step import TokenStep, is_plain
from labkit.models.config import context_length
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.transformer import Transformer

COPY_FROM = 32
"""New tokens from which it pays to copy a labkit decoder's weights; see `token_step.TokenStep`."""


class Step(NamedTuple):
    """One generated position of every sequence."""

    tokens: Tensor
    """(B,) the chosen ids."""
    logits: Tensor
    """(B, V) what they were chosen from, before temperature."""


def next_token_probabilities(
    logits_BV: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The distribution that sampling draws from: softmax(logits / temperature), cut, renormalised.

    Args:
        logits_BV: Scores of the next token.
        temperature: >= 0; below 1 sharper, above 1 flatter, 0 puts everything on the best token.
        top_k: Keep the k most likely tokens; None keeps all.
        top_p: In (0, 1]: keep the fewest most likely tokens whose probabilities reach p; after
            top_k.

    Returns:
        probabilities_BV, each row summing to 1.

    Raises:
        LabError: A value outside its range.

    >>> next_token_probabilities(torch.tensor([[1.0, 3.0, 2.0]]), temperature=0).tolist()
    [[0.0, 1.0, 0.0]]
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        best_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter_(-1, best_B1, 1.0)
    scores_BV = logits_BV.float() / temperature
    if top_k is not None and top_k < scores_BV.shape[-1]:
        kth_B1 = scores_BV.topk(top_k, dim=-1).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < kth_B1, -torch.inf)
    probabilities_BV = scores_BV.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        kept_BV = sorted_BV.masked_fill(before_BV >= top_p, 0.0)
        probabilities_BV = torch.zeros_like(kept_BV).scatter_(-1, order_BV, kept_BV)
        probabilities_BV = probabilities_BV / probabilities_BV.sum(dim=-1, keepdim=True)
    return probabilities_BV


@overload
def generate(
    model: nn.Module,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    seed: int | None = ...,
    end_id: int | Collection[int] | None = ...,
    use_cache: bool = ...,
    start_id: int | None = ...,
    compile: bool = ...,
) -> list[int]: ...
@overload
def generate(
    model: nn.Module,
    ids: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    seed: int | None = ...,
    end_id: int | Collection[int] | None = ...,
    use_cache: bool = ...,
    start_id: int | None = ...,
    compile: bool = ...,
) -> list[list[int]]: ...
def generate(
    model: nn.Module,
    ids: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_id: int | Collection[int] | None = None,
    use_cache: bool = True,
    start_id: int | None = None,
    compile: bool = False,
) -> Any:
    """Continue one prompt or many; with an encoder-decoder, answer one source or many.

    Prompts of different lengths are padded on the left inside and do not influence one another.
    What does not fit into the model's context slides out of it: when the window is full, its second
    half is read again, alone, and writing goes on (for all prompts at once). Sources are read by
    the encoder, once.

    Args:
        model: A labkit decoder or encoder-decoder, a transformers causal model, or any module from
            (B, T) ids to `.logits` (B, T, V), such as those of `baselines`: it reads the whole text
            again for each token, and prompts of different lengths are not for it.
        ids: One prompt (a list of ids) or a batch (a list of lists, or a tensor (B, T)).
        max_new_tokens: At least 1; of an encoder-decoder less than the context length.
        temperature: >= 0; 0 is greedy.
        top_k: As in `next_token_probabilities`.
        top_p: As in `next_token_probabilities`.
        seed: Same seed, same text; None draws from torch's global generator.
        end_id: A sequence stops before this id, or the first of several; None runs to
            max_new_tokens.
        use_cache: Keep keys and values instead of reading the whole text again for each token; the
            tokens are the same.
        start_id: The token that stood first in decoder_input_ids; an encoder-decoder needs it.
        compile: Of a labkit decoder with a cache: make one program of a step with torch.compile
            (see `token_step.TokenStep`), for long or many texts: the first takes 10 to 20 s more.

    Returns:
        The new ids, without the prompt and without end_id: a list for one prompt, else one list for
        each.

    Raises:
        LabError: An empty prompt, an encoder, prompts of different lengths for a model that cannot
            be told of padding, or a value outside its range.
    """
    one = not isinstance(ids, Tensor) and len(ids) > 0 and isinstance(ids[0], int)
    prompts: Any = [ids] if one else ids.tolist() if isinstance(ids, Tensor) else ids
    steps = stream(
        model,
        prompts,
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed,
        end_id,
        use_cache,
        start_id,
        compile,
    )
    columns = [step.tokens.tolist() for step in steps]
    answers = [list(row) for row in zip(*columns, strict=True)]
    ends = _ends(end_id)
    answers = [list(itertools.takewhile(lambda i: i not in ends, row)) for row in answers]
    return answers[0] if one else answers


def stream(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_id: int | Collection[int] | None = None,
    use_cache: bool = True,
    start_id: int | None = None,
    compile: bool = False,
) -> Iterator[Step]:
    """`generate`, one `Step` at a time, for text that appears as it is written.

    Arguments and errors as in `generate`; stops when every sequence has produced end_id. Weights
    that change while a stream is read may not be noticed.
    """
    _check_sampling(temperature, top_k, top_p)
    if compile and not (isinstance(model, Transformer) and use_cache):
        raise LabError(
            "compile is True, which is for a labkit decoder with use_cache=True: give both, or"
            " leave it False"
        )
    context = context_length(model)
    answers = isinstance(model, EncoderDecoder)
    if max_new_tokens < 1 or (answers and max_new_tokens >= context):
        limit = f" and less than the model's context of {context}" if answers else ""
        raise LabError(f"max_new_tokens is {max_new_tokens}; it must be at least 1{limit}")
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise LabError("a prompt is empty; give at least one token, such as the end-of-text id")
    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed) if seed is not None else None
    ends = torch.tensor(sorted(_ends(end_id)), dtype=torch.long, device=device)
    done_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    was_training = model.training
    model.eval()
    try:
        step = _token_step(model, max_new_tokens, compile) if use_cache else None
        texts, left = [list(prompt) for prompt in prompts], max_new_tokens
        while left:
            if isinstance(model, EncoderDecoder):
                room = left
                new_BT, mask_BT = _started(len(prompts), start_id, device)
                read = _answering_reader(model, prompts, 1 + room, use_cache)
            else:
                room = min(left, max(context - max(map(len, texts)), context // 2, 1))
                window = [text[-max(1, context - room) :] for text in texts]
                new_BT, mask_BT = left_pad(window, device)
                read = _reader(model, len(prompts), new_BT.shape[1] + room, use_cache, step)
            for position in range(room):
                with torch.inference_mode():
                    logits_BV = read(new_BT, mask_BT)
                logits_BV = logits_BV.clone()  # an ordinary tensor, that a caller may compute with
                if position == 0 and not bool(logits_BV.isfinite().any(dim=-1).all()):
                    raise LabError("the model's logits are not finite: its weights are damaged")
                if temperature == 0:
                    tokens_B = logits_BV.argmax(dim=-1)
                else:
                    likely_BV = next_token_probabilities(logits_BV, temperature, top_k, top_p)
                    tokens_B = torch.multinomial(likely_BV, 1, generator=random)[:, 0]
                yield Step(tokens_B, logits_BV)
                if len(ends):
                    done_B = done_B | torch.isin(tokens_B, ends)
                    if bool(done_B.all()):
                        return
                new_BT = tokens_B[:, None]
                mask_BT = torch.cat((mask_BT, torch.ones_like(new_BT)), dim=1)
                for text, token in zip(texts, tokens_B.tolist(), strict=True):
                    text.append(token)
            left -= room
    finally:
        model.train(was_training)


def _ends(end_id: int | Collection[int] | None) -> frozenset[int]:
    if end_id is None:
        return frozenset()
    return frozenset((end_id,) if isinstance(end_id, int) else end_id)


def left_pad(
    prompts: Sequence[Sequence[int]], device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Stack prompts so that all end together: (ids_BT, mask_BT), mask 1 = real, 0 = padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def right_pad(
    texts: Sequence[Sequence[int]], device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Stack texts so that all begin together: (ids_BS, mask_BS), mask 1 = real, 0 = padding."""
    ids, mask = left_pad([text[::-1] for text in texts], device)
    return ids.flip(1), mask.flip(1)


def _reader(
    model: nn.Module, batch_size: int, capacity: int, use_cache: bool, step: TokenStep | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (new ids, mask of everything so far) -> logits of the last position."""
    if isinstance(model, Transformer):
        if model.config.kind != "decoder" or model.lm_head is None:
            raise LabError("generation needs a decoder with a language-model head")
        if use_cache:
            return _cached_reader(model, batch_size, capacity, step)
        return _labkit_reader(model)
    if not hasattr(model, "config"):
        return _plain_reader(model)
    return _transformers_reader(model, use_cache)


def _token_step(model: nn.Module, new_tokens: int, compile: bool) -> TokenStep | None:
    """One step without modules, where the model is plain enough; it serves every window."""
    if not isinstance(model, Transformer) or model.config.kind != "decoder" or not model.lm_head:
        return None
    if not (compile or is_plain(model)):
        return None
    copy = new_tokens >= COPY_FROM and not compile  # a compiled product reads rows as fast
    return TokenStep(model, copy, compile)


def _cached_reader(
    model: Transformer, batch_size: int, capacity: int, step: TokenStep | None
) -> Callable[[Tensor, Tensor], Tensor]:
    cache = model.new_cache(batch_size, capacity)

    def read(new_BT: Tensor, mask_BS: Tensor) -> Tensor:
        padded = None if bool(mask_BS.all()) else mask_BS
        if step is not None and cache.length:
            return step(new_BT[:, 0], cache, padded)
        return model(new_BT, attention_mask=padded, cache=cache).logits[:, -1]

    return read


def _labkit_reader(model: Transformer) -> Callable[[Tensor, Tensor], Tensor]:
    seen: list[Tensor] = []

    def read(new_BT: Tensor, mask_BS: Tensor) -> Tensor:
        seen.append(new_BT)
        padded = None if bool(mask_BS.all()) else mask_BS
        return model(torch.cat(seen, dim=1), attention_mask=padded).logits[:, -1]

    return read


def _started(batch: int, start_id: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    if start_id is None:
        raise LabError(
            "start_id is None; an encoder-decoder begins its answer with the token that stood first"
            " in decoder_input_ids: give its id"
        )
    ids_B1 = torch.full((batch, 1), start_id, device=device)
    return ids_B1, torch.ones_like(ids_B1)


def _answering_reader(
    model: EncoderDecoder, sources: Sequence[Sequence[int]], capacity: int, use_cache: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    if model.lm_head is None:
        raise LabError("generation needs a language-model head; vocabulary_head is False")
    cache = model.new_cache(len(sources), capacity) if use_cache else None
    device = next(model.parameters()).device
    with torch.no_grad():
        source = model.read(*right_pad(sources, device))
    seen: list[Tensor] = []

    def read(new_BT: Tensor, mask_BT: Tensor) -> Tensor:
        seen.append(new_BT)
        ids = new_BT if cache is not None else torch.cat(seen, dim=1)
        return model(decoder_input_ids=ids, cache=cache, source=source).logits[:, -1]

    return read


def _plain_reader(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    seen: list[Tensor] = []

    def read(new_BT: Tensor, mask_BS: Tensor) -> Tensor:
        if not bool(mask_BS.all()):
            raise LabError(
                f"prompts of different lengths need padding, which {type(model).__name__} cannot "
                "be told of: generate for one length at a time"
            )
        seen.append(new_BT)
        return model(torch.cat(seen, dim=1)).logits[:, -1]

    return read


def _transformers_reader(model: nn.Module, use_cache: bool) -> Callable[[Tensor, Tensor], Tensor]:
    past: Any = None
    seen: list[Tensor] = []

    def read(new_BT: Tensor, mask_BS: Tensor) -> Tensor:
        nonlocal past
        seen.append(new_BT)
        ids = new_BT if use_cache else torch.cat(seen, dim=1)
        positions = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=mask_BS,
            position_ids=positions,
            past_key_values=past,
            use_cache=use_cache,
        )
        past = output.past_key_values if use_cache else None
        return output.logits[:, -1]

    return read


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not temperature >= 0:
        raise LabError(f"temperature is {temperature}; it must be 0 (greedy) or larger")
    if top_k is not None and top_k < 1:
        raise LabError(f"top_k is {top_k}; it must be at least 1, or None to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise LabError(f"top_p is {top_p}; it must be in (0, 1], or None to keep every token")

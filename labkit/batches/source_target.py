"""Pairs of a source and a target: for an encoder-decoder, or as one text for a decoder.

    source "thou art"  ──> input_ids            thou art <end>          padded on the right, masked
    target "you are"   ──> decoder_input_ids    <end> you are           teacher forcing: the truth
                       ──> labels               you are <end>           one position later

The end of text serves three times: it closes the source, begins the answer (as in BART) and is the
last thing to predict; without the last the model never learns to stop. `Pad` fills up the source
with a mask and the labels with -100; padding of decoder_input_ids stands behind every real token,
where a causal decoder never looks.

A decoder alone reads "source <line break> target" as one text, of which the target counts
(`continued_example`).

Legend: S source positions, T target positions.

Sources: Sutskever et al. 2014, arXiv:1409.3215 (a source, then an answer); Williams and Zipser 1989
(teacher forcing).
"""

from collections.abc import Sequence

import torch

from labkit.batches.chat import answer_ids, instruction_example
from labkit.batches.types import Example
from labkit.errors import LabError
from labkit.text.tokenizers import Tokenizer

#: What stands between source and target where one model reads both.
AFTER_SOURCE = "\n"


def source_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A source for an encoder: its tokens and the end of text, (S,)."""
    return [*answer_ids(tokenizer, text), tokenizer.end_of_text_id]


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A source for a decoder: the end of text, its tokens, a line break."""
    return [tokenizer.end_of_text_id, *tokenizer.encode(text + AFTER_SOURCE)]


def translated_example(source: Sequence[int], target: Sequence[int], end_id: int) -> Example:
    """One pair for an encoder-decoder, taught by the truth.

    Args:
        source: from `source_ids`, at least one token.
        target: ids of the target without marks, at least one.
        end_id: of the end of text, which also begins the answer.

    Returns:
        `input_ids` (S,), `decoder_input_ids` and `labels` (T,), T = len(target) + 1.

    Raises:
        LabError: a side is empty.

    >>> example = translated_example([5, 6, 0], [7, 8], 0)
    >>> example["decoder_input_ids"].tolist(), example["labels"].tolist()
    ([0, 7, 8], [7, 8, 0])
    """
    if not len(source) or not len(target):
        raise LabError(
            f"source of {len(source)} and target of {len(target)} tokens: both need at least 1, or"
            " there is nothing to read or nothing to learn"
        )
    return {
        "input_ids": torch.as_tensor([*source]),
        "decoder_input_ids": torch.as_tensor([end_id, *target]),
        "labels": torch.as_tensor([*target, end_id]),
    }


def translated_examples(
    tokenizer: Tokenizer, sources: Sequence[str], targets: Sequence[str], max_length: int
) -> list[Example]:
    """`translated_example` of each pair of texts; either side is cut to max_length tokens.

    Args:
        tokenizer: of both sides.
        sources, targets: equally many.
        max_length: of each side, its end of text included, at least 2. A target that is cut has no
            end of text among its labels.

    Raises:
        LabError: max_length below 2, or an empty side.
    """
    if max_length < 2:
        raise LabError(f"max_length {max_length} is out of range: choose at least 2")
    end, made = tokenizer.end_of_text_id, []
    for source, target in zip(sources, targets, strict=True):
        ids = source_ids(tokenizer, source)
        ids = ids if len(ids) <= max_length else [*ids[: max_length - 1], end]
        example = translated_example(ids, answer_ids(tokenizer, target), end)
        for name in ("decoder_input_ids", "labels"):
            example[name] = example[name][:max_length]
        made.append(example)
    return made


def continued_example(tokenizer: Tokenizer, source: str, target: str) -> Example:
    """One pair as a text for a decoder; the loss counts the target and the end of text only.

    Returns:
        `input_ids` and `labels`, both (S + T,), as of `instruction_example`.

    Raises:
        LabError: an empty target.
    """
    return instruction_example(
        prompt_ids(tokenizer, source), answer_ids(tokenizer, target), tokenizer.end_of_text_id
    )

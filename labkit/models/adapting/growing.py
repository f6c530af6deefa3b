"""Growth: new blocks in a trained model, which computes what it computed until they learn.

    x ─┬──────────────> + ─┬────────────> + ──>      a new block is a copy of the one below,
       └─> attention ─ 0 ──┘└─> ffn ─ 0 ──┘          but what it writes into the stream is 0

With the old blocks frozen, what is learned is in the new ones alone: taken out again they leave the
old model, to the bit.

Sources: Chen et al. 2016, arXiv:1511.05641 (growth that keeps the function); Wu et al. 2024,
arXiv:2401.02415, section 3.1 (block expansion of a Llama).
"""

import copy
import dataclasses
from collections.abc import Iterable

from torch import nn

from labkit.errors import LabError
from labkit.models.transformer import Transformer


def insert_blocks(model: Transformer, above: Iterable[int]) -> list[int]:
    """Put a new block above each of some blocks, in place; logits stay equal to the bit.

    Args:
        model: labkit's, pre-norm; its config then counts the new blocks, too.
        above: numbers of present blocks, from 0, each at most once.

    Returns:
        The numbers of the new blocks in the grown model.

    Raises:
        LabError: another kind of model, or a number out of range or given twice.
    """
    count = _check(model)
    wanted = sorted(above)
    if not wanted or wanted[0] < 0 or wanted[-1] >= count or len(set(wanted)) < len(wanted):
        raise LabError(
            f"blocks {wanted} are out of range: choose numbers from 0 to {count - 1}, each once"
        )
    stack, new = [], []
    for number, block in enumerate(model.blocks):
        stack.append(block)
        if number in wanted:
            new.append(len(stack))
            stack.append(_silent(block))
    _set(model, stack)
    return new


def train_only(model: Transformer, numbers: Iterable[int]) -> list[str]:
    """Freeze all but some blocks; names of the parameters that train.

    Raises:
        LabError: a number out of range.
    """
    chosen = set(numbers)
    if not chosen or not chosen <= set(range(len(model.blocks))):
        raise LabError(
            f"blocks {sorted(chosen)} are out of range: choose from 0 to {len(model.blocks) - 1}"
        )
    inside = {id(p) for number in chosen for p in model.blocks[number].parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) in inside)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def remove_blocks(model: Transformer, numbers: Iterable[int]) -> None:
    """Take blocks out, in place: of a grown model whose old blocks were frozen, the new ones.

    Raises:
        LabError: another kind of model, a number out of range, or no block would be left.
    """
    count, gone = _check(model), set(numbers)
    if not gone <= set(range(count)) or len(gone) == count:
        raise LabError(
            f"blocks {sorted(gone)} are out of range: choose from 0 to {count - 1}, and leave one"
        )
    _set(model, [block for number, block in enumerate(model.blocks) if number not in gone])


def _silent(block: nn.Module) -> nn.Module:
    """A copy that adds 0 to the residual stream."""
    new = copy.deepcopy(block)
    for layer in (new.attention.out, new.ffn.down):  # type: ignore[union-attr]
        for parameter in layer.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)
    return new


def _set(model: Transformer, stack: list[nn.Module]) -> None:
    model.blocks = nn.ModuleList(stack)
    model.config = dataclasses.replace(model.config, num_layers=len(stack))


def _check(model: nn.Module) -> int:
    """Number of blocks of a model that can grow."""
    if not isinstance(model, Transformer):
        raise LabError(
            f"{type(model).__name__} cannot grow here: open it as labkit's (from_huggingface)"
        )
    if model.config.norm_position != "pre" or model.blocks[0].reads_source:
        raise LabError(
            f"norm_position is {model.config.norm_position!r}: only a decoder or encoder with "
            "'pre' passes its stream on unchanged through a block that adds 0"
        )
    return len(model.blocks)

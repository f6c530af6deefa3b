"""Sequence parallel: what tensor parallel leaves whole on every rank is cut by position.

    tensor parallel        norm on T positions, N times alike ──> copy_in ... sum_out ──> +
    sequence parallel      norm on T/N positions ──> gather ... scatter_sum ──> + on T/N positions

A sum over ranks is a scatter_sum and a gather. Done at two places instead of one, they leave the
norms, the residual stream and what these keep for the backward pass to T/N positions a rank, and
send as many bytes forward as before. Of a gathered input only the own part is kept: the backward
pass gathers it again (`_Gathered`), a half more than tensor parallel sends.

A norm's weights are on every rank, and each rank sees the gradient of its own positions: these are
added up.

Legend: B batch, T positions, D and E widths, N ranks.

Sources: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.models.layers import Block
from labkit.models.transformer import Transformer
from labkit.parallel.collectives import Group
from labkit.parallel.differentiable import part_of_total, parts, scatter_sum, split, total
from labkit.parallel.tensor import Column, Row, VocabularyHead, tensor_parallel

POSITIONS = 1
"""The axis of (B, T, D) that is cut."""


class _Gathered(torch.autograd.Function):
    """gather(x) W^T, of which the backward pass keeps x and W alone."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, group: Group) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group
        return F.linear(parts(x, POSITIONS, group), weight)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        gradient_BTE = gradients[0]
        whole_BTD = parts(x, POSITIONS, ctx.group)
        d_weight = gradient_BTE.flatten(0, 1).mT @ whole_BTD.flatten(0, 1)
        return part_of_total(gradient_BTE @ weight, POSITIONS, ctx.group), d_weight, None


class _FromParts(nn.Module):
    """A column layer or a head that is given T/N positions and computes its part of the width."""

    def __init__(self, layer: Column | VocabularyHead):
        super().__init__()
        self.weight, self.bias, self.group = layer.weight, layer.bias, layer.group
        self.join = layer.join

    def forward(self, x: Tensor) -> Tensor:
        y = _Gathered.apply(x, self.weight, self.group)
        assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias


class _ToParts(nn.Module):
    """A row layer that gives each rank T/N positions of the sum."""

    def __init__(self, layer: Row):
        super().__init__()
        self.weight, self.bias, self.group = layer.weight, layer.bias, layer.group
        self.join = layer.join

    def forward(self, x: Tensor) -> Tensor:
        y = scatter_sum(F.linear(x, self.weight), POSITIONS, self.group)
        return y if self.bias is None else y + self.bias


def sequence_parallel(model: Transformer, group: Group = None) -> Transformer:
    """`tensor_parallel`, with the norms and the residual stream cut by position. In place.

    Train it with `vocabulary_lm`; the positions of a batch must divide among the ranks. The
    embedding still makes all positions on every rank, before the first block takes its part.
    """
    tensor_parallel(model, group)
    alike: list[nn.Module] = [model.final_norm]
    biases: list[nn.Parameter | None] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        attention: Any = block.attention
        ffn: Any = block.ffn
        alike += [block.attention_norm, block.ffn_norm]
        biases += [attention.out.bias, ffn.down.bias]
        attention.qkv, attention.out = _FromParts(attention.qkv), _ToParts(attention.out)
        ffn.up, ffn.down = _FromParts(ffn.up), _ToParts(ffn.down)
    anything: Any = model
    anything.lm_head = _FromParts(anything.lm_head)
    model.blocks[0].register_forward_pre_hook(
        lambda _, inputs: (split(inputs[0], POSITIONS, group), *inputs[1:])
    )
    seen_in_part = [p for norm in alike for p in norm.parameters()]
    for p in [*seen_in_part, *(bias for bias in biases if bias is not None)]:
        p.register_hook(lambda gradient: total(gradient, group))
    return model

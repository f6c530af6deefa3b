"""Tensor parallel by hand: every matrix is cut, every rank computes a part of each layer.

    x_BTD ──copy_in──> columns: heads r of H    ──> attention ──> rows ──sum_out──> + ──> x_BTD
    x_BTD ──copy_in──> columns: F/N of the width ──> activation ──> rows ──sum_out──> + ──> x_BTD

A layer cut by its outputs (column) leaves each rank a part of the width; a layer cut by its inputs
(row) takes such a part and gives a summand of the whole. Between the two, attention works on whole
heads and the activation on single numbers, so nothing is sent: one sum for a pair of matrices,
forward, and one backward. Norms and the residual stream are on every rank, alike.

The vocabulary is cut too: a rank embeds its own ids (0 for the others, then the sum) and makes the
logits of its own; of these N x V/N logits only three numbers a position are sent, for the softmax.

    log p(y) = z_y - m - log sum_ranks sum_v exp(z_v - m),      m the largest of all ranks

Legend: B batch, T positions, D model width, F feed-forward width, H heads, N ranks; n positions of
a loss, v ids of a rank.

Sources: Shoeybi et al. 2019, arXiv:1909.08053.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.models.attention import StackedLinear
from labkit.models.layers import Block
from labkit.models.transformer import Transformer
from labkit.parallel import collectives
from labkit.parallel.collectives import Group
from labkit.parallel.decoders import head_of
from labkit.parallel.differentiable import copy_in, own_part, parts, sum_out


class Column(nn.Module):
    """A linear layer cut by outputs: all of x in, a part of y out; no sum.

    Of layers stacked in one matrix (queries, keys and values; gate and up) each one is cut.
    """

    def __init__(self, layer: nn.Linear, group: Group = None):
        super().__init__()
        self.group = group
        self.rows = layer.rows if isinstance(layer, StackedLinear) else (layer.out_features,)
        self.weight = nn.Parameter(self.cut(layer.weight))
        self.bias = None if layer.bias is None else nn.Parameter(self.cut(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(copy_in(x, self.group), self.weight, self.bias)

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's rows of each stacked layer."""
        return torch.cat([own_part(layer, 0, self.group) for layer in whole.split(self.rows)])

    def join(self, name: str, part: Tensor) -> Tensor:
        """The inverse of `cut`."""
        size = collectives.place(self.group)[1]
        own = part.split([rows // size for rows in self.rows])
        return torch.cat([parts(layer, 0, self.group) for layer in own])


class Row(nn.Module):
    """A linear layer cut by inputs: a part of x in, all of y out, summed over ranks.

    The bias is added after the sum: before it, it would be added N times.
    """

    def __init__(self, layer: nn.Linear, group: Group = None):
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(own_part(layer.weight, 1, group).clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = sum_out(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias

    def join(self, name: str, part: Tensor) -> Tensor:
        """The whole of a parameter, from every rank's part."""
        return parts(part, 1, self.group) if name == "weight" else part


class VocabularyRows(nn.Module):
    """An embedding cut by ids: a rank looks up its own, 0 stands for the others', then the sum."""

    def __init__(self, table: nn.Embedding, group: Group = None):
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(own_part(table.weight, 0, group).clone())
        self.first = collectives.place(group)[0] * len(self.weight)

    def forward(self, ids_BT: Tensor) -> Tensor:
        local_BT = ids_BT - self.first
        mine_BT = (local_BT >= 0) & (local_BT < len(self.weight))
        x_BTD = F.embedding(local_BT.masked_fill(~mine_BT, 0), self.weight)
        return sum_out(x_BTD * mine_BT.unsqueeze(-1), self.group)

    def join(self, name: str, part: Tensor) -> Tensor:
        """The whole table."""
        return parts(part, 0, self.group)


class VocabularyHead(nn.Module):
    """The projection to a rank's own ids; tied to its rows of the embedding if it was tied."""

    def __init__(self, weight: nn.Parameter, group: Group = None):
        super().__init__()
        self.weight, self.group, self.bias = weight, group, None

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(copy_in(hidden, self.group), self.weight)

    def join(self, name: str, part: Tensor) -> Tensor:
        """The whole matrix."""
        return parts(part, 0, self.group)


class _VocabularyCrossEntropy(torch.autograd.Function):
    """Each rank has logits of its own ids; the gradient p - y of these stays with it."""

    @staticmethod
    def forward(ctx, logits_nv: Tensor, targets_n: Tensor, first: int, group: Group) -> Tensor:
        largest_n = parts(logits_nv.amax(dim=1)[None], 0, group).amax(dim=0)
        exp_nv = (logits_nv - largest_n[:, None]).exp()
        local_n = targets_n - first
        mine_n = (local_n >= 0) & (local_n < logits_nv.shape[1])
        index_n1 = local_n.masked_fill(~mine_n, 0)[:, None]
        chosen_n = logits_nv.gather(1, index_n1)[:, 0] * mine_n
        sums_2n = torch.stack([exp_nv.sum(dim=1), chosen_n])
        collectives.all_reduce(sums_2n.view(-1), group)
        counts_n = targets_n != IGNORE_INDEX
        loss_n = sums_2n[0].log() + largest_n - sums_2n[1]
        gradient_nv = exp_nv.div_(sums_2n[0][:, None])
        gradient_nv.scatter_add_(1, index_n1, -mine_n[:, None].to(gradient_nv.dtype))
        ctx.save_for_backward(gradient_nv.mul_(counts_n[:, None]))
        return (loss_n * counts_n).sum()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient_nv,) = ctx.saved_tensors
        return gradient_nv * gradients[0], None, None, None


def vocabulary_cross_entropy(
    logits_nv: Float[Tensor, "n v"],
    targets_n: Int[Tensor, " n"],
    first: int,
    group: Group = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Cross-entropy of logits that no rank has all of: the same (sum, count) on every rank.

    Args:
        logits_nv: of this rank's ids, first .. first + v - 1, in float32 or float64.
        targets_n: ids of the whole vocabulary, or `IGNORE_INDEX`.
        first: this rank's first id.

    Cost: three numbers a position are exchanged, whatever the vocabulary.
    """
    loss_sum = _VocabularyCrossEntropy.apply(logits_nv, targets_n, first, group)
    return loss_sum, (targets_n != IGNORE_INDEX).sum()  # pyright: ignore[reportReturnType]


def vocabulary_lm(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """`objectives.causal_lm` of a model that `tensor_parallel` cut."""
    given: Any = {k: v for k, v in batch.items() if k != "labels"}
    head: Any = model.lm_head
    logits_nv = head(model.encode(**given)).flatten(0, 1)
    first = collectives.place(head.group)[0] * logits_nv.shape[1]
    return vocabulary_cross_entropy(logits_nv, batch["labels"].flatten(), first, head.group)


def tensor_parallel(model: Transformer, group: Group = None) -> Transformer:
    """Leave this rank its part of a decoder, in place; train it with `vocabulary_lm`.

    All ranks begin with the same weights and read the same batch.

    Raises:
        LabError: heads, widths or the vocabulary do not divide among the ranks, or the model is no
            decoder without dropout.
    """
    config, size = model.config, collectives.place(group)[1]
    head = head_of(model)
    for name in ("num_heads", "kv_heads", "ffn_width", "vocab_size"):
        if getattr(config, name) % size:
            raise LabError(
                f"{name} {getattr(config, name)} does not divide among {size} ranks: choose a"
                f" multiple of {size}"
            )
    anything: Any = model
    anything.embedding = VocabularyRows(model.embedding, group)
    weight = anything.embedding.weight
    if not config.tied_embeddings:
        weight = nn.Parameter(own_part(head.weight, 0, group).clone())
    anything.lm_head = VocabularyHead(weight, group)
    for block in model.blocks:
        assert isinstance(block, Block)
        attention: Any = block.attention
        attention.qkv, attention.out = Column(attention.qkv, group), Row(attention.out, group)
        attention.num_heads //= size
        attention.num_kv_heads //= size
        ffn: Any = block.ffn
        ffn.up, ffn.down = Column(ffn.up, group), Row(ffn.down, group)
    return model


def whole_tensors(model: nn.Module, gradients: bool = False) -> dict[str, Tensor]:
    """All parameters of a cut model (or their gradients) by name, whole again on every rank."""
    found = {}
    for name, p in model.named_parameters():
        path, last = name.rsplit(".", 1)
        layer: Any = model.get_submodule(path)
        value = p.grad if gradients else p
        assert value is not None
        own = value.detach().clone()
        found[name] = layer.join(last, own) if hasattr(layer, "join") else own
    return found

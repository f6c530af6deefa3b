"""AdamW whose two moments take one byte a number: block-wise quantisation of optimizer state.

    state, fp32 ──> blocks of 256 ──> largest size of a block (fp32) ──> codes, one byte a number
    before an update: codes ──> fp32, a slice at a time ──> AdamW ──> codes

One scale for a whole tensor would let a single large entry round all others to zero; a scale for
each block confines the damage. Codes are spaced evenly in the *root* of the value, so small values
are finer than large ones:

    m = scale (c / 127)^2 sign(c),  c in -127 .. 127        √v = scale (c / 255)^2,  c in 0 .. 255

A second moment above 0 never becomes code 0: Adam divides by its root.

Legend: N entries of one parameter, M blocks, S = 256 entries of a block.

Sources: Dettmers et al. 2022, arXiv:2110.02861 (blocks; small tensors stay fp32; they space codes
by a dynamic tree, here the root does the same service in two operations).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError

BLOCK = 256
"""Entries that share a scale."""
SMALLEST = 4096
"""Parameters of fewer entries keep fp32 moments: they cost nothing and matter much."""
SLICE = 1024
"""Blocks that are in fp32 at a time: 262,144 entries, 1 MB for each moment, so caches hold them."""


class Quantised(NamedTuple):
    """Numbers as codes and scales: 1 + 4 / 256 bytes each."""

    codes_MS: Tensor
    """int8 if signed, else uint8; the last block is filled up with zeros."""
    scales_M: Tensor
    """fp32, the largest size in each block."""


def quantise(values_N: Tensor, signed: bool = True) -> Quantised:
    """Nearest codes, by the root, block by block.

    Args:
        values_N: any shape; read as one line.
        signed: -127 .. 127; otherwise values are 0 or more, codes 0 .. 255, and only 0 has code 0.

    Returns:
        Codes and scales.

    Raises:
        LabError: an unsigned value below 0.

    >>> quantise(torch.tensor([1.0, -0.25, 0.0])).codes_MS[0, :3].tolist()
    [127, -64, 0]
    """
    values_N = values_N.reshape(-1).float()
    blocks = -(-values_N.numel() // BLOCK)
    padded = values_N.new_zeros(blocks * BLOCK)
    padded[: values_N.numel()] = values_N
    if not signed and values_N.numel() and float(values_N.min()) < 0:
        raise LabError(f"value {float(values_N.min())} is below 0: quantise it with signed=True")
    codes, scales = _encode(padded.view(blocks, BLOCK), signed)
    return Quantised(codes, scales)


def dequantise(quantised: Quantised, count: int | None = None) -> Tensor:
    """What the codes stand for, fp32, as one line of `count` entries (None: whole blocks).

    >>> dequantise(quantise(torch.tensor([2.0, 0.5])), 2)
    tensor([2.0000, 0.5079])
    """
    values_N = _decode(quantised.codes_MS, quantised.scales_M).reshape(-1)
    return values_N[:count]


def _encode(values_MS: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    sizes_MS = values_MS.abs()
    scales_M = sizes_MS.amax(dim=1)
    sizes_MS.div_(scales_M.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).sqrt_()
    if signed:
        codes = sizes_MS.mul_(127).round_().copysign_(values_MS).to(torch.int8)
    else:
        codes = sizes_MS.mul_(255).round_()
        codes = codes.clamp_(min=1).mul_(values_MS > 0).to(torch.uint8)
    return codes, scales_M


def _decode(codes_MS: Tensor, scales_M: Tensor) -> Tensor:
    values = codes_MS.float()
    if codes_MS.dtype == torch.int8:
        return values.mul_(values.abs()).mul_((scales_M / 127**2).unsqueeze(1))
    return values.square_().mul_((scales_M / 255**2).unsqueeze(1))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with quantised moments: 2.03 bytes of state a parameter instead of 8.

    The update itself runs in fp32, slice by slice; only what waits for the next update is rounded.
    State and result are functions of the gradients alone: a resumed run continues to the bit.

    Args:
        groups: from `optim.parameter_groups`; parameters whole on each rank.
        lr, betas, eps, weight_decay: as in `updates.adamw_step`.

    Source: Dettmers et al. 2022, arXiv:2110.02861.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)

    def _step(self, p: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[p]
        small = p.numel() < SMALLEST
        if not state:
            state["step"] = torch.zeros(())
            if small:
                state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
            else:
                shape = (-(-p.numel() // BLOCK), BLOCK)
                state["m_codes"] = torch.zeros(shape, dtype=torch.int8, device=p.device)
                state["v_codes"] = torch.zeros(shape, dtype=torch.uint8, device=p.device)
                state["m_scales"] = torch.zeros(shape[0], device=p.device)
                state["v_scales"] = torch.zeros(shape[0], device=p.device)
        state["step"] += 1
        if small:
            _update(p, gradient, state["m"], state["v"], state["step"], group)
            return
        flat_N, gradient_N = p.view(-1), gradient.reshape(-1)
        for first in range(0, len(state["m_scales"]), SLICE):
            blocks = slice(first, first + SLICE)
            entries = slice(first * BLOCK, min((first + SLICE) * BLOCK, p.numel()))
            m_MS = _decode(state["m_codes"][blocks], state["m_scales"][blocks])
            v_MS = _decode(state["v_codes"][blocks], state["v_scales"][blocks]).square_()
            count = entries.stop - entries.start
            m_N, v_N = m_MS.view(-1)[:count], v_MS.view(-1)[:count]
            _update(flat_N[entries], gradient_N[entries], m_N, v_N, state["step"], group)
            for name, values_MS in (("m", m_MS), ("v", v_MS.sqrt_())):
                codes, scales = _encode(values_MS, signed=name == "m")
                state[f"{name}_codes"][blocks] = codes
                state[f"{name}_scales"][blocks] = scales


def _update(w: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, group: dict) -> None:
    """`updates.adamw_step` in place: w, m and v are views."""
    beta1, beta2 = group["betas"]
    g = g.to(m.dtype)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = v.sqrt().mul_((1 - beta2**step).rsqrt()).add_(group["eps"])
    w.mul_(1 - group["lr"] * group["weight_decay"])
    w.sub_((m / root).mul_(group["lr"] / (1 - beta1**step)))


def state_bytes(parameters: int) -> int:
    """Bytes of both moments of one parameter tensor.

    >>> state_bytes(50257 * 768) / (8 * 50257 * 768)
    0.25390625
    """
    if parameters < SMALLEST:
        return 8 * parameters
    blocks = -(-parameters // BLOCK)
    return 2 * blocks * (BLOCK + 4)


def optimizer_bytes(model: nn.Module) -> int:
    """Bytes of `AdamW8bit`'s moments for the trainable parameters of a model; tied ones once."""
    return sum(state_bytes(p.numel()) for p in model.parameters() if p.requires_grad)

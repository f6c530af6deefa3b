"""Where a token stands: fixed waves added to it, or rotations of its queries and keys.

    sinusoidal   table_TD is added to the embeddings           learned   a table that is trained
    rotary       each pair of a query's and a key's numbers turns by an angle of its position; their
                 product then depends on the distance between the two alone

Legend: T positions, D model width, K head width.

Sources: Vaswani et al. 2017, section 3.5 (sinusoidal); Su et al. 2021, eq. 34 (rotary).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError

Rotary = tuple[Tensor, Tensor]


def sinusoidal(length: int, d_model: int) -> Float[Tensor, "T D"]:
    """A fixed table of positions: pe[t, 2i] = sin(t / 10000^(2i/D)), pe[t, 2i+1] = cos(same).

    Args:
        length: T, positions 0 to T-1.
        d_model: D, even.

    Returns:
        table_TD in [-1, 1].

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(length, d_model, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(
    length: int, head_width: int, theta: float = 10_000.0
) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Cosines and signed sines of the angles t·theta^(-2i/K), for `rotate`.

    The first half of the sines carries the minus sign of the rotation, so that `rotate` needs one
    roll instead of two slices, a negation and a concatenation.

    Args:
        length: T, positions 0 to T-1.
        head_width: K, even.
        theta: Base of the wavelengths, > 1; a larger one keeps distant positions apart.

    Returns:
        (cos_TK, sin_TK).

    Source: Su et al. 2021, eq. 34, with Llama's pairing of dimension i with i + K/2.
    """
    angles = _angles(length, head_width, theta)
    sines = angles.sin()
    return angles.cos().repeat(1, 2), torch.cat((-sines, sines), dim=-1)


def rotate(
    x: Float[Tensor, "... K"], cos: Float[Tensor, "... K"], sin: Float[Tensor, "... K"]
) -> Float[Tensor, "... K"]:
    """Rotate each pair (x_i, x_{i+K/2}) by its position's angle: x·cos + roll(x, K/2)·sin.

    The scores q·k of two rotated vectors depend on their positions only through the distance.

    Args:
        x: Queries or keys.
        cos: From `rotary_table`, broadcastable to x.
        sin: From `rotary_table` (signed), broadcastable to x.

    Returns:
        The rotated x, same shape and dtype.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _angles(length: int, width: int, theta: float) -> Tensor:
    if width % 2:
        raise LabError(f"positions rotate pairs, so the width must be even, not {width}")
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float) / width)
    return torch.outer(torch.arange(length, dtype=torch.float), frequencies)

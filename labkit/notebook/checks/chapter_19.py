"""Checkers of chapter 19: compression."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("19.1", title="Round a matrix")
def rounded_rows(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for bits in (3, 4, 8):
        w = fresh.normal(5, 24)
        w[2] *= 10  # a row of large weights
        compare(
            torch.as_tensor(attempt(w.clone(), bits)),
            _on_grid(w, w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)),
            {
                "with one scale for the whole matrix: each row has its own": _on_grid(
                    w, w.abs().max() / (2 ** (bits - 1) - 1)
                ),
                "with a scale for each column: rows share one": _on_grid(
                    w, w.abs().amax(0, keepdim=True) / (2 ** (bits - 1) - 1)
                ),
                f"with {2 ** (bits - 1)} steps above 0: there are {2 ** (bits - 1) - 1}": _on_grid(
                    w, w.abs().amax(1, keepdim=True) / 2 ** (bits - 1)
                ),
                "rounded towards smaller codes: take the nearest": (
                    lambda w=w, bits=bits: _cut(w, bits, torch.floor)
                ),
                "rounded towards 0: take the nearest": (
                    lambda w=w, bits=bits: _cut(w, bits, torch.trunc)
                ),
                "codes: multiply them by their scale": (
                    (w / (w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1))).round()
                ),
                "on a grid from the smallest to the largest weight: this one is symmetric": (
                    lambda w=w, bits=bits: _affine(w, bits)
                ),
            },
            what="Your matrix",
            tolerance=1e-5,
        )
    return "Right: no weight moved by more than half a step of its row."


def _on_grid(w: Tensor, scale: Tensor) -> Tensor:
    return (w / scale).round() * scale


def _cut(w: Tensor, bits: int, how: Callable[[Tensor], Tensor]) -> Tensor:
    scale = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return how(w / scale) * scale


def _affine(w: Tensor, bits: int) -> Tensor:
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return ((w - low) / scale).round() * scale + low


@exercise("19.2", title="What a model weighs")
def model_bytes(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for bits, group, affine in ((4, 32, False), (4, 64, True), (8, 128, False), (2, 16, True)):
        n, rest = 1024 * fresh.integer(3, 50), fresh.integer(100, 5000)
        scales = n // group
        right = n * bits / 8 + scales * (4 if affine else 2) + 4 * rest
        answer = attempt(n, bits, group, affine, rest)
        wrong = {
            "without the scales: they are part of the file": n * bits / 8 + 4 * rest,
            "without the rest, which is fp32": right - 4 * rest,
            "in bits: a byte has eight": 8 * right,
            "with one scale for each weight: a group shares one": (
                n * bits / 8 + n * (4 if affine else 2) + 4 * rest
            ),
        }
        if affine:
            wrong["without the minima of an affine grid"] = right - 2 * scales
            wrong["with scales and minima in fp32: they have 16 bits"] = right + 4 * scales
        else:
            wrong["with 32 bits a group: one scale of 16 bits, no minimum"] = right + 2 * scales
        compare(
            torch.as_tensor(float(answer)),
            torch.as_tensor(float(right)),
            {name: torch.as_tensor(float(value)) for name, value in wrong.items()},
            what=f"Bytes at {bits} bits in groups of {group}",
            tolerance=1e-6,
        )
    return "Right: every bit that is stored is counted."


@exercise("19.3", title="A block of Q4_0")
def q4_0_block(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        d = np.float16(float(fresh.uniform(1, low=0.01, high=0.2)))
        codes = np.array([fresh.integer(0, 16) for _ in range(32)], dtype=np.uint8)
        codes[:2] = 0, 15  # both ends
        packed = codes[:16] | (codes[16:] << 4)
        block = np.concatenate([np.array([d]).view(np.uint8), packed]).astype(np.uint8)
        step = float(d)
        centred = codes.astype(float) - 8
        neighbours = np.stack([codes[:16], codes[16:]], 1).reshape(-1).astype(float) - 8
        turned = np.concatenate([codes[16:], codes[:16]]).astype(float) - 8
        answer = attempt(block.copy())
        compare(
            torch.as_tensor(np.asarray(answer, dtype=float)),
            torch.as_tensor(step * centred),
            {
                "without the 8: code 8 is zero": torch.as_tensor(step * (centred + 8)),
                "with the halves of a byte as neighbours: low halves come first": torch.as_tensor(
                    step * neighbours
                ),
                "with the high halves first": torch.as_tensor(step * turned),
                "without the step": torch.as_tensor(centred),
                "wrapped around below 0: make codes signed before you take 8 away": (
                    torch.as_tensor(step * (codes - np.uint8(8)).astype(float))
                ),
            },
            what="Your block",
            tolerance=1e-4,  # a step kept in fp16
        )
    return "Right: 4.5 bits a number, and no minimum."


@exercise("19.4", title="Take an error back")
def two_columns(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        w, x = fresh.normal(40, 2), fresh.normal(40, 2)
        x[:, 1] = 1.6 * x[:, 0] + 0.5 * x[:, 1]
        H, step = x.T @ x / len(x), 0.4
        first = (w[:, 0] / step).round() * step
        error = w[:, 0] - first

        def second(
            correction: Tensor, w: Tensor = w, first: Tensor = first, step: float = step
        ) -> Tensor:
            return torch.stack([first, ((w[:, 1] + correction) / step).round() * step], 1)

        answer = torch.as_tensor(attempt(w.clone(), H.clone(), step))
        require(
            answer.shape == w.shape,
            f"Return both columns, {tuple(w.shape)}, not {tuple(answer.shape)}.",
        )
        compare(
            answer,
            second(error * H[0, 1] / H[1, 1]),
            {
                "rounded to the nearest in both columns: hand the first error on": second(
                    torch.zeros_like(error)
                ),
                "with the error's sign turned: w₁ − q₁": second(-error * H[0, 1] / H[1, 1]),
                "divided by H₁₁: the second column must make up for it, so by H₂₂": second(
                    error * H[0, 1] / H[0, 0]
                ),
                "with the whole error: as far as the inputs go together, H₁₂ / H₂₂": second(error),
                "not rounded in the second column": torch.stack(
                    [first, w[:, 1] + error * H[0, 1] / H[1, 1]], 1
                ),
            },
            what="Your columns",
            tolerance=1e-5,
        )
    return "Right: further from the weights, nearer to the outputs."


@exercise("19.5", title="2:4 by size times input")
def wanda_mask(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        w, x = fresh.normal(8, 16), fresh.normal(50, 16)
        x *= fresh.uniform(16, low=0.1, high=5.0)
        H = x.T @ x / len(x)
        by = w.abs() * H.diagonal().sqrt()
        answer = torch.as_tensor(attempt(w.clone(), H.clone()))
        require(
            answer.shape == w.shape,
            f"The mask has the shape of the weights, {tuple(w.shape)}, not {tuple(answer.shape)}.",
        )
        compare(
            answer.bool().double(),
            _fours(by),
            {
                "by the weights alone: their inputs count, too": _fours(w.abs()),
                "by signed weights: take their size": _fours(w * H.diagonal().sqrt()),
                "True where a weight goes: True is for those that stay": 1 - _fours(by),
                "the larger half of each row: two of every four neighbours": _half(by),
                "in fours down the columns: neighbours of a row": _fours(by.T).T,
                "by the mean square of the input: take its root": _fours(w.abs() * H.diagonal()),
                "by whole rows of H: the diagonal holds the mean squares": _fours(
                    w.abs() * H.sum(0).abs().sqrt()
                ),
            },
            what="Your mask",
        )
    return "Right: two stay in every four, and large inputs count."


def _fours(sizes: Tensor) -> Tensor:
    fours = sizes.reshape(-1, 4)
    return torch.zeros_like(fours).scatter(1, fours.topk(2, dim=1).indices, 1.0).view(sizes.shape)


def _half(sizes: Tensor) -> Tensor:
    largest = sizes.topk(sizes.shape[1] // 2, dim=1).indices
    return torch.zeros_like(sizes).scatter(1, largest, 1.0)

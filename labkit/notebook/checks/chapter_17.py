"""Checkers of chapter 17, memory and precision."""

import math

import torch

from labkit.accounting.formats import round_to, spacing
from labkit.notebook.exercises import Fresh, Watched, Wrong, compare, exercise, require


@exercise("17.1", title="rounding to bf16")
def round_to_bf16(attempt, fresh: Fresh) -> None:
    values = (fresh.normal(40) * 2.0 ** fresh.integers(-60, 60, 40)).tolist()
    ties = [1 + 1 / 256, 1 + 3 / 256, -(1 + 1 / 256), 256.0 + 1, 256.0 + 3]
    expected = [round_to(x, "bf16") for x in values + ties]

    def each(function) -> list[float]:
        return [function(x) for x in values + ties]

    def rounded_away(x: float) -> float:
        step = spacing(x, "bf16")
        return math.copysign(math.floor(abs(x) / step + 0.5) * step, x)

    got = [float(attempt(x)) for x in values + ties]

    def as_tensor(numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    scale = as_tensor([spacing(x, "bf16") for x in values + ties])
    compare(
        as_tensor(got) / scale,
        as_tensor(expected) / scale,
        {
            "cut off, not rounded: take the nearest number, which may be the larger one": (
                as_tensor(each(lambda x: math.trunc(x / spacing(x, "bf16")) * spacing(x, "bf16")))
                / scale
            ),
            "right except for ties, which must go to the even mantissa, not away from 0": (
                as_tensor(each(rounded_away)) / scale
            ),
            "rounded to 6 mantissa bits: frexp's exponent is one larger than that of 1.mantissa": (
                as_tensor(
                    each(lambda x: round(x / spacing(x, "bf16") / 2) * spacing(x, "bf16") * 2)
                )
                / scale
            ),
            "rounded to fp16: bf16 has 7 mantissa bits, not 10": (
                as_tensor(
                    each(lambda x: round(x / spacing(x, "bf16") * 8) * spacing(x, "bf16") / 8)
                )
                / scale
            ),
        },
    )
    require(float(attempt(0.0)) == 0, "0 must stay 0; it has no exponent of its own.")
    with Watched() as seen:
        attempt(math.pi)
    require(
        not any(it.dtype == torch.bfloat16 for it in seen.made),
        "The numbers are right, but a bf16 tensor made them: use arithmetic alone.",
    )


@exercise("17.2", title="the largest loss scale")
def largest_loss_scale(attempt, fresh: Fresh) -> None:
    sizes = [sign * 3e-4 * (1 + fresh.integer(0, 1000) / 500) for sign in (1.0, -1.0)]
    for largest in (*sizes, 2.0**-10):  # at a power of two 65,504 and 65,536 differ
        gradients = fresh.normal(50, scale=1e-5)
        gradients[fresh.integer(0, 50)] = largest
        right = 2.0 ** math.floor(math.log2(65504 / float(gradients.abs().max())))
        smallest = float(gradients.abs()[gradients != 0].min())
        up = 2.0 ** math.ceil(math.log2(65504 / float(gradients.abs().max())))
        compare(
            float(attempt(gradients)),
            right,
            {
                "measured by 65,536: fp16 ends at 65,504, so the largest gradient overflows": (
                    2.0 ** math.floor(math.log2(65536 / float(gradients.abs().max())))
                ),
                "rounded up: the largest gradient overflows; round the exponent down": up,
                "not a power of two: any other factor changes the mantissas": (
                    65504 / float(gradients.abs().max())
                ),
                "chosen by the smallest gradient: the largest one overflows": (
                    2.0 ** math.floor(math.log2(65504 / smallest))
                ),
                "chosen by the largest gradient with its sign: a negative one overflows as well": (
                    2.0 ** math.floor(math.log2(65504 / float(gradients.max().abs())))
                ),
                "measured by the mean size: single gradients are much larger": (
                    2.0 ** math.floor(math.log2(65504 / float(gradients.abs().mean())))
                ),
            },
        )


def _coded(rows, scale, top: int = 127, how=torch.round) -> torch.Tensor:
    return (how(rows / scale * top) / top * scale).flatten()


@exercise("17.3", title="blocks of 8 bits")
def through_8_bits(attempt, fresh: Fresh) -> None:
    for block, count in ((8, 5), (4, 3)):
        spread = fresh.uniform(count, low=0.01, high=9.0).repeat_interleave(block)
        values = fresh.normal(count * block) * spread
        values[1] = -20.0
        rows, columns = values.view(-1, block), values.view(block, -1)
        largest = rows.abs().amax(1, keepdim=True)
        got = attempt(values.clone(), block)
        if isinstance(got, torch.Tensor) and got.shape == rows.shape:
            raise Wrong("The result has one row a block: flatten it to the shape of the input.")
        compare(
            got,
            _coded(rows, largest),
            {
                "quantised with one scale for all: give each block its own": _coded(
                    rows, rows.abs().max()
                ),
                "cut off, not rounded": _coded(rows, largest, how=torch.trunc),
                "scaled by the largest value, not the largest size: a negative one counts, too": (
                    _coded(rows, rows.amax(1, keepdim=True))
                ),
                "scaled along the wrong axis: a block is a run of neighbours": _coded(
                    columns, columns.abs().amax(0, keepdim=True)
                ),
                "made of codes up to 128, which do not fit into 8 signed bits": _coded(
                    rows, largest, 128
                ),
                "still the codes: multiply by the scale again": (
                    torch.round(rows / largest * 127).flatten()
                ),
            },
        )
    zeros = attempt(torch.zeros(8, dtype=torch.float64), 4)
    require(
        isinstance(zeros, torch.Tensor) and bool((zeros == 0).all()),
        "A block of zeros must stay zeros: its largest size is 0, and 0 / 0 is not a number.",
    )


@exercise("17.4", title="two moments under a recipe")
def two_moments(attempt, fresh: Fresh) -> None:
    recipes = ((1, False), (4, False), (1, True), (2, False))
    for micro_batches, early in recipes:
        VD = 1000 + fresh.integer(0, 900)
        P, kept = 5 * VD + fresh.integer(0, 900), 30 * VD + fresh.integer(0, 900)
        got = attempt(P, VD, kept, micro_batches, early)
        require(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return two numbers: the bytes in the loss and at the end of the backward pass.",
        )
        earlier = 4 * P if micro_batches > 1 else 0
        in_loss, at_end = 12 * P + kept + earlier, (12 * P if early else 16 * P) + 8 * VD
        at_end += 4 * VD if early else 0

        def pair(loss: float, end: float) -> torch.Tensor:
            return torch.tensor([loss, end], dtype=torch.float64)

        feedback = {
            "holding gradients in the loss of a single micro-batch: they come after it": pair(
                16 * P + kept, at_end
            ),
            "counting activations at the end of the backward pass: it has used them up": pair(
                in_loss, at_end + kept
            ),
            "counting the tied gradient once: two summands and their sum are alive together": pair(
                in_loss, at_end - 8 * VD
            ),
            "counting one summand of the tied gradient: there are two, and their sum": pair(
                in_loss, at_end - 4 * VD
            ),
        }
        if earlier:
            feedback["dropping the gradients of the earlier micro-batches from the loss"] = pair(
                in_loss - earlier, at_end
            )
            each = pair(12 * P + kept + 4 * P * (micro_batches - 1), at_end)
            feedback["keeping a gradient for each micro-batch: they add up in one"] = each
        if early:
            feedback["freeing nothing: a step in the backward pass uses gradients up"] = pair(
                in_loss, 16 * P + 8 * VD
            )
            feedback["freeing the tied matrix's gradient too early: it is the last one"] = pair(
                in_loss, 12 * P
            )
        compare(torch.tensor([float(x) for x in got]).double(), pair(in_loss, at_end), feedback)

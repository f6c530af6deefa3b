"""Checkers of chapter 17, memory and precision."""

import math

import torch

from labkit.accounting.formats import round_to, spacing
from labkit.notebook.exercises import Fresh, Watched, Wrong, compare, exercise, require


@exercise("17.1", title="bytes of the states")
def state_bytes(attempt, fresh: Fresh) -> None:
    for _ in range(2):
        total = 1000 + fresh.integer(0, 1000)
        trainable = 10 + fresh.integer(0, 500)
        got = attempt(total, trainable)
        require(
            isinstance(got, (tuple, list)) and len(got) == 3,
            "Return three numbers: the bytes of the weights, the gradients and the optimizer.",
        )
        compare(
            torch.tensor([float(x) for x in got]).double(),
            torch.tensor([4.0 * total, 4.0 * trainable, 8.0 * trainable]).double(),
            {
                "counting gradients and moments of frozen parameters too: they have none": (
                    torch.tensor([4.0 * total, 4.0 * total, 8.0 * total]).double()
                ),
                "counting the trainable weights only: a frozen weight is in memory, too": (
                    torch.tensor([4.0 * trainable, 4.0 * trainable, 8.0 * trainable]).double()
                ),
                "counting one moment: Adam has two, of 4 bytes each": (
                    torch.tensor([4.0 * total, 4.0 * trainable, 4.0 * trainable]).double()
                ),
                "counting weights in 2 bytes: under autocast they stay fp32, copies come on top": (
                    torch.tensor([2.0 * total, 4.0 * trainable, 8.0 * trainable]).double()
                ),
                "counting numbers, not bytes: fp32 takes 4 each": (
                    torch.tensor([1.0 * total, 1.0 * trainable, 2.0 * trainable]).double()
                ),
            },
        )


@exercise("17.2", title="rounding to bf16")
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


@exercise("17.3", title="the largest loss scale")
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


@exercise("17.4", title="blocks of 8 bits")
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


@exercise("17.5", title="the largest batch that fits")
def largest_batch(attempt, fresh: Fresh) -> None:
    for trial in range(6):
        limit = 4096 if trial else 1
        fixed, each = 1000 + fresh.integer(0, 500), 7 + fresh.integer(0, 20)
        answer = (limit, 0, 1, 700 + fresh.integer(0, 900), 17, limit)[trial]
        room = fixed + each * answer + (0 if trial in (3, 4) else each // 2)
        if answer == 0:
            room = fixed
        asked: list[int] = []

        def peak(batch, fixed=fixed, each=each, asked=asked):
            asked.append(batch)
            if len(asked) > 60:
                raise Wrong(
                    "More than 60 predictions for one answer: halve the interval instead of trying "
                    "every batch."
                )
            return fixed + each * batch

        got = attempt(peak, room, limit)
        if got == 1 and answer == 0:
            raise Wrong("Not even a batch of 1 fits, so the answer is 0.")
        if isinstance(got, int) and got > limit:
            raise Wrong(f"The answer {got} is beyond the limit of {limit}.")
        compare(
            got,
            answer,
            {
                "one too many: that batch does not fit": answer + 1,
                "one too few: what needs exactly the capacity still fits, and so may the limit": (
                    answer - 1
                ),
            },
        )
        require(len(asked) <= 30, f"It took {len(asked)} predictions: halve the interval, 13 do.")

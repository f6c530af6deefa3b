"""Checkers of chapter 18: distributed training."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require


def _states(P: float, dp: int, tp: int, pp: int, from_stage: tuple[int, int, int]) -> float:
    """2 + 2 + 12 bytes, each divided by dp from a stage on (`from_stage` minus the stage: <= 0)."""
    own = P / (tp * pp)
    parts = zip((2, 2, 12), from_stage, strict=True)
    return sum(size * own / (dp if left <= 0 else 1) for size, left in parts)


@exercise("18.1", title="What a GPU holds")
def bytes_of_states(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for zero, dp, tp, pp in ((0, 4, 2, 4), (1, 8, 2, 1), (2, 4, 1, 3), (3, 16, 8, 2)):
        P = 1_000_000 * fresh.integer(1, 900)
        right = _states(P, dp, tp, pp, (3 - zero, 2 - zero, 1 - zero))
        compare(
            attempt(P, dp, tp, pp, zero),
            right,
            {
                "a share of all GPUs whatever the stage: stage 0 divides nothing among the dp "
                "ranks, 1 the optimizer, 2 gradients too, 3 weights too": 16 * P / (dp * tp * pp),
                "without tp and pp: both cut everything that a GPU holds": right * tp * pp,
                "cut by tp, but not by pp": right * pp,
                "divided in the wrong order: the optimizer first, weights last": _states(
                    P, dp, tp, pp, (1 - zero, 2 - zero, 3 - zero)
                ),
                "one stage too far": _states(P, dp, tp, pp, (2 - zero, 1 - zero, -zero)),
                "without the copy in fp32: the optimizer has 12 bytes": (
                    right - 4 * P / (tp * pp) / (dp if zero >= 1 else 1)
                ),
            },
            what=f"The bytes for dp {dp}, tp {tp}, pp {pp}, ZeRO {zero}",
        )
    return "Right: these bytes, and then the activations."


@exercise("18.2", title="Bytes of an update with micro-batches")
def sent_by_a_rank(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for stage in range(4):
        for N, m in ((4, 3), (2, 1), (8, 5)):
            S = 1000.0 * fresh.integer(1, 50)
            share = (N - 1) / N * S
            halves = {0: 2, 1: 2, 2: m + 1, 3: 3 * m}[stage]
            mistakes = {
                "for all ranks together: one rank sends an N-th of it": halves * share * N,
                "without the (N - 1)/N: a rank keeps its own chunk and sends the others": (
                    halves * S
                ),
                "that of m exchanges: stages 0 and 1 wait for the last micro-batch": (
                    2 * m * share if stage < 2 else None
                ),
                "2 m: in stage 2 the weights come back once an update": (
                    2 * m * share if stage == 2 else None
                ),
                "the same as in stage 1: in stage 2 every micro-batch's gradient leaves": (
                    2 * share if stage == 2 else None
                ),
                "once an update: in stage 3 every micro-batch gathers and scatters": (
                    3 * share if stage == 3 else None
                ),
                "2 m: in stage 3 weights are gathered forward and again backward": (
                    2 * m * share if stage == 3 else None
                ),
                "2 m + 1: in stage 3 every micro-batch's gradient leaves, too": (
                    (2 * m + 1) * share if stage == 3 else None
                ),
            }
            compare(
                attempt(stage, N, S, m),
                halves * share,
                {said: value for said, value in mistakes.items() if value is not None},
                what=f"The bytes of stage {stage} with N = {N} and m = {m}",
            )
    return "Right: the more micro-batches, the dearer are stages 2 and 3."


def _merged(a_TK: Tensor, La_T: Tensor, b_TK: Tensor, Lb_T: Tensor) -> Tensor:
    share_T = (La_T - torch.logaddexp(La_T, Lb_T)).exp()[:, None]
    return share_T * a_TK + (1 - share_T) * b_TK


@exercise("18.3", title="Two answers as one")
def merged(attempt: Callable[..., Any], fresh: Fresh) -> str:
    q, k, v = fresh.normal(5, 4), fresh.normal(7, 4), fresh.normal(7, 4)
    for shift, unseen in ((0.0, False), (800.0, False), (0.0, True)):
        s_TS = q @ k.T + shift
        pieces = []
        for part in (slice(0, 3), slice(3, 7)):
            L_T = s_TS[:, part].logsumexp(1)
            out_TK = (s_TS[:, part] - L_T[:, None]).exp() @ v[part]
            pieces += [out_TK, L_T]
        if unseen:
            pieces[2][0], pieces[3][0] = 0.0, -math.inf
            pieces[0][1], pieces[1][1] = 0.0, -math.inf
        a, La, b, Lb = pieces
        got = torch.as_tensor(attempt(a.clone(), La.clone(), b.clone(), Lb.clone()))
        require(
            not unseen or bool(torch.isfinite(got).all()),
            "Where a rank saw no key, the result is not finite: its share is 0, and the other's 1.",
        )
        require(
            not shift or bool(torch.isfinite(got).all()),
            "With large scores the result is not finite: exponentiate differences of L, not L.",
        )
        compare(
            got,
            _merged(a, La, b, Lb),
            {
                "the plain mean: weigh each output by its share of all exponentials": ((a + b) / 2),
                "weighed the wrong way round": _merged(b, La, a, Lb),
                "a sum of both: the shares must add up to 1": a + b,
                "weighed by L itself: L is a logarithm": (
                    (La[:, None] * a + Lb[:, None] * b) / (La + Lb)[:, None]
                ),
            },
            what="The output",
            tolerance=1e-7,
        )
    return "Right: ranks can attend in any order and merge afterwards."


@exercise("18.4", title="Enough micro-batches")
def fewest_micro_batches(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def fewest(S: int, v: float, b: float, plain: bool = False) -> int:
        idle = (S - 1) / v
        # b (m + idle) = idle;  the plain ratio idle / m is another question
        exact = idle / b if plain else idle * (1 - b) / b
        return max(1, math.ceil(exact - 1e-9))

    for S, v, b in ((4, 1, 0.2), (8, 2, 0.1), (8, 1, 0.5), (16, 4, 0.05), (2, 4, 0.9), (1, 1, 0.1)):
        right = fewest(S, v, b)
        got = attempt(S, v, b)
        require(
            isinstance(got, int) or float(got) == int(got),
            f"{got!r} micro-batches cannot be: round up.",
        )
        require(int(got) > 0, "There is no batch without a micro-batch: at least 1.")
        compare(
            int(got),
            right,
            {
                "idle over busy: the share is idle over idle and busy": fewest(S, v, b, True),
                "one too few: round up": right - 1,
                "one too many: a share of exactly b is allowed": right + 1,
                "without interleaving: divide S - 1 by v": fewest(S, 1, b),
                "counted with S instead of S - 1": fewest(S + 1, v, b),
            },
            what=f"The number for S = {S}, v = {v}, b = {b}",
        )
    return "Right: twice the stages, about twice the micro-batches."

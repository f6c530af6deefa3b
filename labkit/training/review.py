"""A run read from its folder, finished or still running: what its curves say, in sentences.

    config.json   ──> steps, schedule, vocabulary ─┐
    metrics.jsonl ──> losses, rates, speeds       ─┴─> review ──> remarks, each with what to do

Nothing but these two files is read, so it costs nothing, and it can say nothing about weights and
gradients: for those hang `diagnostics.Diagnostics` into the run.
"""

import json
import math
from pathlib import Path
from statistics import median, stdev
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.optim.schedule import learning_rate
from labkit.training.symptoms import ABOVE, BELOW

#: A spike stands so many robust standard deviations, and so many nats, above the updates before it.
SPIKE, SPIKE_NATS = 8.0, 0.3
#: Updates that say what is usual before a spike.
PAST = 20
#: Validation counts as rising, and speed as falling, beyond these shares.
RISE, SLOW = 0.02, 0.6


class Remark(NamedTuple):
    """One finding about a run."""

    name: str
    """`progress`, `start`, `numbers`, `loss`, `spikes`, `validation`, `speed` or `rate`."""
    says: str
    """The value and what is usual."""
    remedy: str = ""
    """What to do about it; empty where nothing is wrong."""


def review(folder: str | Path) -> list[Remark]:
    """Read the run in a folder.

    Args:
        folder: what a command or `train` wrote: config.json, metrics.jsonl.

    Returns:
        A remark for each thing looked at; those with a remedy are what to mend.

    Raises:
        LabError: the folder holds no run, or one that has made no update.
    """
    config, rows, damaged = _read(Path(folder))
    last = rows[-1]
    done = last["step"] >= last["total_steps"]
    remarks = [
        Remark(
            "progress",
            f"update {last['step']:,} of {last['total_steps']:,}"
            + ("" if done else f", {last['remaining']:,.0f} s to go if it still runs"),
        )
    ]
    if damaged:
        remarks.append(
            Remark("numbers", f"{damaged} lines of metrics.jsonl are damaged", "check the disk")
        )
    bad = [row["step"] for row in rows if not math.isfinite(row["loss"] + row["grad_norm"])]
    if bad:
        remarks.append(
            Remark(
                "numbers",
                f"loss or gradient of {len(bad)} updates is not finite, first at {bad[0]}",
                "lower the learning rate, or leave fp16 for bf16 or fp32",
            )
        )
        rows = [row for row in rows if row["step"] not in set(bad)]
    if rows:
        remarks += [_start(config, rows), _loss(rows), _spikes(rows), _speed(rows)]
        remarks += [_validation(rows), _rate(config, rows)]
    return [remark for remark in remarks if remark.says]


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder} holds no run ({error}): give the folder that --out of the run named"
        ) from error
    rows, damaged = [], 0
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            damaged += number < len(lines) - 1  # the last one may be half written
    if not rows:
        raise LabError(f"the run in {folder} has made 0 updates yet: wait for the first")
    return config, rows, damaged


def _start(config: dict[str, Any], rows: list[dict[str, Any]]) -> Remark:
    shape, options = config.get("model"), config.get("options", {})
    size = shape.get("vocab_size") if isinstance(shape, dict) else None
    if rows[0]["step"] != 1 or not size or options.get("init") is not None:
        return Remark("start", "")
    loss, uniform = rows[0]["loss"], math.log(size)
    says = f"first loss {loss:.2f} nats, log V = {uniform:.2f}"
    if loss < uniform - BELOW:
        return Remark(
            "start", says, "too good for random weights: check the denominator and the targets"
        )
    if loss > uniform + ABOVE:
        return Remark("start", says, "logits begin too large: begin with smaller weights")
    return Remark("start", says)


def _loss(rows: list[dict[str, Any]]) -> Remark:
    losses = [row["loss"] for row in rows]
    few = max(1, len(losses) // 10)
    first, last = losses[:few], losses[-few:]
    says = f"from {_mean(first):.3f} to {_mean(last):.3f} nats (means of {few} updates)"
    if len(losses) < 20:
        return Remark("loss", says)
    noise = 2 * math.hypot(_error(first), _error(last))
    if _mean(last) > _mean(first) - noise:
        return Remark(
            "loss", f"{says}: not lower",
            "nothing is learned: overfit one batch, see which tensors get no gradient",
        )  # fmt: skip
    quarter = len(losses) // 4
    third, fourth = losses[-2 * quarter : -quarter], losses[-quarter:]
    moved, noise = _mean(third) - _mean(fourth), 2 * math.hypot(_error(third), _error(fourth))
    if quarter >= 10 and moved < noise and moved < 0.01 * (_mean(first) - _mean(last)):
        return Remark("loss", f"{says}; flat over the last half ({moved:+.4f})", "stop, or decay")
    return Remark("loss", says)


def _spikes(rows: list[dict[str, Any]]) -> Remark:
    losses, found = [row["loss"] for row in rows], []
    for i in range(PAST, len(losses)):
        past = losses[i - PAST : i]
        usual = median(past)
        spread = 1.4826 * median(abs(loss - usual) for loss in past)
        if losses[i] - usual > max(SPIKE * spread, SPIKE_NATS):
            found.append((losses[i] - usual, i))
    if not found:
        return Remark("spikes", f"none above {SPIKE_NATS} nats" if len(losses) > PAST else "")
    height, i = max(found)
    return Remark(
        "spikes",
        f"{len(found)} updates stand out, the highest by {height:.2f} nats at update "
        f"{rows[i]['step']} (gradient norm {rows[i]['grad_norm']:.2g})",
        "look at the examples of that update; lower the rate, or grad_clip",
    )


def _speed(rows: list[dict[str, Any]]) -> Remark:
    rates = [row["tokens_per_second"] for row in rows]
    if len(rates) < 20:
        return Remark("speed", "")
    quarter = len(rates) // 4
    early, late = median(rates[: 2 * quarter]), median(rates[-quarter:])
    says = f"{late:,.0f} tokens/s lately, {early:,.0f} in the first half"
    if late < SLOW * early:
        return Remark("speed", says, "look for other programs, memory that grows, or longer texts")
    return Remark("speed", says)


def _validation(rows: list[dict[str, Any]]) -> Remark:
    seen = [(r["step"], r["validation"]["loss"]) for r in rows if "loss" in (r["validation"] or {})]
    if len(seen) < 2:
        return Remark("validation", "")
    best_step, best = min(seen, key=lambda pair: pair[1])
    last_step, last = seen[-1]
    says = f"best {best:.3f} at update {best_step}, last {last:.3f} at {last_step}"
    after = [loss for step, loss in seen if step > best_step]
    if len(after) >= 2 and last > best * (1 + RISE):
        return Remark(
            "validation", f"{says}: it rises",
            "stop at the best (patience, restore_best), or give more data or more dropout",
        )  # fmt: skip
    return Remark("validation", says)


def _rate(config: dict[str, Any], rows: list[dict[str, Any]]) -> Remark:
    train = config.get("train")
    if not isinstance(train, dict):
        return Remark("rate", "")
    for row in rows:
        planned = learning_rate(
            row["step"] - 1,
            peak=train["learning_rate"],
            warmup_steps=train["warmup_steps"],
            total_steps=row["total_steps"],
            minimum_ratio=train["min_learning_rate_ratio"],
            schedule=train["schedule"],
        )
        if not math.isclose(row["learning_rate"], planned, rel_tol=1e-6):
            return Remark(
                "rate",
                f"update {row['step']} used {row['learning_rate']:.2e}, its schedule says "
                f"{planned:.2e}",
                "was the run resumed with other settings, or the rate set by hand?",
            )
    peak, used = train["learning_rate"], max(row["learning_rate"] for row in rows)
    says = f"{train['schedule']}, highest so far {used:.2e} of {peak:.2e}"
    if train["warmup_steps"] > rows[-1]["total_steps"] / 2:
        return Remark(
            "rate", f"{says}; warm-up takes {train['warmup_steps']} of {rows[-1]['total_steps']}",
            "shorten warmup_steps: a twentieth of the run is usual",
        )  # fmt: skip
    return Remark("rate", says)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _error(values: list[float]) -> float:
    """Standard error of the mean."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0

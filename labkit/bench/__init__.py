"""What the machine and the package reach: contestants side by side, medians only.

    round 1: labkit | Trainer | labkit fp32 | plain loop | labkit compiled
    round 2: the same again ...                -> median seconds -> tokens or examples per second

    pretraining   tokens per second, share of the machine's own matmul rate
    finetuning    examples per second on articles of natural length
    generation    new tokens per second with a cache
    memory        peak and time of an update at GPT-2's size, a process for each contestant
    llm           the same of a real LLM, SmolLM2
    overhead      what importing, loading batches and live curves cost
    quality       bits per byte after equal minutes of training (only when asked for)

Timings of two programs are comparable only when taken side by side: clocks drift and machines are
shared. So each round runs every contestant for a short while, all on the same weights and data. A
rival runs as it comes and at its best settings; the ratios are to the fastest it can do.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from labkit import runtime
from labkit.batches import Batches
from labkit.bench import finetuning, generation, llm, memory, pretraining, quality
from labkit.bench.alone import measure
from labkit.errors import LabError
from labkit.models import counts
from labkit.objectives import tasks as objectives
from labkit.training.loop import train
from labkit.training.run_folder import TrainConfig


@dataclass(frozen=True)
class Sizes:
    """One benchmark's problems."""

    pretraining: pretraining.Sizes
    finetuning: finetuning.Sizes
    new_tokens: int
    """Tokens that generation writes after each prompt."""
    rounds: int
    """How often everything is timed."""
    smaller_memory: bool = False
    """Measure memory with a small model and batch instead of GPT-2's."""
    recipes: tuple[quality.Recipe, ...] = quality.LADDER
    """What is trained for equal minutes."""
    seconds: float = 240
    """Of training for each recipe."""
    compiled: bool = True
    """Also time both under torch.compile (needs a C++ compiler)."""


FULL = Sizes(pretraining.FULL, finetuning.FULL, new_tokens=128, rounds=3)
QUICK = Sizes(
    pretraining.QUICK,
    finetuning.QUICK,
    new_tokens=16,
    rounds=2,
    smaller_memory=True,
    recipes=tuple(quality.smaller(recipe) for recipe in (quality.RIVAL, quality.OURS)),
    seconds=2,
    compiled=False,
)


@dataclass
class Report:
    """All figures of one run."""

    machine: dict[str, Any]
    model: dict[str, Any]
    """Of pretraining and generation."""
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """Pretraining: median over all timed updates, by contestant."""
    flop_utilisation: dict[str, float] = field(default_factory=dict)
    """Model FLOP/s over the measured bf16 (or fp32) matmul rate, 0 to 1."""
    examples_per_second: dict[str, float] = field(default_factory=dict)
    """Full fine-tuning: median over passes."""
    padding: dict[str, float] = field(default_factory=dict)
    """Share of the positions computed in fine-tuning that hold no token."""
    generated_per_second: dict[str, float] = field(default_factory=dict)
    """New tokens per second over all prompts of the batch."""
    peak_gb: dict[str, float] = field(default_factory=dict)
    """Largest memory of a process that fine-tunes a model of GPT-2's size, 10^9 bytes."""
    update_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of one such update."""
    llm: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each contestant that updates SmolLM2: `peak_gb` and `seconds`."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Ratio of medians."""
    import_seconds: dict[str, float] = field(default_factory=dict)
    live_plotting_share: float = float("nan")
    """Drawing time / training time with a live curve."""
    loading_share: float = float("nan")
    """Time to make the batches / time of the updates, in pretraining."""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    """`quality.Outcome` of each recipe."""


def _interleaved(
    contestants: dict[str, Callable[[], list[float]]],
    rounds: int,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Median of what each contestant returned over all rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            seconds[name] += contestant()
        between()
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _fastest(speed: dict[str, float], who: str) -> str:
    """The contestant of that name, in whatever settings, that was fastest in this run."""
    return max((name for name in speed if name.startswith(who)), key=speed.__getitem__)


def _ratios(
    what: str, values: dict[str, float], pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    return {f"{what}: {a} / {b}": values[a] / values[b] for a, b in pairs}


def _pretraining(report: Report, sizes: Sizes, half: str) -> None:
    problem, device = sizes.pretraining, runtime.pick_device()
    rates: dict[str, list[float]] = {"fp32": [], half: []}

    def measure_products() -> None:
        for precision, values in rates.items():
            values.append(runtime.matmul_rate(runtime.DTYPES[precision], device))

    entries = pretraining.contestants(problem, half, sizes.compiled)
    seconds = _interleaved(entries, sizes.rounds, measure_products)
    speed = {name: problem.tokens / s for name, s in seconds.items()}
    peaks = {precision: float(np.median(values)) for precision, values in rates.items()}
    per_token = counts.flops_per_token(problem.config, problem.config.context_length)
    report.tokens_per_second = speed
    report.flop_utilisation = {
        name: rate * per_token / peaks["fp32" if "fp32" in name else half]
        for name, rate in speed.items()
    }
    report.machine["matmul_gflops"] = {p: round(rate / 1e9, 1) for p, rate in peaks.items()}
    ours, theirs = _fastest(speed, "labkit"), _fastest(speed, "Trainer")
    report.ratios |= _ratios("pretraining", speed, [(ours, theirs), (ours, "plain fp32 loop")])


def _finetuning(report: Report, sizes: Sizes, half: str) -> None:
    seconds = _interleaved(finetuning.contestants(sizes.finetuning, half), sizes.rounds)
    speed = {name: sizes.finetuning.articles / s for name, s in seconds.items()}
    report.examples_per_second = speed
    report.padding = finetuning.padding(sizes.finetuning)
    ours, theirs = _fastest(speed, "labkit"), _fastest(speed, "Trainer")
    report.ratios |= _ratios("fine-tuning", speed, [(ours, theirs), (ours, f"Trainer {half}")])


def _generation(report: Report, sizes: Sizes, half: str) -> None:
    entries = generation.contestants(sizes.pretraining, sizes.new_tokens, half, sizes.compiled)
    seconds = _interleaved(entries, sizes.rounds)
    report.generated_per_second = {name: 1 / s for name, s in seconds.items()}
    for problem in dict.fromkeys(name.split(", ", 1)[1] for name in seconds):
        speed = {n: 1 / s for n, s in seconds.items() if n.endswith(problem)}
        ours, theirs = _fastest(speed, "labkit"), _fastest(speed, "transformers")
        report.ratios |= _ratios("generation", speed, [(ours, theirs)])


def _memory(report: Report, sizes: Sizes, half: str) -> None:
    for name in memory.FEW if sizes.smaller_memory else memory.CONTESTANTS:
        found = measure("labkit.bench.memory", name, sizes.smaller_memory)
        report.peak_gb[name], report.update_seconds[name] = found["peak_gb"], found["seconds"]
    same_optimizer = {n: peak for n, peak in report.peak_gb.items() if "8-bit" not in n}
    ours, theirs = (
        min((n for n in same_optimizer if n.startswith(who)), key=same_optimizer.__getitem__)
        for who in ("labkit", "Trainer")
    )
    report.ratios |= _ratios("memory at GPT-2 size", report.peak_gb, [(ours, theirs)])
    report.ratios |= _ratios("seconds at GPT-2 size", report.update_seconds, [(ours, theirs)])


def _llm(report: Report, sizes: Sizes, half: str) -> None:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in llm.CONTESTANTS}
    for _ in range(1 if sizes.smaller_memory else sizes.rounds):
        for name, found in rounds.items():
            found.append(measure("labkit.bench.llm", name, sizes.smaller_memory))
    report.llm = {
        name: {key: float(np.median([x[key] for x in found])) for key in found[0]}
        for name, found in rounds.items()
    }
    plain = report.llm["plain transformers loop"]
    for name, figures in report.llm.items():
        if name.startswith("labkit"):
            report.ratios[f"llm: speed of {name} / plain loop"] = (
                plain["seconds"] / figures["seconds"]
            )
            report.ratios[f"llm: memory of {name} / plain loop"] = (
                figures["peak_gb"] / plain["peak_gb"]
            )


def _import_seconds(repeats: int) -> dict[str, float]:
    """Median seconds of `import torch`, and what `import labkit` adds."""
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); "
        "import labkit; c = time.perf_counter(); print(b - a, c - b)"
    )
    rows = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        rows.append([float(x) for x in done.stdout.split()])
    torch_seconds, added = np.median(rows, axis=0)
    return {"torch": float(torch_seconds), "labkit_adds": float(added)}


def _overhead(report: Report, sizes: Sizes, half: str) -> None:
    from labkit.notebook import LiveCurve

    report.import_seconds = _import_seconds(sizes.rounds + 2)
    problem = sizes.pretraining
    data = Batches(pretraining.windows(problem), problem.batch_size)
    settings = TrainConfig(steps=10 * problem.steps, warmup_steps=0, learning_rate=1e-4)
    with LiveCurve("overhead") as curve:
        result = train(
            pretraining.decoder(problem), objectives.causal_lm, data, settings, on_step=curve
        )
    report.live_plotting_share = float(curve.overhead)
    started = time.perf_counter()
    for step in range(settings.steps):
        data.micro_batches(step)
    report.loading_share = (time.perf_counter() - started) / result.seconds


def _quality(report: Report, sizes: Sizes, half: str) -> None:
    for recipe in sizes.recipes:
        found = quality.run(recipe, sizes.seconds, half)
        report.quality[recipe.name] = found._asdict()
    first, *_, last = report.quality
    report.ratios[f"bits per byte in equal time: {last} / {first}"] = (
        report.quality[last]["bits_per_byte"] / report.quality[first]["bits_per_byte"]
    )


#: Everything that can be measured; the last takes half an hour and must be asked for.
MEASURES: dict[str, Callable[[Report, Sizes, str], None]] = {
    "pretraining": _pretraining,
    "finetuning": _finetuning,
    "generation": _generation,
    "memory": _memory,
    "llm": _llm,
    "overhead": _overhead,
    "quality": _quality,
}
PARTS = tuple(MEASURES)


def run(sizes: Sizes = FULL, only: Sequence[str] = ()) -> Report:
    """Measure everything that is asked for.

    Args:
        sizes: `FULL` for numbers to quote, `QUICK` to see that it runs.
        only: some of `PARTS`; none: all but quality.

    Raises:
        LabError: an unknown part.
    """
    for part in only:
        if part not in PARTS:
            raise LabError(f"part {part!r} is unknown: choose {', '.join(PARTS)}")
    device = runtime.pick_device()
    half = runtime.pick_precision(device)
    config = sizes.pretraining.config
    report = Report(
        machine={
            "device": str(device),
            "threads": torch.get_num_threads(),
            "precision": half,
            "torch": torch.__version__,
        },
        model={
            "parameters": counts.parameters(config),
            "tokens_per_update": sizes.pretraining.tokens,
            "d_model": config.d_model,
            "num_layers": config.num_layers,
        },
    )
    for part in only or PARTS[:-1]:
        MEASURES[part](report, sizes, half)
    return report


def _lines(report: Report) -> list[str]:
    rows = [f"machine: {report.machine}", f"model:   {report.model}"]

    def section(name: str, *columns: str) -> None:
        rows.extend(["", f"{name:50}" + "".join(f"{column:>18}" for column in columns)])

    if report.tokens_per_second:
        section("pretraining", "tokens/s", "FLOP utilisation")
        for name, rate in sorted(report.tokens_per_second.items(), key=lambda x: -x[1]):
            rows.append(f"{name:50}{rate:18,.0f}{report.flop_utilisation[name]:18.1%}")
    if report.examples_per_second:
        section("full fine-tuning", "examples/s", "padding")
        for name, rate in report.examples_per_second.items():
            grouped = "" if "grouped" in name else f"{report.padding[name.split()[0]]:.1%}"
            rows.append(f"{name:50}{rate:18.2f}{grouped:>18}")
    if report.generated_per_second:
        section("generation", "tokens/s")
        rows += [f"{name:50}{rate:18,.0f}" for name, rate in report.generated_per_second.items()]
    if report.peak_gb:
        section("an update at GPT-2 size", "peak GB", "seconds")
        for name, peak in report.peak_gb.items():
            rows.append(f"{name:50}{peak:18.2f}{report.update_seconds[name]:18.2f}")
    if report.llm:
        section("an update of SmolLM2, 8 x 128", "peak GB", "seconds")
        for name, got in report.llm.items():
            rows.append(f"{name:50}{got['peak_gb']:18.2f}{got['seconds']:18.2f}")
    if report.quality:
        section("equal time", "bits per byte", "seconds", "tokens", "parameters")
        for name, got in report.quality.items():
            rows.append(
                f"{name:50}{got['bits_per_byte']:18.3f}{got['seconds']:18.0f}"
                f"{got['tokens']:18,}{got['parameters']:18,}"
            )
    rows += ["", *(f"{name}: {ratio:.2f}" for name, ratio in report.ratios.items())]
    if imports := report.import_seconds:
        rows += [
            f"import torch {imports['torch']:.2f} s, labkit adds {imports['labkit_adds']:.3f} s",
            f"live plotting takes {report.live_plotting_share:.1%} of the training time",
            f"making the batches takes {report.loading_share:.2%} of the training time",
        ]
    return rows


def main(json_output: bool = False, quick: bool = False, only: Sequence[str] = ()) -> None:
    """Run and print: a table, or with `json_output` one JSON object."""
    report = run(QUICK if quick else FULL, only)
    print(json.dumps(asdict(report)) if json_output else "\n".join(_lines(report)))

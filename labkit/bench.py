"""What the machine and the loop reach: one run, everything interleaved, medians only.

    round 1: labkit compiled | labkit | Trainer bf16 | labkit fp32 | plain fp32 loop
    round 2: the same again ...                 -> median seconds a step -> tokens per second

Timings of two programs are comparable only when taken side by side: clocks drift and machines are
shared. So each round runs every contestant for a few steps, all on the same weights and batches.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit import accounting, interop, objectives, runtime
from labkit.batches import Batches, Windows
from labkit.train import TrainConfig, train
from labkit.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Sizes:
    """One benchmark's problem."""

    config: TransformerConfig
    batch_size: int
    """Windows of config.context_length tokens in an update."""
    rounds: int
    steps: int
    """Timed updates of each contestant in each round, after one that is not counted."""


FULL = Sizes(
    TransformerConfig.llama(
        vocab_size=4096, context_length=256, d_model=384, num_layers=6, num_heads=6
    ),
    batch_size=32,
    rounds=3,
    steps=4,
)
QUICK = Sizes(
    TransformerConfig.llama(
        vocab_size=512, context_length=64, d_model=64, num_layers=2, num_heads=2
    ),
    batch_size=8,
    rounds=2,
    steps=2,
)


@dataclass
class Report:
    """All figures of one run."""

    machine: dict[str, Any]
    model: dict[str, Any]
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """Median over all timed steps, by contestant."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Ratio of medians."""
    flop_utilisation: dict[str, float] = field(default_factory=dict)
    """Model FLOP/s over the measured bf16 (or fp32) matmul rate, 0 to 1."""
    import_seconds: dict[str, float] = field(default_factory=dict)
    live_plotting_share: float = float("nan")
    """Drawing time / training time with a live curve."""


def _model(sizes: Sizes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(sizes.config)


def _windows(sizes: Sizes) -> Windows:
    count = sizes.batch_size * sizes.config.context_length * (sizes.steps + 1) + 1
    tokens = np.random.default_rng(0).integers(sizes.config.vocab_size, size=count)
    return Windows(tokens, sizes.config.context_length)


def _labkit(sizes: Sizes, **changes: Any) -> Callable[[], list[float]]:
    model = _model(sizes)
    data = Batches(_windows(sizes), sizes.batch_size, shuffle=False)
    settings = TrainConfig(steps=sizes.steps + 1, warmup_steps=0, learning_rate=1e-4, **changes)

    def run() -> list[float]:
        moments = []
        train(
            model, objectives.causal_lm, data, settings,
            on_step=lambda record: moments.append(time.perf_counter()),
        )  # fmt: skip
        return np.diff(moments).tolist()

    return run


def _trainer(sizes: Sizes, bf16: bool) -> Callable[[], list[float]]:
    """`transformers.Trainer` with its defaults, on the same weights and batches."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = interop.to_huggingface(_model(sizes))
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            moments.append(time.perf_counter())

    class Shifted(Windows):
        """Trainer's models shift the targets themselves."""

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = super().__getitem__(index)["input_ids"]
            return {"input_ids": ids, "labels": ids}

    windows = Shifted(_windows(sizes).tokens, sizes.config.context_length)

    def run() -> list[float]:
        moments.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=sizes.steps + 1,
                per_device_train_batch_size=sizes.batch_size,
                learning_rate=1e-4,
                weight_decay=0.1,
                bf16=bf16,
                use_cpu=not torch.cuda.is_available(),
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            dataset: Any = windows  # anything with len and indexing will do
            Trainer(model, arguments, train_dataset=dataset, callbacks=[Clock()]).train()
        return np.diff(moments).tolist()

    return run


def _plain_loop(sizes: Sizes) -> Callable[[], list[float]]:
    """The loop of a small tutorial: fp32, all logits at once, torch's default AdamW."""
    model = _model(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = Batches(_windows(sizes), sizes.batch_size, shuffle=False)

    def run() -> list[float]:
        moments = []
        for step in range(sizes.steps + 1):
            (batch,) = data.micro_batches(step)
            logits = model(batch["input_ids"]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            moments.append(time.perf_counter())
        return np.diff(moments).tolist()

    return run


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


def _live_share(sizes: Sizes) -> float:
    from labkit.notebook import LiveCurve

    data = Batches(_windows(sizes), sizes.batch_size)
    settings = TrainConfig(steps=10 * sizes.steps, warmup_steps=0, learning_rate=1e-4)
    with LiveCurve("overhead") as curve:
        train(_model(sizes), objectives.causal_lm, data, settings, on_step=curve)
    return float(curve.overhead)


def run(sizes: Sizes = FULL, compiled: bool = True) -> Report:
    """Measure everything; about six minutes on two cores.

    Args:
        sizes: `FULL` for numbers to quote, `QUICK` to see that it runs.
        compiled: also time labkit under torch.compile (needs a C++ compiler).
    """
    device = runtime.pick_device()
    half = runtime.pick_precision(device)
    contestants = {
        f"labkit {half}": _labkit(sizes, precision=half),
        f"Trainer {half}": _trainer(sizes, bf16=half == "bf16"),
        "labkit fp32": _labkit(sizes, precision="fp32"),
        "plain fp32 loop": _plain_loop(sizes),
    }
    if compiled:
        contestants[f"labkit {half} compiled"] = _labkit(sizes, precision=half, compile=True)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates: dict[str, list[float]] = {"fp32": [], half: []}
    for _ in range(sizes.rounds):
        for name, contestant in contestants.items():
            seconds[name] += contestant()
        for precision, values in rates.items():
            values.append(runtime.matmul_rate(runtime.DTYPES[precision], device))
    tokens = sizes.batch_size * sizes.config.context_length
    report = Report(
        machine={
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "matmul_gflops": {p: round(float(np.median(v)) / 1e9, 1) for p, v in rates.items()},
        },
        model={
            "parameters": accounting.parameters(sizes.config),
            "tokens_per_update": tokens,
            **{k: v for k, v in asdict(sizes.config).items() if k in ("d_model", "num_layers")},
        },
        tokens_per_second={name: tokens / float(np.median(s)) for name, s in seconds.items()},
        import_seconds=_import_seconds(sizes.rounds + 2),
        live_plotting_share=_live_share(sizes),
    )
    best = max(
        (n for n in contestants if n.startswith("labkit")), key=report.tokens_per_second.__getitem__
    )
    speed = report.tokens_per_second
    report.ratios = {
        f"{best} / Trainer {half}": speed[best] / speed[f"Trainer {half}"],
        f"labkit {half} / Trainer {half}": speed[f"labkit {half}"] / speed[f"Trainer {half}"],
        f"{best} / plain fp32 loop": speed[best] / speed["plain fp32 loop"],
    }
    per_token = accounting.flops_per_token(sizes.config, sizes.config.context_length)
    for name, rate in speed.items():
        peak = float(np.median(rates["fp32" if "fp32" in name else half]))
        report.flop_utilisation[name] = rate * per_token / peak
    return report


def _lines(report: Report) -> list[str]:
    rows = [
        f"machine: {report.machine}",
        f"model:   {report.model}",
        "",
        f"{'':28}{'tokens/s':>10}{'FLOP utilisation':>20}",
    ]
    for name, rate in sorted(report.tokens_per_second.items(), key=lambda x: -x[1]):
        rows.append(f"{name:28}{rate:10,.0f}{report.flop_utilisation[name]:20.1%}")
    rows += ["", *(f"{name}: {ratio:.2f}" for name, ratio in report.ratios.items())]
    imports = report.import_seconds
    rows.append(
        f"import torch {imports['torch']:.2f} s, labkit adds {imports['labkit_adds']:.3f} s"
    )
    rows.append(f"live plotting takes {report.live_plotting_share:.1%} of the training time")
    return rows


def main(json_output: bool = False, quick: bool = False, compiled: bool = True) -> None:
    """Run and print: a table, or with `json_output` one JSON object."""
    report = run(QUICK if quick else FULL, compiled)
    print(json.dumps(asdict(report)) if json_output else "\n".join(_lines(report)))

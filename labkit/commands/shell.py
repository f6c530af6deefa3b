"""What the commands share: results on stdout, progress on stderr.

say, table               for a person to read
note                     what to know beside it, on stderr
Progress                 of a run: one bar (a terminal) or one line now and then (a log file)
counted                  the same for any other long loop
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from labkit import runtime
from labkit.runtime import duration
from labkit.training.records import Record

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
T = TypeVar("T")


def say(text: str) -> None:
    """Print a result once, whatever the number of processes."""
    if runtime.is_main():
        print(text, flush=True)


def note(text: str) -> None:
    """Print what a person should know beside the results, on stderr."""
    if runtime.is_main():
        print(text, file=sys.stderr, flush=True)


def counted(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same items; how many are done shows on stderr when they take longer than a while."""
    if sys.stderr.isatty() and runtime.is_main():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, leave=False, file=sys.stderr, delay=1.0)
        return
    printed = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            note(f"{what}: {number:,} of {total:,} batches")
        yield item


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as aligned columns: text to the left, numbers to the right."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    numeric = [not isinstance(rows[0][head], str) for head in heads]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


class Progress:
    """`on_step` of the loop: loss, speed and time left, on stderr."""

    def __init__(self, unit: str = "update"):
        self.unit = unit
        self.bar: tqdm | None = None
        self.validation = math.nan
        self._printed = -math.inf

    def __call__(self, record: Record) -> None:
        if record.validation is not None:
            self.validation = record.validation.get("loss", math.nan)
        if sys.stderr.isatty():
            self._draw(record)
        elif (
            record.validation is not None
            or record.step == record.total_steps
            or time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES
        ):
            self._printed = time.monotonic()
            print(self._line(record), file=sys.stderr, flush=True)

    def _draw(self, record: Record) -> None:
        from tqdm import tqdm

        if self.bar is None:
            shape = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
            self.bar = tqdm(
                total=record.total_steps,
                initial=record.step - 1,
                bar_format=shape,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        self.bar.set_postfix_str(self._numbers(record), refresh=False)
        self.bar.update(1)

    def _line(self, record: Record) -> str:
        return f"{self.unit} {record.step}/{record.total_steps}  {self._numbers(record)}"

    def _numbers(self, record: Record) -> str:
        parts = [f"loss {record.loss:.3f}"]
        if not math.isnan(self.validation):
            parts.append(f"validation {self.validation:.3f}")
        parts.append(f"{record.tokens_per_second:,.0f} tokens/s")
        parts.append(f"{duration(record.remaining)} left")
        return "  ".join(parts)

    def close(self) -> None:
        """Leave the finished bar on its own line."""
        if self.bar is not None:
            self.bar.close()

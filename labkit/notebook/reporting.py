"""`report`: the chapter's numbers, as a folded table for people and as JSON for the course.

The JSON travels inside the output of the cell, under a MIME type of its own. `labkit.course` reads
it from the executed notebook, so that what a learner sees and what a test asserts are one thing.
"""

import math
from html import escape
from typing import Any

from IPython.display import display

from labkit import runtime
from labkit.course.chapter import METRICS_MIME
from labkit.errors import LabError
from labkit.notebook.lab import current_chapter, seconds_since_start
from labkit.notebook.tables import table


def report(metrics: dict[str, float], digits: int = 4) -> None:
    """Display the chapter's time and peak memory, its metrics folded away, and record them.

    Args:
        metrics: name -> finite number.
        digits: decimals shown; the recorded numbers are not rounded.
    """
    numbers = {}
    for name, value in metrics.items():
        number = float(value)
        if not math.isfinite(number):
            raise LabError(f"report() got {name} = {number}; a metric must be a finite number.")
        numbers[name] = int(number) if isinstance(value, int) else number
    chapter, profile = current_chapter()
    payload: dict[str, Any] = {
        "chapter": chapter,
        "profile": profile,
        "seconds": round(seconds_since_start(), 2),
        "peak_rss_mb": round(runtime.peak_rss_bytes() / 1e6, 1),
        "metrics": numbers,
    }
    rows = [{"metric": name.replace("_", " "), "value": value} for name, value in numbers.items()]
    note = (
        f"Chapter {chapter or '?'}, profile {profile or '?'}: {payload['seconds']:.0f} s, "
        f"peak memory {payload['peak_rss_mb']:,.0f} MB."
    )
    shown = table(rows, digits=digits)
    html = f"<details><summary>{escape(note)} Its figures</summary>{shown._repr_html_()}</details>"
    bundle = {"text/html": html, "text/plain": repr(shown), METRICS_MIME: payload}
    display(bundle, raw=True)

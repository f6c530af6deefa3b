"""What chapter 22 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "found, copies": (1.0, 0.0),
    "found, headers and footers": (1.0, 0.0),
    "found, files without a text": (1.0, 0.0),
    "equal copies": (0, 0),
    "mask recall": (0.667, 0.001),
    "mask precision": (1.0, 0.0),
    "lookalikes masked": (0, 0),
    "leaks": (0, 0),
    "leaks, split first": (0.37, 0.03),
    "bits, counting, 5-gram": (2.470, 0.01),
    "bits, smollm2 as it came": (4.439, 0.05),
    "F1, copied": (0.712, 0.002),
    "F1, the counting rule": (0.791, 0.002),
    "lacking before": (2, 0),
    "lacking": (0, 0),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "found, copies": (0.94, 0.95),
    "found, headers and footers": (1.0, 1.0),
    "found, files without a text": (1.0, 1.0),
    "found, wrong encodings": (1.0, 1.0),
    "equal copies": (0, 0),
    "equal headers": (0, 0),
    "also taken": (1, 1),
    "mask recall": (0.66, 0.67),
    "mask precision": (1.0, 1.0),
    "lookalikes masked": (0, 0),
    "proposed, 128": (17, 17),
    "proposed, 256": (18, 18),
    "alike at 0.5": (1, 1),
    "leaks, split first": (0.2, 0.3),
    "leaks": (0, 0),
    "lacking": (0, 0),
    "redraw_seconds": (0.0, 0.2),
}

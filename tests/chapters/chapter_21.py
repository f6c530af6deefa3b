"""What chapter 21 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "first loss, run 0": (-0.007, 0.03),
    "first loss, run 8": (-1.16, 0.05),
    "gradient, run 0": (0.0, 1e-4),
    "gradient, run 7": (1.0, 0.01),
    "leak, run 0": (0.0, 1e-4),
    "healthy found": (0, 0),
    "found by first loss": (1, 0),
    "found by gradient check": (1, 0),
    "doctor": (1, 0),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest). Not run yet.
CLAIMS: dict[str, tuple[float, float]] = {
    "gradient, run 7": (0.99, 1.01),
    "first loss, run 8": (-1.7, -1.3),
    "leak, run 0": (0.0, 1e-4),
    "cost of the hook": (-0.2, 0.2),
    "redraw_seconds": (0.0, 0.2),
}

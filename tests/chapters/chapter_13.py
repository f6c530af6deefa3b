"""What chapter 13 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "exact, lazy": (58.33, 0.01),
    "BLEU, copied": (38.64, 0.01),
    "BLEU, word table": (45.31, 0.5),
    "same place": (0.372, 0.001),
    "exposure, truth": (4.91, 0.3),
}

# TODO measure: one `cpu` run of the committed sizes, and the recorded runs.
#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {}

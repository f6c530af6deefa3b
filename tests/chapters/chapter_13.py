"""What chapter 13 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "exact, lazy": (58.33, 0.01),
    "BLEU, copied": (38.64, 0.01),
    "BLEU, word table": (45.12, 0.5),
    "same place": (0.372, 0.001),
    "exposure, truth": (4.907, 0.1),
    "exposure, own words": (4.932, 0.1),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "exact, lazy": (60, 68),
    "exact, reader": (35, 62),
    "exact, recorded reader": (89, 89.5),
    "exact, recorded reader, low": (86, 87.5),
    "BLEU, plain": (0, 5),
    "BLEU, copied": (41.9, 42.2),
    "BLEU, word table": (48, 49.5),
    "BLEU, copying": (38, 46),
    "recorded, plain": (23, 23.2),
    "recorded, copying": (49, 49.5),
    "recorded, copying, lead from": (0.5, 1.5),
    "recorded, smollm2": (50.5, 51.5),
    "recorded, smollm2, lead from": (0.1, 1),
    "recorded, smollm2, lead, its pairs": (4.9, 6),
    "ROUGE-1, headlines": (29, 30),
    "ROUGE-1, docstrings": (27, 28),
    "ROUGE-1, first words": (15, 26),
    "young, ends before": (34, 60),
    "redraw_seconds": (0.0, 0.2),
}

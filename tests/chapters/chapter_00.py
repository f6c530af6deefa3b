"""What chapter 00 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "floor": (0.504, 0.02),
    "validation_loss": (6.02, 0.3),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "exact_answers": (0.62, 1.0),
    "naming": (0.0, 0.55),
    "without_the_story": (0.0, 0.2),
}

"""What chapter 00 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "floor": (0.464, 0.02),
    "validation_loss": (5.99, 0.3),
    "verses_before": (2.236, 0.02),
    "changed": (0.9998, 0.001),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "verses_before": (1.5, 2.2),
    "verses_after": (0.9, 1.25),
    "f1_before": (0.0, 0.4),
    "f1_after": (0.65, 0.85),
    "f1_words": (0.65, 0.85),
    "changed": (0.9999, 1.0),
    "lead where a person is": (0.05, 1.0),
    "lead where a thing is": (0.1, 1.0),
    "lead who has a thing": (-0.2, 0.0),
    "model where a person is": (0.7, 0.9),
    "model where a thing is": (0.7, 0.9),
}

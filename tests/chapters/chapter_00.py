"""What chapter 00 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "floor": (0.482, 0.02),
    "validation_loss": (6.0, 0.3),
    "verses_before": (1.785, 0.02),
    "changed": (0.9997, 0.001),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "verses_before": (1.9, 2.3),
    "verses_after": (1.1, 1.4),
    "f1_before": (0.0, 0.4),
    "f1_after": (0.55, 0.8),
    "f1_copied": (0.55, 0.8),
    "f1_words": (0.55, 0.8),
    "changed": (0.9999, 1.0),
    "news_before": (1.22, 1.25),
    "news_after": (1.2, 1.25),
    "floor": (0.45, 0.5),
    "validation_loss": (0.51, 0.56),
    "five_gram": (0.8, 0.93),
    "lead where a person is": (0.05, 0.3),
    "lead where a thing is": (0.1, 0.4),
    "lead who has a thing": (-0.4, 0.0),
    "rule where a person is": (0.95, 1.0),
    "rule where a thing is": (0.8, 1.0),
    "rule who has a thing": (0.95, 1.0),
}

"""What chapter 10 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "memory_error": (0.0, 0.15),
    "test_accuracy_bag_of_words": (0.9, 0.1),
    "test_accuracy_frozen": (0.9, 0.1),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "test_accuracy": (0.97, 1.0),
    "test_macro_f1": (0.97, 1.0),
    "memory_error": (0.0, 0.15),
    "live_curve_overhead": (0.0, 0.055),
}

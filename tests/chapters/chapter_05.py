"""What chapter 05 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "coin_entropy_nats": (0.6108643, 1e-6),
    "test_accuracy": (0.9, 0.1),
    "naive_bayes_accuracy": (0.94, 0.04),
    "true_class_only_accuracy": (0.4, 0.3),
    "mean_of_means_gradient_error": (0.08, 0.05),
    "chunk_memory_ratio": (1.4, 0.4),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "test_accuracy": (0.94, 0.98),
    "naive_bayes_accuracy": (0.94, 0.99),
    "ece_plain": (0.0, 0.05),
    "ece_smoothed": (0.1, 0.2),
    "true_class_only_accuracy": (0.1, 0.7),
    "mean_of_means_gradient_error": (0.05, 0.25),
    "chunk_memory_ratio": (7.5, 8.2),
    "widget_redraw_seconds": (0.0, 0.2),
}

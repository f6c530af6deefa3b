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
CLAIMS: dict[str, tuple[float, float]] = {"test_accuracy": (0.9, 1.0)}

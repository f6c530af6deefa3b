"""What chapter 03 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "future leak of M = -10": (0.2964591, 1e-3),
    "variance at K = 64, scaled": (0.986, 0.02),
    "rule": (1.0, 0.0),
    "MiniLM: entropy": (2.66, 0.1),
    "MiniLM: distance": (17.3, 0.5),
    "random weights: entropy": (4.335, 0.02),
    "everywhere alike: distance": (25.16, 0.01),
    "best head: previous token": (1.0, 0.01),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "rule": (1.0, 1.0),
    "known symbols": (1.9, 2.05),
    "loss: 1/√K": (0.0, 0.02),
    "loss: 1/√D": (0.0, 0.02),
    "loss: 1/K": (0.0, 0.08),
    "loss: none": (0.05, 1.5),
    "loss: 4": (1.0, 2.9),
    "loss: one layer": (1.3, 1.6),
    "loss: one layer, longer": (0.6, 1.3),
    "loss: all weights equal": (1.4, 1.9),
    "trained 1/√K, read 1/√D": (0.02, 0.15),
    "trained 1/√D, read 1/√K": (0.004, 0.15),
    "trained 1/√K, read 1/K": (1.0, 2.9),
    "score spread: 1/√K": (3.2, 6.5),
    "score spread: 1/K": (2.5, 5.5),
    "score spread: 4": (8.0, 40.0),
    "MiniLM: entropy": (2.9, 3.1),
    "MiniLM: separators": (0.25, 0.3),
    "random weights: entropy": (4.8, 4.86),
    "everywhere alike: distance": (41.0, 43.0),
    "best head: previous token": (0.99, 1.0),
    "best head: next token": (0.6, 0.7),
    "best head: same word": (0.12, 0.2),
    "entropy with 1/√D": (4.5, 4.75),
}

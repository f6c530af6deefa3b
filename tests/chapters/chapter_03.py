"""What chapter 03 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "future leak of M = -10": (0.2964591, 1e-3),
    "variance at K = 64, scaled": (0.986, 0.02),
    "MiniLM mean entropy": (2.66, 0.1),
    "untrained mean entropy": (4.33, 0.1),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {"MiniLM mean entropy": (2.9, 3.1)}

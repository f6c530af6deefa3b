"""What chapter 12 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "all outside, words right": (0.5819, 0.0001),
    "ill-formed mass": (0.0851, 0.0001),
    "code, 1, CRF": (0.481, 0.06),
    "pairs, nearest, if given": (1.0, 0.0),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "all outside, words right": (0.56, 0.57),
    "code, window of 5": (0.8, 0.88),
    "stories, window of 5": (0.78, 0.86),
    "code, 1, softmax": (0.6, 0.78),
    "code, 1, softmax + rules": (0.82, 0.92),
    "code, 1, CRF": (0.83, 0.93),
    "code, 0, softmax + rules": (0.22, 0.35),
    "code, 0, CRF": (0.45, 0.58),
    "code, HMM": (0.45, 0.56),
    "lead, rules, 1, low": (0.1, 0.25),
    "lead, CRF, 1": (-0.005, 0.03),
    "lead, CRF, 1, low": (-0.02, 0.0),
    "lead, CRF, 0, low": (0.15, 0.3),
    "long names, softmax": (0.0, 0.3),
    "long names, CRF": (0.9, 1.0),
    "stories, MiniLM, softmax": (0.97, 1.0),
    "stories, MiniLM, softmax + rules": (0.98, 1.0),
    "stories, MiniLM, CRF": (0.98, 1.0),
    "ill-formed mass": (0.085, 0.0852),
    "ill-formed, MiniLM": (1, 40),
    "pairs, nearest": (0.8, 0.95),
    "pairs, nearest, if given": (0.99, 1.0),
    "pairs, MiniLM": (0.97, 1.0),
}

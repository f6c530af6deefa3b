"""What chapter 14 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "floor": (0.4731, 0.0001),
    "all, base": (0.0, 0.0),
    "all, most frequent answer": (0.05, 0.001),
    "packed, places": (2816, 0),
    "padded, places": (3072, 0),
    "llm before": (0.0, 0.0),
    "news before": (6.089, 0.01),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "all, base": (0, 0),
    "all, most frequent answer": (0.07, 0.09),
    "all, tuned from nothing": (0.3, 0.44),
    "all, tuned": (0.46, 0.58),
    "objects, tuned": (0.3, 0.7),
    "right, everything counts": (0.2, 0.38),
    "right, no end": (0, 0),
    "stops, answers and their ends": (0.98, 1),
    "stops, no end": (0, 0.02),
    "leak, nats": (400, 900),
    "llm before": (0, 0),
    "llm after": (0.6, 0.95),
    "llm after, new wording": (0.5, 0.9),
    "news before": (1.2, 1.206),
    "news after": (1.2, 1.215),
    "good, tuned": (0.04, 0.12),
    "good at 0.5, tuned": (0.1, 0.2),
    "good at 0.5, possible: imitation": (0.38, 0.5),
    "good at 0.5, possible: imitation, twice as long": (0.43, 0.56),
    "good at 0.5, possible: imitation, then DPO": (0.49, 0.62),
    "good, possible: imitation": (0.26, 0.38),
    "good, possible: DPO": (0.12, 0.24),
    "good, possible: imitation, twice as long": (0.26, 0.38),
    "good, possible: imitation, then DPO": (0.35, 0.47),
    "tokens, tuned": (53, 59),
    "tokens, shorter: imitation": (48, 52),
    "tokens, shorter: DPO": (43, 48),
    "rejected, shorter": (-3, -1),
    "redraw_seconds": (0.0, 0.2),
}

"""What chapter 23 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "length, leave_one_out, 8": (0.980, 0.05),
    "length, mean, 8": (0.858, 0.05),
    "degrees, answer": (12.20, 0.01),
    "bias, none": (0.1788, 0.001),
    "bias, token": (0.0881, 0.001),
    "bias, token, clipped": (0.1651, 0.001),
    "k1, mean": (2.0742, 0.001),
    "k2, mean": (2.3111, 0.001),
    "k3, mean": (2.0742, 0.001),
    "recorded, group": (0.3285, 0.0005),
    "recorded, own right answers": (0.3291, 0.0005),
    "recorded, right answers of the start": (0.3032, 0.0005),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "in errors, leave_one_out, 8": (0, 4),
    "in errors, mean, 8": (10, 1000),
    "in errors, scaled, 8": (10, 1000),
    "length, leave_one_out, 8": (0.98, 1.02),
    "length, mean, 8": (0.86, 0.89),
    "beside it, scaled, 8": (0.03, 0.08),
    "degrees, answer": (12, 12.4),
    "degrees, token": (0, 0.001),
    "degrees, constant": (0, 0.001),
    "bias, answer": (0, 1e-9),
    "the start, pass@1": (0.22, 0.31),
    "the start, greedy": (0.28, 0.40),
    "group, gained, low": (0.0, 0.2),
    "recorded, group": (0.328, 0.329),
    "recorded lead over right answers of the start, pass@1, low": (0.005, 0.02),
    "recorded lead over own right answers, pass@1, low": (-0.03, 0),
    "recorded lead over own right answers, pass@1, high": (0, 0.03),
    "recorded lead over own right answers, pass@8, low": (0.02, 0.06),
    "recorded lead over right answers of the start, pass@8, high": (-0.02, 0),
    "redraw_seconds": (0.0, 0.2),
}

"""What chapter 15 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance). These are of the record.
EXPECTED: dict[str, tuple[float, float]] = {
    "level, no example": (0.85, 0.001),
    "level, five, calibrated": (0.9033, 0.001),
    "level, nearest label word": (0.78, 0.001),
    "eats, rule: ends like the last example": (1.0, 0.001),
    "ate, rule: ends like the last example": (0.0, 0.001),
    "is or are, longest choice": (0.5, 0.001),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "is or are, ln p": (0.93, 0.99),
    "is or are, lazy reading": (0.5, 0.5),
    "next, ln p": (0.45, 0.6),
    "next, ln p - ln p(choice)": (0.85, 0.95),
    "where, ln p": (0.36, 0.5),
    "where, lazy reading": (0.48, 0.49),
    "where, generated": (0.0, 0.05),
    "ate, 0 examples": (0.15, 0.35),
    "ate, 1 examples": (0.85, 1.0),
    "ate, 8 examples": (0.97, 1.0),
    "ate, rule: ends like the last example": (0.12, 0.13),
    "topics, News, Category, names, 0": (0.8, 0.87),
    "topics, nothing, names, 0": (0.43, 0.53),
    "topics, News, Category, letters, 0": (0.05, 0.2),
    "level, five, calibrated": (0.9, 0.91),
    "five, calibrated, lead, low": (4, 5),
    "crossing, all parameters, no example, overtakes at": (32, 34),
    "pattern, 1 layers": (0.55, 0.65),
    "pattern, 2 layers": (0.97, 1.0),
    "pattern, value seen most": (0.4, 0.44),
    "continued, King James, famous": (0.0, 0.0),
    "continued, BBC 2004": (0.0, 0.0),
    "redraw_seconds": (0.0, 0.2),
}

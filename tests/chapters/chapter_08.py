"""What chapter 08 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "resumed_tensors_equal": (56, 0),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "bits_per_byte_web_bible": (1.2, 1.6),
    "bits_per_byte_bbc_news": (1.6, 2.1),
    "bits_per_byte_python_source": (1.4, 1.85),
    "saved_against_5gram_python_source": (0.03, 1.0),
    "storyworld_bits_per_byte": (0.2195, 0.29),
    "live_curve_overhead": (0.0, 0.055),
    "resumed_tensors_equal": (56, 56),
}

"""What chapter 08 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "bits_per_byte gzip": (2.157, 0.01),
    "bits_per_byte 5-gram": (1.889, 0.01),
    "bits_per_byte this decoder": (3.866, 0.08),
    "shifted_training not shifted": (4.81, 0.2),
    "shore smollm2": (1.354, 0.02),
    "resumed_tensors_equal": (56, 0),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "bits_per_byte gzip": (2.5, 2.65),
    "bits_per_byte xz": (1.65, 1.75),
    "bits_per_byte 5-gram": (1.35, 1.365),
    "bits_per_byte this decoder": (1.25, 1.29),
    "bits_per_byte decoder and 5-gram, half each": (1.19, 1.23),
    "lead_low": (-0.13, -0.09),
    "lead_high": (-0.09, -0.03),
    "documents_won": (0.85, 1.0),
    "shore 5-gram": (1.25, 1.265),
    "shore this decoder": (1.13, 1.17),
    "shore smollm2": (0.92, 0.94),
    "shifted_training not shifted": (0.5, 1.5),
    "shifted not shifted": (8.4, 13.0),
    "shifted shifted once (right)": (5.5, 5.7),
    "shifted shifted twice": (6.0, 6.4),
    "reseeded 1": (5.7, 5.9),
    "step the model's FLOPs, at the rate of one large product": (0.3, 1.0),
    "live_curve_overhead": (0.0, 0.055),
    "resumed_tensors_equal": (56, 56),
}

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

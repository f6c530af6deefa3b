"""What chapter 19 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "furthest": (0.5, 0.001),
    "outlier, tensor": (1.0, 0.001),
    "outlier, row": (0.1738, 0.01),
    "outlier, 32": (0.1038, 0.01),
    "bits a number, Q4_1": (5.0, 1e-9),
    "codes that moved": (0, 0),
    "again, 4 bits, symmetric": (0.1017, 0.001),
    "dense": (4.771, 0.03),
    "lost, 2, tensor": (0.813, 0.15),
    "outputs, rounded": (0.247, 0.05),
    "outputs, gptq": (0.119, 0.05),
    "live pruned, 2:4": (4.735, 0.04),
    "MB, smollm2, fp32": (538.06, 0.01),
    "bits, smollm2, fp32": (1.431, 0.005),
    "more, smollm2, bf16": (0.016, 0.02),
    "onnx": (0.0, 1e-4),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {}

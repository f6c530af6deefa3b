"""What chapter 04 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "count errors": (0, 0),
    "largest logit difference": (0.0, 2e-5),
    "MiniLM difference": (0.0, 2e-5),
    "cosine same topic": (0.459, 0.01),
    "cosine other topic": (0.078, 0.01),
    "second ReLU stream mean": (0.65, 0.3),
    "head: previous token": (0.99, 0.02),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "largest logit difference": (0.0, 2e-5),
    "count errors": (0, 0),
    "gradient ratio pre-norm": (2.5, 5.0),
    "gradient ratio post-norm": (0.8, 1.3),
    "stream growth": (6.0, 10.0),
    "stream growth undivided": (30.0, 50.0),
    "second ReLU harm, layernorm": (0.05, 0.25),
    "second ReLU harm, rmsnorm": (0.05, 0.25),
    "second ReLU stream mean": (1.0, 4.0),
    "neighbour accuracy": (0.87, 0.97),
    "head: same word": (0.12, 0.2),
    "reversal: decoder only": (0.98, 1.0),
    "reversal: encoder-decoder": (0.98, 1.0),
    "ablation: rotary positions": (-0.35, -0.15),
    "ablation: all of Llama's": (-0.35, -0.12),
    "ablation: sinusoidal positions": (0.5, 1.6),
    "ablation: sinusoidal, waves / √D": (-0.15, 0.1),
    "ablation: RMSNorm": (-0.03, 0.03),
    "ablation: SwiGLU": (0.0, 0.15),
    "ablation: ReLU": (0.04, 0.2),
    "ablation: post-norm": (-0.08, 0.03),
    "ablation: untied embeddings": (-0.3, -0.05),
}

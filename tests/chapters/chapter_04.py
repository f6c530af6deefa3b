"""What chapter 04 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "count errors": (0, 0),
    "largest logit difference": (0.0, 2e-5),
    "MiniLM difference": (0.0, 2e-5),
    "bits: counted single tokens": (3.188, 0.01),
    "bits: counted 5-grams": (0.643, 0.01),
    "stream growth": (7.95, 0.1),
    "stream growth undivided": (39.5, 0.5),
    "second ReLU stream mean": (0.6, 0.3),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "largest logit difference": (0.0, 2e-5),
    "count errors": (0, 0),
    "bits: GPT": (1.7, 1.95),
    "bits: counted pairs": (2.0, 2.2),
    "bits: counted 5-grams": (1.3, 1.38),
    "bits: GPT and 5-grams": (1.38, 1.5),
    "stream growth": (6.0, 10.0),
    "stream growth undivided": (30.0, 50.0),
    "second ReLU harm": (0.05, 0.3),
    "second ReLU least harm": (0.02, 0.3),
    "second ReLU stream mean": (0.7, 5.0),
    "right ReLU stream mean": (-0.4, 0.4),
    "recorded: rotary positions": (-0.5, -0.35),
    "recorded: all of Llama's": (-0.55, -0.4),
    "recorded: sinusoidal positions": (0.9, 1.3),
    "recorded: sinusoidal, waves / √D": (-0.1, 0.0),
    "recorded: SwiGLU": (0.0, 0.2),
    "recorded: ReLU": (0.08, 0.16),
    "recorded: untied embeddings": (-0.35, -0.2),
    "recorded: 1 key/value head": (-0.25, -0.05),
}

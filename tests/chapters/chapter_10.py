"""What chapter 10 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "memory_error": (0.0, 0.1),
    "llm_memory_error": (0.0, 0.1),
    "leaked": (0.0751, 0.0001),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "test, words counted": (0.48, 0.53),
    "test, words and pairs counted": (0.56, 0.61),
    "test, frozen, last layer": (0.5, 0.58),
    "test, frozen, best layer": (0.6, 0.66),
    "test, all parameters, live": (0.77, 0.84),
    "test, trigram that searches": (0.82, 0.87),
    "ahead of frozen": (0.15, 0.22),
    "ahead of frozen, low": (0.12, 0.2),
    "memory_error": (-0.1, 0.1),
    "llm_memory_error": (-0.1, 0.1),
    "topics, words counted": (0.8, 0.87),
    "topics, frozen encoder": (0.9, 0.96),
    "story, named last": (0.4, 0.55),
    "story, named most often": (0.4, 0.55),
    "story, last clause about the thing": (0.75, 0.9),
    "story, smollm2, before": (0.4, 0.6),
    "story, smollm2, after": (0.7, 0.9),
    "lead of the LLM": (-0.15, 0.1),
    "news_before": (1.2, 1.24),
    "news_after": (1.19, 1.24),
}

"""What chapter 01 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "chain_rule_error": (0.0, 1e-9),
    "small_world_texts": (168, 0),
    "small_world_entropy_bits": (6.6827, 1e-3),
    "kneser_ney_mass": (1.0, 1e-5),
    "undiscounted_mass": (1.036, 0.03),
    "storyworld_floor": (0.228, 0.02),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "fit_seconds": (0.0, 30.0),
    "discount_of_1": (0.35, 0.5),
    "discount_of_9": (1.7, 2.6),
    "web_bible_5-gram, whole Bible": (1.2, 1.45),
    "storyworld_Transformer": (0.23, 0.32),
    "storyworld_LSTM": (0.32, 0.39),
    "storyworld_feed-forward": (0.39, 0.43),
    "storyworld_5-gram": (0.39, 0.43),
    "perplexity_of_best_bits": (2.0, 100.0),
    "padding_against_floor": (0.0, 0.98),
    "explain_seconds": (0.0, 0.2),
}

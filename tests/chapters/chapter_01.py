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
    "fit_peak_mb": (0.0, 1000.0),
    "discount_of_1": (0.35, 0.5),
    "discount_of_9": (1.7, 2.6),
    "continuation_gain": (0.01, 0.5),
    "web_bible_5-gram": (1.2, 1.45),
    "beyond_5gram_low_Transformer": (0.05, 0.4),
    "beyond_5gram_low_LSTM": (0.05, 0.4),
    "beyond_5gram_low_feed-forward": (0.05, 0.4),
    "beyond_5gram_high_5-gram + Transformer": (-0.5, -0.005),
    "beyond_5gram_high_5-gram + LSTM": (-0.5, -0.005),
    "beyond_5gram_high_5-gram + feed-forward": (-0.5, -0.002),
    "window_start_Transformer": (0.3, 0.6),
    "window_end_Transformer": (0.05, 0.2),
    "known_1_Transformer_minus_5gram": (-0.2, 0.05),
    "known_4_Transformer_minus_5gram": (0.15, 0.5),
    "storyworld_Transformer": (0.23, 0.32),
    "storyworld_LSTM": (0.32, 0.39),
    "storyworld_feed-forward": (0.39, 0.43),
    "storyworld_5-gram": (0.39, 0.43),
    "perplexity_of_best_bits": (2.0, 100.0),
    "padding_against_floor": (0.0, 0.98),
    "unknown_perplexity_ratio": (10.0, 1e6),
    "leak_1_percent": (0.0, 0.03),
    "leak_10_percent": (0.05, 0.2),
    "window_gain": (0.02, 0.5),
    "live_curve_overhead": (0.0, 0.055),
}

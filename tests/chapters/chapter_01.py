"""What chapter 01 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "chain_rule_error": (0.0, 1e-9),
    "small_world_texts": (168, 0),
    "small_world_entropy_bits": (6.6827, 1e-3),
    "kneser_ney_mass": (1.0, 1e-5),
    "undiscounted_mass": (1.036, 0.03),
    "storyworld_floor": (0.228, 0.02),
    "rate_LSTM": (0.04, 0.0),
    "story_rate_Transformer": (0.005, 0.0),
    "web_bible_whole_LSTM": (1.4804, 1e-3),
    "web_bible_5-gram": (2.01, 0.2),
    "storyworld_5-gram": (0.53, 0.08),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "fit_seconds": (0.0, 30.0),
    "discount_of_1": (0.35, 0.5),
    "discount_of_9": (1.7, 2.6),
    "web_bible_5-gram": (1.69, 1.72),
    "web_bible_LSTM": (1.88, 1.92),
    "web_bible_Transformer": (1.94, 1.99),
    "web_bible_feed-forward": (2.0, 2.06),
    "web_bible_whole_5-gram": (1.355, 1.365),
    "web_bible_whole_LSTM": (1.475, 1.485),
    "web_bible_whole_Transformer": (1.475, 1.485),
    "web_bible_whole_feed-forward": (1.545, 1.56),
    "beyond_5gram_low_LSTM": (0.0, 1.0),
    "mixture_Transformer": (-0.04, -0.025),
    "mixture_high_feed-forward": (-1.0, 0.0),
    "mixture_high_LSTM": (-1.0, 0.0),
    "mixture_high_Transformer": (-1.0, 0.0),
    "storyworld_Transformer": (0.23, 0.32),
    "storyworld_LSTM": (0.32, 0.39),
    "storyworld_feed-forward": (0.39, 0.43),
    "storyworld_5-gram": (0.39, 0.43),
    "perplexity_of_best_bits": (2.0, 100.0),
    "padding_against_floor": (0.0, 0.98),
    "explain_seconds": (0.0, 0.2),
}

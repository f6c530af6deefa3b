"""What chapter 02 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "merges_identical_to_the_crate": (1, 0),
    "chinese_tokens_per_character": (2.965, 0.05),
    "share_of_split_words_that_longest_match_gets_wrong": (0.22, 0.15),
    "unigram_to_bpe": (0.985, 0.05),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "exact_duplicates": (103, 103),
    "near_duplicates": (60, 70),
    "merges_identical_to_the_crate": (1, 1),
    "seconds_from_scratch": (0.0, 20.0),
    "share_of_split_words_that_longest_match_gets_wrong": (0.28, 0.45),
    "greedy_to_rank_tokens": (0.99, 1.0),
    "streamed_memory_growth": (0.9, 1.3),
    "token_premium_of_chinese": (2.8, 3.1),
    "unknown_chinese_percent": (55, 65),
    "code_premium": (1.8, 2.2),
    "likelihood_pieces_per_word_ratio": (1.8, 2.0),
    "unigram_to_bpe": (0.98, 1.02),
    "unigram_to_bpe_of_the_crate": (0.75, 0.85),
    "best_vocabulary": (8192, 8192),
    "bytes_worse_by": (0.4, 0.6),
    "largest_vocabulary_worse_by": (0.03, 0.06),
    "lower_cased_gain": (0.005, 0.1),
    "lower_cased_ratio": (1.2, 1.7),
    "stripped_ratio": (1.8, 3.2),
    "stripped_share": (0.48, 0.62),
    "widget_redraw_seconds": (0.0, 0.2),
}

"""What chapter 06 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "by_hand_error": (0.0, 1e-6),
    "loop_difference": (0.0, 1e-3),
    "bias_correction_error": (0.0, 0.01),
    "mean_of_means_error": (0.38, 0.15),
    "adamw": (2.9, 0.3),
    "l2_under_adam": (3.2, 0.3),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "by_hand_error": (0.0, 1e-6),
    "piled_up_loss": (3.5, 7.0),
    "range_test_rate": (0.007, 0.03),
    "sgd": (2.5, 2.9),
    "momentum": (2.6, 3.0),
    "adamw": (1.9, 2.2),
    "muon": (1.7, 1.95),
    "adamw_equal_time": (1.9, 2.15),
    "muon_update_time_ratio": (1.0, 1.6),
    "l2_under_adam": (2.4, 2.9),
    "decay_on_everything_difference": (-0.04, 0.04),
    "warmup_gain_low_rate": (-0.08, -0.005),
    "warmup_gain_high_rate": (0.1, 0.4),
    "cosine_against_constant": (-0.05, 0.0),
    "cosine_against_linear": (-0.005, 0.04),
    "clipping_adamw_bad_batch": (-0.3, -0.05),
    "mean_of_means_error": (0.1, 0.6),
    "knee_batch": (4.0, 12.0),
    "noise_scale_half_way": (6.0, 20.0),
    "test_loss_overfit": (2.35, 2.9),
    "test_loss_early_stopping": (2.2, 2.45),
    "test_loss_dropout": (2.1, 2.3),
    "widget_redraw_seconds": (0.0, 0.2),
    "live_curve_overhead": (0.0, 0.055),
}

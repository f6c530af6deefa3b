"""What chapter 06 must measure, in a small run and in the committed one."""

#: log10 of the highest loss of the last ten updates, in three ravines: alike in every profile.
RAVINES: dict[str, tuple[float, float]] = {
    "ravine 30, 60 updates, SGD": (-2.7, 0.3),
    "ravine 30, 60 updates, momentum 0.5": (-12.9, 1.0),
    "ravine 30, 60 updates, momentum 0.9": (-0.8, 0.3),
    "ravine 30, 60 updates, Adam": (-1.25, 0.3),
    "ravine 1000, 300 updates, SGD": (-0.4, 0.1),
    "ravine 1000, 300 updates, momentum 0.5": (-1.4, 0.2),
    "ravine 1000, 300 updates, momentum 0.9": (-9.55, 1.0),
    "ravine 1000, 300 updates, Adam": (-10.4, 1.0),
    "ravine 1000, turned, SGD": (-0.4, 0.1),
    "ravine 1000, turned, momentum 0.9": (-9.55, 1.0),
    "ravine 1000, turned, Adam": (-2.7, 0.4),
}

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "by_hand_error": (0.0, 1e-6),
    "loop_difference": (0.0, 1e-3),
    "bias_correction_error": (0.0, 0.05),
    "adamw": (2.9, 0.3),
    "l2_under_adam": (3.2, 0.3),
    "step_at_1": (1.0, 0.02),
    "step_at_10": (0.31, 0.15),
    **RAVINES,
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    **{name: (at - off, at + off) for name, (at, off) in RAVINES.items()},
    "by_hand_error": (0.0, 1e-6),
    "step_at_1": (0.98, 1.02),
    "step_at_10": (0.15, 0.32),
    "step_at_30": (0.08, 0.2),
    "pulled_harder": (0.6, 0.8),
    "piled_up_loss": (3.5, 7.0),
    "range_test_rate": (0.007, 0.03),
    "sgd": (2.5, 2.9),
    "momentum": (2.6, 3.0),
    "adamw": (1.9, 2.2),
    "muon": (1.7, 1.95),
    "adamw_equal_time": (1.85, 2.15),
    "muon_update_time_ratio": (1.0, 1.8),
    "l2_under_adam": (2.4, 2.9),
    "warmup_gain_low_rate": (-0.08, -0.005),
    "warmup_gain_high_rate": (0.1, 0.4),
    "cosine_against_constant": (-0.06, 0.0),
    "cosine_against_linear": (-0.005, 0.04),
    "clipping_AdamW, one bad batch": (-0.3, -0.05),
    "clipping_AdamW, clean data": (-0.2, -0.02),
    "clipping_SGD, clean data": (-0.5, 0.0),
    "accident_SGD, not clipped": (-0.5, 0.05),
    "accident_AdamW, not clipped": (0.03, 0.15),
    "knee_batch": (4.0, 12.0),
    "noise_scale_half_way": (6.0, 20.0),
    "noise_scale_at_the_target": (6.0, 20.0),
    "test_loss_overfit": (2.35, 2.9),
    "test_loss_early_stopping": (2.2, 2.45),
    "test_loss_dropout": (2.1, 2.3),
    "widget_redraw_seconds": (0.0, 0.2),
    "live_curve_overhead": (0.0, 0.08),
}

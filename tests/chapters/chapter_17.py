"""What chapter 17 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "largest_prediction_error": (0.0, 0.1),
    "largest_part_error": (0.0, 0.1),
    "by_hand_error": (0.1975, 0.02),  # of a model of width 64; 1 % at width 256 below
    "simulation_error": (0.0, 1e-3),
    "gpt2_prediction_error": (0.0, 0.1),
    "bf16_scaler_equal": (1, 0),
    "fp16_scaled_behind": (0.0, 0.01),
    "bf16_behind": (0.0, 0.02),
    "fp16_small_mean_behind": (0.0, 0.02),
    "torchtune_ratio": (1.0, 0.15),
    "eight_bit_gap": (0.0, 0.02),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "largest_prediction_error": (0.0, 0.1),
    "largest_part_error": (0.0, 0.03),
    "by_hand_error": (0.0, 0.02),
    "simulation_error": (0.0, 1e-3),
    "simulated_gap_gpu_profile": (0.0, 0.1),
    "gpt2_prediction_error": (0.0, 0.02),
    "gpt2_process_over_predicted": (1.0, 1.7),
    "gpt2_saving": (1.5, 1.9),
    "underflow_share_unscaled": (0.4, 0.7),
    "underflow_share_2_16": (0.0, 0.01),
    "underflow_share_weights": (0.0, 0.001),
    "underflow_share_outputs": (0.0, 0.001),
    "fp16_unscaled_behind": (0.3, 1.5),
    "fp16_scaled_behind": (-0.01, 0.01),
    "bf16_behind": (-0.01, 0.01),
    "fp16_small_mean_behind": (-0.01, 0.01),
    "bf16_scaler_equal": (1, 1),
    "bf16_nearest_unmoved": (0.6, 0.72),
    "bf16_nearest_progress": (0.3, 0.7),
    "bf16_stochastic_progress": (0.9, 1.1),
    "bf16_kahan_progress": (0.9, 1.1),
    "accumulation_away": (0.0, 0.05),
    "eight_bit_gap": (-0.005, 0.005),
    "torchtune_ratio": (0.85, 1.15),
    "skipped_updates": (1, 10),
    "widget_redraw_seconds": (0.0, 0.2),
    "live_curve_overhead": (0.0, 0.055),
}

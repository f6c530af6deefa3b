"""What a model costs, predicted from its config and measured: parameters, FLOPs, bytes.

    config ──> counts    parameters ──> FLOPs, forward 2 and training 6 for each weight and token
          ├──> memory    weights, gradients, optimizer, activations: bytes by part
          ├──> peak      the fullest moment of an update, under a recipe
          └──> tracker   the same, counted on real or simulated tensors

A prediction is a sum over the formulas of `transformer`; a measurement counts what torch did. The
tests hold the two together: parameters and FLOPs exactly, memory to a few per cent.
"""

from labkit.accounting.memory import (
    Kept,
    Memory,
    Precision,
    kept_bytes,
    measure_memory,
    predict_memory,
)
from labkit.accounting.peak import Peak, Recipe, predict_moments, predict_peak
from labkit.accounting.tracker import PeakTracker, measure_peak, simulate_peak
from labkit.models.counts import (
    count_parameters,
    flop_utilisation,
    flops_per_token,
    forward_flops,
    measure_flops,
    parameters,
    parameters_by_part,
)

__all__ = [
    "Kept",
    "Memory",
    "Peak",
    "PeakTracker",
    "Precision",
    "Recipe",
    "count_parameters",
    "flop_utilisation",
    "flops_per_token",
    "forward_flops",
    "kept_bytes",
    "measure_flops",
    "measure_memory",
    "measure_peak",
    "parameters",
    "parameters_by_part",
    "predict_memory",
    "predict_moments",
    "predict_peak",
    "simulate_peak",
]

"""What a model costs, predicted from its config and measured: parameters, FLOPs, bytes.

    config ──> counts    parameters ──> FLOPs, forward 2 and training 6 for each weight and token
          ├──> memory    weights, gradients, optimizer, activations: bytes by part
          ├──> peak      the fullest moment of an update, under a recipe
          └──> tracker   the same, counted on real or simulated tensors

A prediction is a sum over the formulas of `transformer`; a measurement counts what torch did. The
tests hold the two together: parameters and FLOPs exactly, memory to a few per cent.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Which source token each answer token reads: the weights of cross-attention, for a picture.

    source, answer so far ──> decoder ──┬── what enters each cross-attention ──> q, k ──> weights
                                        └── its output, untouched

The fused kernel that trains and answers never stores the weights, so they are computed once more by
hand, with the formula that a test holds to the kernel's output. A weight says what was *read*; that
is not why a token was written (Jain and Wallace 2019, arXiv:1902.10186).

Legend: L layers, B batch, H heads, T answer positions, S source positions, K head width, D model
width.

Source: Bahdanau et al. 2015, arXiv:1409.0473, figure 3 (the first such picture).
"""

from typing import Any

import torch
from torch import Tensor

from labkit.models.attention import CrossAttention, Source, scaled_dot_product_attention
from labkit.models.encoder_decoder import EncoderDecoder


def cross_attention_by_hand(
    layer: CrossAttention, x_BTD: Tensor, source: Source
) -> tuple[Tensor, Tensor]:
    """What a cross-attention layer computes, written out, with its weights.

    Args:
        layer: of a model in evaluation mode.
        x_BTD: what enters it.
        source: what it reads.

    Returns:
        (out_BTD, weights_BHTS); each row of weights sums to 1 over the real source tokens.
    """
    H, G = layer.num_heads, layer.num_kv_heads
    q_BHTK = layer.q(x_BTD).unflatten(-1, (H, layer.head_width)).transpose(1, 2)
    kv_BSNK = layer.kv(source.hidden_BSD).unflatten(-1, (2 * G, layer.head_width))
    k_BGSK, v_BGSK = kv_BSNK.transpose(1, 2).chunk(2, dim=1)
    k_BHSK, v_BHSK = (x.repeat_interleave(H // G, dim=1) for x in (k_BGSK, v_BGSK))
    out_BHTK, weights_BHTS = scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, source.mask_B11S)
    return layer.out(out_BHTK.transpose(1, 2).flatten(2)), weights_BHTS


@torch.no_grad()
def cross_weights(
    model: EncoderDecoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
) -> Tensor:
    """The weights of every cross-attention layer of one forward pass, dropout off.

    Row t is of the position that *predicts* answer token t: with `shift_right` labels, weights of
    row t say what was read before label t was written.

    Args:
        model, input_ids, attention_mask, decoder_input_ids: as in `EncoderDecoder.forward`.

    Returns:
        weights_LBHTS, 0 at padding of the source.
    """
    found: list[Tensor] = []

    def look(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(cross_attention_by_hand(layer, inputs[0], inputs[1])[1])

    layers = [module for module in model.modules() if isinstance(module, CrossAttention)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    was_training = model.training
    model.eval()
    try:
        model(input_ids, attention_mask, decoder_input_ids)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return torch.stack(found)

"""The fullest moment of an update, predicted from the shape and the recipe.

    forward ──> loss ──> backward of the loss ──> last block ──> first block ──> embedding ──> step
       activations pile up,                       gradients pile up, activations go
       workspace of the loss                      workspace of a block

The peak is the largest of these moments, not the sum of all parts: a saving in one of them is worth
nothing while another is fuller.

Legend: N = B·T tokens, D model width, F feed-forward width, V vocabulary, C positions of a chunk.

Sources: Rajbhandari et al. 2020, section 3; Chen et al. 2016 (checkpointing); Lv et al. 2023 (the
step during the backward pass); Dettmers et al. 2022 (8-bit moments).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from labkit.accounting.memory import Precision, kept_bytes
from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.counts import parameters, parameters_by_part
from labkit.objectives.losses import positions_at_once
from labkit.optim.adamw8bit import state_bytes

OPTIMIZERS = ("adamw", "adamw8bit", "adamw8bit_paged", "sgd")


class Peak(NamedTuple):
    """Bytes of an update at its fullest moment, by part."""

    weights: int
    """The parameters."""
    gradients: int
    """Those that exist at that moment."""
    optimizer: int
    """Moments of every trainable parameter."""
    activations: int
    """What the backward pass still needs, autocast's copies of the weights included."""
    workspace: int
    """Tensors that live for a few operations: logits of a chunk, gradients of activations."""

    @property
    def total(self) -> int:
        """All parts, in bytes."""
        return sum(self)


@dataclass(frozen=True)
class Recipe:
    """How a full fine-tuning run spends and saves memory."""

    precision: Precision = "bf16"
    """Of the matrix products."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Of parameters, gradients and unquantised moments; plain bf16 rounds small updates away."""
    optimizer: str = "adamw"
    """adamw (two moments), adamw8bit, adamw8bit_paged (moments on the host) or sgd (momentum)."""
    checkpointing: bool = False
    """Keep only each block's input; compute the block again in the backward pass."""
    step_in_backward: bool = False
    """Update and free each gradient as soon as it is complete."""
    accumulation: bool = False
    """Gradients of earlier micro-batches exist during the forward pass."""
    chunked_loss: bool = True
    """Never hold all logits: `losses.chunked_cross_entropy`."""
    chunk: int | None = None
    """Positions of a chunk; None: as many as the loss takes for the vocabulary."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise LabError(f"precision is {self.precision!r}; choose fp32, bf16 or fp16")
        if self.weights not in ("fp32", "bf16"):
            raise LabError(f"weights is {self.weights!r}; choose fp32 or bf16")
        if self.optimizer not in OPTIMIZERS:
            raise LabError(f"optimizer is {self.optimizer!r}; choose {', '.join(OPTIMIZERS)}")
        if self.step_in_backward and self.accumulation:
            raise LabError(
                "step_in_backward is True with accumulation: a gradient that is used up cannot add "
                "up; choose one of the two"
            )


def predict_moments(
    config: TransformerConfig,
    batch_size: int,
    length: int,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
) -> dict[str, Peak]:
    """Bytes by part at each moment of an update of a labkit decoder with a language-model head.

    Args:
        config: The shape.
        batch_size: B of one micro-batch.
        length: T, tokens in each sequence.
        recipe: The settings; None: the defaults.
        device: "cpu" or "cuda", because their attention kernels keep different things.

    Returns:
        {"loss", "backward of the loss", "last block", "first block", "embedding", "step"} -> parts.

    Raises:
        LabError: Not a decoder with a language-model head.
    """
    recipe = recipe or Recipe()
    if config.kind != "decoder" or not config.has_lm_head:
        raise LabError(
            f"kind is {config.kind!r} with{'' if config.has_lm_head else 'out'} a language-model "
            "head; the peak of a decoder language model is predicted, others are measured by "
            "measure_peak or simulate_peak"
        )
    N, D, V = batch_size * length, config.d_model, config.vocab_size
    w = 4 if recipe.weights == "fp32" else 2
    narrow = recipe.precision != "fp32" or w == 2
    e = 2 if narrow else 4
    kept = kept_bytes(
        config, batch_size, length, recipe.precision, "labkit", recipe.chunked_loss, device, w
    )
    count = parameters(config)
    gradients, optimizer = w * count, _optimizer_bytes(config, recipe, w)
    before = gradients if recipe.accumulation else 0

    if recipe.checkpointing:
        inside = kept.outside + config.num_layers * kept.block_input
    else:
        inside = kept.outside + config.num_layers * kept.block
    casts = kept.weight_copies
    waiting = 0 if recipe.checkpointing else casts  # a checkpoint forgets the copies
    recomputed = 0
    if recipe.checkpointing:
        recomputed = kept.block - kept.block_input + casts // config.num_layers

    vocabulary, stream = V * D, kept.block_input
    if recipe.chunked_loss:
        C = min(recipe.chunk or positions_at_once(V), N)
        cast = e * vocabulary if narrow and w == 4 else 0
        softmax = 8 * C * V
        product = (6 if narrow else 4) * C * V + e * vocabulary
        in_loss = 4 * vocabulary + cast + stream + max(softmax, product)
        loss_backward = 4 * vocabulary + (2 * vocabulary if w == 2 else 0) + stream
    else:
        in_loss = kept.head + (e * N * V if narrow else 4 * N * V) + (4 * N * V if narrow else 0)
        loss_backward = 8 * N * V
    width = config.ffn_width * (2 if config.activation == "swiglu" else 1)
    in_block = e * N * width + 2 * stream
    table = w * vocabulary  # gradient of the vocabulary matrix

    def at(gradients: int, activations: int, workspace: int) -> Peak:
        return Peak(w * count, gradients, optimizer, activations, workspace)

    # While the blocks run backward, a tied table's gradient waits outside of .grad.
    untied = table if not config.tied_embeddings and not recipe.step_in_backward else 0
    held = max(before, untied)
    buffer = table if config.tied_embeddings else 0
    before_table = max(before, 0 if recipe.step_in_backward else gradients - buffer)
    at_end = table if recipe.step_in_backward else gradients
    one_block = kept.outside + (stream if recipe.checkpointing else kept.block)
    forward = kept.head if not recipe.chunked_loss else 0
    return {
        "loss": at(before, inside + casts + forward, in_loss - forward),
        "backward of the loss": at(before, inside + waiting + kept.head, loss_backward),
        "last block": at(held, inside + waiting, buffer + recomputed + in_block),
        "first block": at(before_table, one_block, buffer + recomputed + in_block),
        "embedding": at(at_end, stream + kept.outside, buffer + table),
        "step": at(0 if recipe.step_in_backward else gradients, 0, 0),
    }


def predict_peak(
    config: TransformerConfig,
    batch_size: int,
    length: int,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
) -> Peak:
    """The fullest of `predict_moments`; arguments and errors as there."""
    moments = predict_moments(config, batch_size, length, recipe, device=device)
    return max(moments.values(), key=lambda peak: peak.total)


def _optimizer_bytes(config: TransformerConfig, recipe: Recipe, w: int) -> int:
    count = parameters(config)
    if recipe.optimizer == "adamw8bit_paged":
        return 0
    if recipe.optimizer != "adamw8bit":
        return (2 if recipe.optimizer == "adamw" else 1) * w * count
    part = parameters_by_part(config)
    vectors = part["norms"]
    return state_bytes(count - vectors) + 8 * vectors

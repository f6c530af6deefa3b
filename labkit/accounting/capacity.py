"""Will it fit? Named models on named GPUs, and the first change that makes room.

    model, GPU, batch, length, recipe ──> `accounting.predict_peak` + reserve ──> against the GPU
                      no ──> remedies, one alone, then together ──> the first that makes it fit

Every figure follows from a shape: numbers of layers, widths and heads as the models' config files
give them.

Sources: the config.json of each model; GPU memory as `nvidia-smi` reports it.
"""

import dataclasses
from typing import NamedTuple

from labkit.accounting import Peak, Recipe, predict_peak
from labkit.errors import LabError
from labkit.models.config import TransformerConfig

GIB = 2**30
RESERVE = GIB
"""An allowance, not a measurement: CUDA's context, the kernels' own buffers, fragments."""


def _gpt2(**shape: int) -> TransformerConfig:
    return TransformerConfig.gpt2(dropout=0.0, **shape)


def _llama(vocab_size: int, context_length: int, tied: bool, **shape: int) -> TransformerConfig:
    return TransformerConfig.llama(
        vocab_size=vocab_size, context_length=context_length, tied_embeddings=tied, **shape
    )


MODELS: dict[str, TransformerConfig] = {
    "GPT-2 (124 M)": _gpt2(),
    "GPT-2 medium (355 M)": _gpt2(d_model=1024, num_layers=24, num_heads=16),
    "GPT-2 large (774 M)": _gpt2(d_model=1280, num_layers=36, num_heads=20),
    "GPT-2 XL (1.6 B)": _gpt2(d_model=1600, num_layers=48, num_heads=25),
    "SmolLM2-135M": _llama(
        49152, 8192, True, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, d_ff=1536
    ),
    "TinyLlama-1.1B": _llama(
        32000, 2048, False, d_model=2048, num_layers=22, num_heads=32, num_kv_heads=4, d_ff=5632
    ),
    "Llama-3.2-1B": _llama(
        128256, 131072, True, d_model=2048, num_layers=16, num_heads=32, num_kv_heads=8, d_ff=8192
    ),
    "Llama-3.2-3B": _llama(
        128256, 131072, True, d_model=3072, num_layers=28, num_heads=24, num_kv_heads=8, d_ff=8192
    ),
    "Llama-2-7B": _llama(
        32000, 4096, False, d_model=4096, num_layers=32, num_heads=32, d_ff=11008
    ),
    "Llama-3.1-8B": _llama(
        128256, 131072, False, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14336
    ),
}  # fmt: skip

GPUS: dict[str, int] = {
    "T4 (16 GB)": 15360 * 2**20,
    "RTX 4090 (24 GB)": 24564 * 2**20,
    "A100 (40 GB)": 40960 * 2**20,
    "A100 (80 GB)": 81920 * 2**20,
    "H100 (80 GB)": 81559 * 2**20,
    "H200 (141 GB)": 143771 * 2**20,
}

#: What to try: each one alone, then one on top of the other. What costs least comes first.
REMEDIES: tuple[tuple[str, dict], ...] = (
    ("chunk the loss", {"chunked_loss": True}),
    ("run the products in bf16", {"precision": "bf16"}),
    ("micro-batches of 1, accumulated", {"accumulation": True}),
    ("activation checkpointing", {"checkpointing": True}),
    ("8-bit optimizer state", {"optimizer": "adamw8bit"}),
    ("step in backward, no accumulation", {"accumulation": False, "step_in_backward": True}),
    ("weights in bf16 (round them stochastically)", {"weights": "bf16"}),
)


class Fit(NamedTuple):
    """The answer."""

    fits: bool
    peak: Peak
    """Predicted bytes by part."""
    capacity: int
    """Bytes of the GPU."""
    reserve: int
    """Bytes set aside for what is not predicted."""
    remedies: tuple[str, ...]
    """The changes, in order, with which it fits; empty if it fits as asked, or never."""

    @property
    def verdict(self) -> str:
        """One sentence."""
        need = f"{(self.peak.total + self.reserve) / GIB:.1f} of {self.capacity / GIB:.1f} GiB"
        if self.fits:
            return f"fits: {need}"
        if self.remedies:
            return f"does not fit: {need}; it would with: {'; '.join(self.remedies)}"
        return f"does not fit: {need}; shorter sequences, a smaller model or more GPUs"


def will_it_fit(
    model: str | TransformerConfig,
    gpu: str | int,
    batch_size: int,
    length: int,
    recipe: Recipe | None = None,
) -> Fit:
    """Predict the peak of a full fine-tuning update and hold it against a GPU.

    Args:
        model: one of `MODELS`, or any decoder's config.
        gpu: one of `GPUS`, or a number of bytes.
        batch_size: sequences of an update; under accumulation micro-batches of 1 are run.
        length: tokens of a sequence, at most the model's context.
        recipe: the settings; None: bf16 autocast over fp32 weights, AdamW.

    Returns:
        Parts, verdict and the first list of `REMEDIES` that makes it fit.

    Raises:
        LabError: an unknown name, or a length beyond the context.
    """
    recipe = recipe or Recipe()
    config = _named(MODELS, model, "model") if isinstance(model, str) else model
    capacity = _named(GPUS, gpu, "gpu") if isinstance(gpu, str) else gpu
    if not 1 <= length <= config.context_length:
        raise LabError(f"length {length} is out of range: choose 1 to {config.context_length}")
    if batch_size < 1:
        raise LabError(f"batch_size {batch_size} is out of range: choose at least 1")

    def peak_under(recipe: Recipe) -> Peak:
        examples = 1 if recipe.accumulation else batch_size
        return predict_peak(config, examples, length, recipe, device="cuda")

    def fits(peak: Peak) -> bool:
        return peak.total + RESERVE <= capacity

    peak = peak_under(recipe)
    remedies: tuple[str, ...] = ()
    if not fits(peak):
        chains = [[remedy] for remedy in REMEDIES]
        chains += [list(REMEDIES[: count + 1]) for count in range(1, len(REMEDIES))]
        for chain in chains:
            changed, names = _apply(chain, recipe, batch_size)
            if names and fits(peak_under(changed)):
                remedies = names
                break
    return Fit(fits(peak), peak, capacity, RESERVE, remedies)


def _apply(
    chain: list[tuple[str, dict]], recipe: Recipe, batch_size: int
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with those changes of the chain that change something, and their names."""
    names = []
    for name, change in chain:
        already = all(getattr(recipe, field) == value for field, value in change.items())
        useless = (
            (change.get("precision") == "bf16" and recipe.precision != "fp32")
            or (change.get("optimizer") == "adamw8bit" and recipe.optimizer != "adamw")
            or (change.get("accumulation") and (batch_size == 1 or recipe.step_in_backward))
        )
        if not already and not useless:
            recipe = dataclasses.replace(recipe, **change)
            names.append(name)
    return recipe, tuple(names)


def largest_batch(
    model: str | TransformerConfig, gpu: str | int, length: int, recipe: Recipe | None = None
) -> int:
    """The largest batch that fits without accumulation, by bisection; 0 if none does."""
    low, high = 0, 1
    while high < 2**20 and will_it_fit(model, gpu, high, length, recipe).fits:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if will_it_fit(model, gpu, middle, length, recipe).fits:
            low = middle
        else:
            high = middle
    return low


def _named(table: dict, name: str, kind: str):
    if name not in table:
        raise LabError(f"{kind} {name!r} is unknown: choose {', '.join(table)}")
    return table[name]

"""What equal minutes of training buy: bits per byte of held-out text, recipe by recipe.

    web_bible ──> tokenizer ──> windows ──> seconds of an update ──> as many updates as fit
                                                         ──> bits per byte of the validation text

The ladder starts at what a tutorial does, a GPT-2 shape with AdamW under `transformers.Trainer`,
and changes one thing at a time. Tokenizers differ in size, so the unit is bits per byte. The time
is that of training alone, compilation included; tokenizing and the last evaluation are not in it.
"""

import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from labkit.batches import Batches, Windows
from labkit.bench.pretraining import Unshifted
from labkit.bench.rivals import labkit_moments, trainer_moments
from labkit.evaluation.language import bits_per_byte
from labkit.models import counts, huggingface
from labkit.models.config import TransformerConfig
from labkit.models.transformer import Transformer
from labkit.objectives import tasks as objectives
from labkit.text import corpora
from labkit.text.tokenizers import Tokenizer, train_bpe
from labkit.training.loop import mean_loss

CALIBRATION = 12
"""Updates that are timed, after a first one, to learn how many fit."""


@dataclass(frozen=True)
class Recipe:
    """Everything that one is free to choose."""

    name: str
    trainer: bool = False
    """`transformers.Trainer` instead of labkit's loop."""
    shape: str = "gpt2"
    """gpt2: learned positions, LayerNorm, GELU; llama: rotary, RMSNorm, SwiGLU."""
    vocab_size: int = 8192
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    context_length: int = 256
    batch_size: int = 32
    """Windows in an update."""
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    """Peak."""
    schedule: str = "linear"
    min_learning_rate_ratio: float = 0.0
    warmup: float = 0.0
    """Share of the updates."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    compile: bool = False

    @property
    def config(self) -> TransformerConfig:
        """The model's shape."""
        make = TransformerConfig.gpt2 if self.shape == "gpt2" else TransformerConfig.llama
        more: dict[str, Any] = {"dropout": 0.0} if self.shape == "gpt2" else {}
        return make(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            context_length=self.context_length,
            **more,
        )


class Outcome(NamedTuple):
    """What a recipe reached."""

    bits_per_byte: float
    """Of the validation text, each window read from its start."""
    seconds: float
    """Of training, compilation included."""
    updates: int
    tokens: int
    """Read in training."""
    parameters: int


#: With the Trainer's own batch of 8: of 8 and 32 windows the better one.
RIVAL = Recipe("Trainer, GPT-2 shape, AdamW", trainer=True, batch_size=8)
LADDER = (
    RIVAL,
    looped := replace(RIVAL, name="labkit's loop", trainer=False),
    modern := replace(looped, name="+ Llama shape", shape="llama"),
    muon := replace(modern, name="+ Muon", optimizer="muon", learning_rate=1e-2, warmup=0.04),
    larger := replace(muon, name="+ batch of 16", batch_size=16),
    replace(larger, name="+ torch.compile", compile=True),
)
OURS = replace(LADDER[-1], name="labkit")


def smaller(recipe: Recipe) -> Recipe:
    """The same recipe for a model that trains in seconds."""
    shape = {"vocab_size": 512, "d_model": 64, "num_layers": 2, "num_heads": 2}
    return replace(recipe, **shape, context_length=64, batch_size=8, compile=False)


def run(recipe: Recipe, seconds: float, precision: str) -> Outcome:
    """Train for about `seconds` and evaluate.

    Args:
        recipe: what to train and how.
        seconds: of training; how many updates fit is measured first, on a model thrown away.
        precision: `fp32`, `bf16` or `fp16`, of every recipe alike.
    """
    splits = corpora.load("web_bible")
    tokenizer = train_bpe(splits["train"]["text"], recipe.vocab_size)
    recipe = replace(recipe, vocab_size=tokenizer.vocab_size)
    tokens = _tokens(tokenizer, splits["train"]["text"])
    first, *rest = np.diff(_train(_model(recipe), recipe, tokens, CALIBRATION + 1, precision))
    each = float(np.median(rest))
    steps = max(1, 1 + int((seconds - first) / each))
    model = _model(recipe)
    started = time.perf_counter()
    _train(model, recipe, tokens, steps, precision)
    spent = time.perf_counter() - started
    return Outcome(
        held_out(model, tokenizer, splits["validation"]["text"], recipe.context_length, precision),
        spent,
        steps,
        steps * recipe.batch_size * recipe.context_length,
        counts.count_parameters(model),
    )


def _tokens(tokenizer: Tokenizer, texts: Any) -> np.ndarray:
    rows = tokenizer.encode_batch(list(texts))
    return np.concatenate([[*row, tokenizer.end_of_text_id] for row in rows])


def _model(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    model = Transformer(recipe.config)
    return huggingface.to_huggingface(model) if recipe.trainer else model


def _train(
    model: nn.Module, recipe: Recipe, tokens: np.ndarray, steps: int, precision: str
) -> list[float]:
    warmup = int(recipe.warmup * steps)
    if recipe.trainer:
        return trainer_moments(
            model,
            Unshifted(tokens, recipe.context_length),
            steps,
            recipe.batch_size,
            precision,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adam_beta1=recipe.betas[0],
            adam_beta2=recipe.betas[1],
            lr_scheduler_type=recipe.schedule,
            warmup_steps=warmup,
        )
    return labkit_moments(
        model,
        objectives.causal_lm,
        Batches(Windows(tokens, recipe.context_length), recipe.batch_size),
        steps,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        min_learning_rate_ratio=recipe.min_learning_rate_ratio,
        schedule=recipe.schedule,
        warmup_steps=warmup,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        precision=precision,
        compile=recipe.compile,
    )


def held_out(
    model: nn.Module, tokenizer: Tokenizer, texts: Any, context_length: int, precision: str
) -> float:
    """Bits per byte of texts, read in windows one after the other.

    Args:
        model: a causal model of labkit or `transformers`.
        tokenizer: its tokenizer.
        texts: documents.
        context_length: tokens in a window; the first token of all is not predicted.
        precision: of the forward pass.
    """
    windows = Windows(_tokens(tokenizer, texts), context_length)
    loss, count = mean_loss(model, objectives.causal_lm, Batches(windows, 16), precision=precision)
    read = windows.tokens[1 : len(windows) * context_length + 1]
    return bits_per_byte(loss * count, tokenizer.count_bytes(read.tolist()))

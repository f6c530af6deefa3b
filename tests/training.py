"""Small problems that several tests train on; run as a script, one rank of a distributed run.

python -m torch.distributed.run --nproc-per-node 2 tests/training.py KIND PARALLEL OUT OPTIMIZER...
"""

import dataclasses
import sys
from pathlib import Path

import torch

from labkit import runtime
from labkit.batches import Batches, Pad, stack
from labkit.models import EncoderDecoder, Transformer, TransformerConfig
from labkit.models.adapting import Strategy, apply
from labkit.objectives import causal_lm
from labkit.training import TrainConfig, train

VOCAB = 31


def tiny_model(dropout: float = 0.0, seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "context_length": 16, "d_model": 16, "num_layers": 2}
    config = TransformerConfig.llama(num_heads=2, d_ff=32, **{**shape, **changes})
    return Transformer(dataclasses.replace(config, dropout=dropout))


def ragged_batches(batch_size: int = 8, examples: int = 40, seed: int = 0) -> Batches:
    """Sequences of very different length, so that micro-batches hold unequal target counts."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(examples):
        length = 3 if i % 2 else 16
        ids = torch.randint(VOCAB, (length,), generator=generator).cumsum(0) % VOCAB
        items.append({"input_ids": ids[:-1], "labels": ids[1:]})
    return Batches(items, batch_size, Pad(0), seed=seed)


def tiny_encoder_decoder(seed: int = 0) -> EncoderDecoder:
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "context_length": 16, "d_model": 16, "num_layers": 2}
    return EncoderDecoder(TransformerConfig.bart(num_heads=2, d_ff=32, dropout=0.0, **shape))


def answered_batches(batch_size: int = 8, examples: int = 40) -> Batches:
    """Sources with answers of which every other one counts three targets instead of ten."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for i in range(examples):
        source = torch.randint(VOCAB, (12,), generator=generator)
        labels = source.flip(0)[:10].clone()
        given = torch.cat((torch.zeros(1, dtype=torch.long), labels[:-1]))
        if i % 2:
            labels[3:] = -100
        items.append({"input_ids": source, "decoder_input_ids": given, "labels": labels})
    return Batches(items, batch_size, stack)


def tiny_lora(seed: int = 0) -> Transformer:
    model = tiny_model(seed=seed)
    apply(model, Strategy("lora", rank=2))
    return model


def tiny_prefix(seed: int = 0) -> Transformer:
    model = tiny_model(seed=seed, context_length=32)
    apply(model, Strategy("prefix", length=3))
    return model


#: What two processes train: a model and its batches.
PROBLEMS = {
    "lora": (tiny_lora, ragged_batches),
    "prefix": (tiny_prefix, ragged_batches),
    "decoder": (tiny_model, ragged_batches),
    "encoder_decoder": (tiny_encoder_decoder, answered_batches),
}


def config(**changes) -> TrainConfig:
    base = {"steps": 6, "learning_rate": 3e-3, "warmup_steps": 2, "precision": "fp32"}
    return TrainConfig(**{**base, **changes})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def main() -> None:
    kind, parallel, out, *optimizers = sys.argv[1:]
    torch.set_num_threads(1)
    make, batches = PROBLEMS[kind]
    with runtime.distributed() as here:
        for name in optimizers:
            model, folder = make(seed=0), Path(out) / name
            settings = config(
                parallel=parallel, out=folder, save_every=3, micro_batch_size=2, optimizer=name
            )
            result = train(model, causal_lm, batches(), settings, validation=batches())
            if here.rank == 0:
                torch.save({"losses": [r.loss for r in result.history]}, folder / "losses.pt")


if __name__ == "__main__":
    main()

"""How `labkit finetune` trains where its user does not say: settled from the data and the model.

    examples, lengths, width ──> Recipe: batch, length, updates, rate, when to stop

Measured for classifiers on Reuters R8 with 100 and 800 texts and 20 newsgroups with 800, one draw
of each: see docs/LOG.md. More texts, other models and language models take the same rules on trust.

Sources: Kumar et al. 2022, arXiv:2202.10054 (a fit on frozen vectors first); Mosbach et al. 2021,
arXiv:2006.04884 (few examples want more updates, not fewer); Yang et al. 2022, arXiv:2203.03466
(Adam's rate falls with the width).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from labkit.batches import chat_ids
from labkit.commands.options import Finetune, check
from labkit.commands.tasks import Task
from labkit.models.config import context_length
from labkit.text.conversations import Preference
from labkit.text.tokenizers import Tokenizer

#: A classifier gets at least so many updates, however few its examples are.
FEWEST_UPDATES = 150
EPOCHS = 3.0
#: From here on a batch of 32; below it a batch of 16 gives twice the updates of an epoch.
MANY_EXAMPLES = 2000
#: Tasks of labels: few examples want more updates.
LABELS = ("classification", "tagging")
#: Tasks that put a new layer on an encoder, which wants a higher rate.
HEADED = (*LABELS, "qa")
#: Most tokens that are read of a text, unless asked for more.
MOST_TOKENS = {
    "classification": 256, "instruction": 512, "text": 256, "tagging": 256, "qa": 256,
    "seq2seq": 512, "chat": 512, "dpo": 512,
}  # fmt: skip
#: Adam's peak rate for a classifier of this width; others in inverse proportion.
RATE, WIDTH = 1e-4, 384
#: A language model's; preferences are learned by small steps, or both answers become unlikely.
LM_RATE = {"dpo": 5e-6}
#: Peak rate of a strategy / that of full fine-tuning.
TIMES = {"bitfit": 10.0, "adapters": 10.0, "lora": 10.0}
#: Peak rate where nothing pretrained trains: on an encoder, on a language model. That of head is on
#: trust.
OWN_RATE = {"head": (1e-3, 1e-3), "prompt": (1e-2, 1e-1), "prefix": (1e-2, 3e-2)}
#: Fewer validation examples than these do not tell weights apart: the last ones are kept.
ENOUGH_TO_CHOOSE = 50
#: Validation at most so often in a run.
EVALUATIONS = 20
#: Texts from which the length is settled.
TEXTS_TO_MEASURE = 2000


@dataclass(frozen=True)
class Sizes:
    """What follows from the data and the model before there are batches; named as the options."""

    batch_size: int
    max_length: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """The run in updates; named as the loop's settings."""

    steps: int
    warmup_steps: int
    learning_rate: float
    eval_every: int
    patience: int
    restore_best: bool


def sizes(
    options: Finetune, task: Task, model: nn.Module, tokenizer: Tokenizer, ranks: int = 1
) -> Sizes:
    """Batch, length and rate: as asked, else from the data and the model."""
    batch_size, length, rate = options.batch_size, options.max_length, options.learning_rate
    if batch_size is None:
        batch_size = 16 if len(task.texts["train"]) < MANY_EXAMPLES else 32
        batch_size = -(-batch_size // ranks) * ranks
    if length is None:
        length = min(_length(task, tokenizer), MOST_TOKENS[task.kind])
    if rate is None:
        own = OWN_RATE.get(options.strategy)
        rate = own[task.kind not in HEADED] if own else _rate(task, model)
        rate = float(f"{TIMES.get(options.strategy, 1.0) * rate:.1e}")
    room = context_length(model)
    if options.strategy in ("prompt", "prefix"):
        room -= options.prompt_length
        check(room >= 2, options, "prompt_length", f"at most {room + options.prompt_length - 2}")
    return Sizes(batch_size, min(length, room), rate)


def recipe(options: Finetune, chosen: Sizes, train: int, validation: int, kind: str) -> Recipe:
    """How long to train and what to keep.

    Args:
        options: what the user asked for.
        chosen: from `sizes`.
        train, validation: numbers of examples.
        kind: of the task.
    """
    per_epoch = -(-train // chosen.batch_size)
    epochs = options.epochs
    if epochs is None:
        fewest = FEWEST_UPDATES if kind in LABELS else 0
        epochs = max(EPOCHS, fewest / per_epoch)
    steps = max(1, math.ceil(epochs * per_epoch))
    eval_every = max(1, per_epoch // 2, steps // EVALUATIONS)
    choose = kind not in LABELS or validation >= ENOUGH_TO_CHOOSE
    patience = options.patience
    if patience is None:
        patience = max(3, steps // eval_every // 4) if choose else 0
    choose = choose or patience > 0
    return Recipe(
        steps=steps,
        warmup_steps=int(options.warmup * steps),
        learning_rate=chosen.learning_rate,
        eval_every=eval_every,
        patience=patience,
        restore_best=choose if options.restore_best is None else options.restore_best,
    )


def _rate(task: Task, model: nn.Module) -> float:
    if task.kind not in HEADED:
        return LM_RATE.get(task.kind, 5e-5)
    config: Any = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or 768
    return float(f"{RATE * WIDTH / width:.1e}")


def _length(task: Task, tokenizer: Tokenizer) -> int:
    """What all training examples need, nine of ten of labelled ones, in tokens, up to eights."""
    rows = np.random.default_rng(0).permutation(len(task.texts["train"]))[:TEXTS_TO_MEASURE]
    if task.kind in ("chat", "dpo"):
        needed = max(conversation_tokens(tokenizer, task.answers["train"][i]) for i in rows)
        return max(16, -(-needed // 8) * 8)
    parts = [task.texts["train"]]
    if task.kind in ("instruction", "seq2seq"):
        parts.append(task.answers["train"])
    if task.pairs:
        parts.append(task.pairs["train"])
    lengths = np.zeros(len(rows))
    for part in parts:
        lengths += [len(ids) for ids in tokenizer.encode_batch([part[i] for i in rows])]
    if task.kind == "instruction":  # and what the turns of a conversation add to both
        lengths += len(chat_ids(tokenizer, "a")) - len(tokenizer.encode("a"))
    needed = int(np.quantile(lengths, 0.9 if task.kind in LABELS else 1.0)) + 8
    return max(16, -(-needed // 8) * 8)


def conversation_tokens(tokenizer: Tokenizer, row: Any) -> int:
    """Tokens of a conversation, or of the longer side of a preference."""
    if isinstance(row, Preference):
        sides = ([*row.prompt, *side] for side in (row.chosen, row.rejected))
        return max(conversation_tokens(tokenizer, side) for side in sides)
    return len(tokenizer.apply_chat_template(row, add_generation_prompt=False))

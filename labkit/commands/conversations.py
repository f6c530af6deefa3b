"""`--task chat` and `--task dpo`, and `labkit evaluate` on such files: conversations, preferences.

    chat   {"messages": [...]}               ──> loss on what the assistant says, its end included
    dpo    {"prompt", "chosen", "rejected"}  ──> the start reads the pairs ──> DPO ──> who gained

Both are JSON lines in the forms that TRL reads (`labkit.text.conversations`). Beside the scores of
the test examples stand those of the model as it came; `evaluate` has no start to compare with, and
says which of two answers is likelier, as a whole and per token, beside which one is shorter.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import (
    IGNORE_INDEX,
    Batch,
    Batches,
    Example,
    Pad,
    PadPreferences,
    conversation_example,
    preference_example,
)
from labkit.commands.learning import Learner
from labkit.commands.options import Evaluate, Finetune, check
from labkit.commands.recipe import conversation_tokens
from labkit.commands.shell import note, say, table
from labkit.commands.tasks import Task, file_splits
from labkit.errors import LabError
from labkit.evaluation import preferred, with_reference
from labkit.evaluation.intervals import Interval
from labkit.evaluation.language import mean_loss
from labkit.evaluation.preference import ahead, pair_log_probabilities
from labkit.generation.loaded import LanguageModel
from labkit.models.config import context_length
from labkit.objectives import DPO, causal_lm
from labkit.text import files
from labkit.text.conversations import (
    Preference,
    read_conversations,
    read_preferences,
    row_kind,
)
from labkit.text.corpora import SPLITS


def read_chats(options: Finetune) -> Task:
    """Conversations ("answers") of all splits, by what the user asks first ("texts").

    Raises:
        LabError: a row that is none, or a split without one.
    """
    return _task("chat", read_conversations, options)


def read_pairs(options: Finetune) -> Task:
    """Preferences, in the same way."""
    return _task("dpo", read_preferences, options)


def _task(kind: str, reader: Callable[[str | Path], list[Any]], options: Finetune) -> Task:
    def rows(path: str | Path) -> list[tuple[str, Any]]:
        return [(_beginning(row), row) for row in reader(path)]

    splits = file_splits(options, rows, key=lambda row: row[0])
    texts = {split: [row[0] for row in splits[split]] for split in SPLITS}
    return Task(kind, [], texts, {split: [row[1] for row in splits[split]] for split in SPLITS})


def _beginning(row: Any) -> str:
    """What the user asks first: conversations that begin alike are in one split."""
    turns = row.prompt if isinstance(row, Preference) else row
    return next(turn["content"] for turn in turns if turn["role"] == "user")


class _Talks(Learner):
    """What ends as a model that one talks with."""

    @property
    def use(self) -> str:
        return "text-generation"

    def next_step(self) -> str:
        return f"next: labkit generate {self.options.out} --chat"


class Chats(_Talks):
    """Conversations: the loss counts every turn of the assistant."""

    def batches(self, split: str) -> Batches:
        limit = self.sizes.max_length
        whole = [conversation_example(self.tokenizer, row) for row in self.task.answers[split]]
        cut = [{key: ids[:limit] for key, ids in example.items()} for example in whole]
        examples = [e for e in cut if (e["labels"] != IGNORE_INDEX).any()]
        if not examples:
            raise LabError(
                f"no answer of the {len(cut)} {split} conversations begins within max_length "
                f"{limit}: choose a longer one"
            )
        over = sum(len(example["input_ids"]) > limit for example in whole)
        if over:
            left = len(cut) - len(examples)
            note(
                f"{over} {split} conversations are longer than {limit} tokens: cut"
                + (f", {left} of them before an answer begins: left out" if left else "")
            )
        lengths = [len(example["input_ids"]) for example in examples]
        seed, collate = self.options.train.seed, Pad(self.tokenizer.pad_id)
        return Batches(
            examples, self.sizes.batch_size, collate, seed=seed, lengths=lengths, bucket=1
        )

    def prepare(self, here: runtime.World) -> None:
        self._before = self._loss(self.model) if self.options.baselines else None

    def _loss(self, model: nn.Module) -> dict[str, Any]:
        device = runtime.pick_device(self.options.train.device)
        loss, count = mean_loss(
            model.to(device),
            causal_lm,
            self.batches("test"),
            precision=self.options.train.precision,
        )
        return {"loss": loss, "tokens": count}

    def test(self, model: nn.Module) -> dict[str, Any]:
        test = self._loss(model)
        scores = {"fine-tuned": test}
        if self._before is not None:
            scores["as it came"] = self._before
        say("\n" + table(self._rows(scores)))
        return {"test": test, "baselines": {"as it came": self._before} if self._before else {}}

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return self._rows({"this model": evaluation["test"], **evaluation["baselines"]})

    @staticmethod
    def _rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
        return [
            {
                "model": name,
                "nats a token of the answers": f"{score['loss']:.4f}",
                "tokens": f"{score['tokens']:,}",
            }
            for name, score in scores.items()
        ]


class Preferences(_Talks):
    """Pairs of answers, learned with DPO; the reference is the model that the run begins from."""

    def __post_init__(self) -> None:
        device = runtime.pick_device(self.options.train.device)
        self._start = self.model.to(device)
        self._read: dict[str, list[Example]] = {}

    def objective(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """`DPO` with the asked beta."""
        return DPO(self.options.beta)(model, batch)

    def batches(self, split: str) -> Batches:
        """The first call reads the pairs with the model as it came, so it must come before any
        training; the three splits are read together."""
        for part in SPLITS if not self._read else ():
            self._read[part] = self._referenced(part)
        examples = self._read[split]
        lengths = [max(len(e["chosen_ids"]), len(e["rejected_ids"])) for e in examples]
        seed, collate = self.options.train.seed, PadPreferences(self.tokenizer.pad_id)
        return Batches(
            examples, self.sizes.batch_size, collate, seed=seed, lengths=lengths, bucket=1
        )

    def _referenced(self, split: str) -> list[Example]:
        limit = self.sizes.max_length
        rows = self.task.answers[split]
        fitting = [row for row in rows if conversation_tokens(self.tokenizer, row) <= limit + 1]
        if not fitting:
            raise LabError(
                f"none of the {len(rows)} {split} pairs fits into max_length {limit}: choose a "
                "longer one"
            )
        if len(fitting) < len(rows):
            note(f"{len(rows) - len(fitting)} {split} pairs are longer than {limit}: left out")
        examples = [preference_example(self.tokenizer, row) for row in fitting]
        precision = self.options.train.precision
        return with_reference(self._start, examples, self.tokenizer.pad_id, precision)

    def test(self, model: nn.Module) -> dict[str, Any]:
        found = preferred(model, self.batches("test"), self.options.train.precision)
        came = found._replace(now_P2=found.before_P2)
        scores = {
            name: {
                "gained more": it.accuracy()._asdict(),
                "likelier": it.likelier()._asdict(),
                "chosen": it.gain("chosen")._asdict(),
                "rejected": it.gain("rejected")._asdict(),
                "pairs": len(it.now_P2),
            }
            for name, it in (("fine-tuned", found), ("as it came", came))
        }
        say("\n" + table(_preference_rows(scores)))
        return {"test": scores["fine-tuned"], "baselines": {"as it came": scores["as it came"]}}

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return _preference_rows({"this model": evaluation["test"], **evaluation["baselines"]})


def _share(it: dict[str, float]) -> str:
    return f"{it['estimate']:.1%} ({it['low']:.1%} to {it['high']:.1%})"


def _preference_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    def nats(it: dict[str, float]) -> str:
        return f"{Interval(**it).estimate:+.2f}"

    return [
        {
            "model": name,
            "chosen gained more": _share(score["gained more"]),
            "chosen is likelier": _share(score["likelier"]),
            "chosen, nats": nats(score["chosen"]),
            "rejected, nats": nats(score["rejected"]),
            "pairs": f"{score['pairs']:,}",
        }
        for name, score in scores.items()
    ]


# --- files for `labkit evaluate` -----------------------------------------------------------------


def file_kind(source: str, text_column: str) -> str | None:
    """ "chat" or "dpo" by the first row of a jsonl file; None of texts, and of other sources."""
    path = Path(source)
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return None
    columns = next(files.iterate_rows(path), {})
    return None if text_column in columns else row_kind(columns)


def score(opened: LanguageModel, options: Evaluate, kind: str) -> Callable[[str], dict[str, Any]]:
    """A jsonl file of conversations ("chat") or preferences ("dpo") -> its scores, untrained.

    Raises:
        LabError: an option that does not fit; of a file, a row that is neither, or no row that the
            model can read whole.
    """
    check(options.split is None, options, "split", "none: all of such a file is read")
    longest = context_length(opened.model)
    limit = options.context_length or longest
    check(limit <= longest, options, "context_length", f"at most {longest}, what the model reads")
    tokenizer, precision = opened.tokenizer, options.precision

    def fitting(source: str, rows: Sequence[Any]) -> list[Any]:
        kept = [row for row in rows if conversation_tokens(tokenizer, row) <= limit + 1]
        if not kept:
            raise LabError(f"no row of {source} fits into context_length {limit}: choose longer")
        if left := len(rows) - len(kept):
            note(f"{left} rows of {source} are longer than {limit} tokens: left out")
        return kept

    def chats(source: str) -> dict[str, Any]:
        rows = fitting(source, read_conversations(source))
        examples = [conversation_example(tokenizer, row) for row in rows]
        collate = Pad(tokenizer.pad_id)
        read = Batches(examples, options.batch_size, collate, shuffle=False)
        loss, count = mean_loss(opened.model, causal_lm, read, precision=precision)
        return {"loss": loss, "perplexity": math.exp(loss), "tokens": count, "rows": len(rows)}

    def pairs(source: str) -> dict[str, Any]:
        rows = fitting(source, read_preferences(source))
        examples = [preference_example(tokenizer, row) for row in rows]
        logs_P2 = pair_log_probabilities(
            opened.model, examples, tokenizer.pad_id, precision, options.batch_size
        )
        tokens_P2 = torch.tensor(
            [[_counted(e, side) for side in ("chosen", "rejected")] for e in examples]
        )
        return {
            "likelier": ahead(logs_P2)._asdict(),
            "likelier a token": ahead(logs_P2 / tokens_P2)._asdict(),
            "shorter": ahead(-tokens_P2)._asdict(),
            "pairs": len(rows),
        }

    return pairs if kind == "dpo" else chats


def _counted(example: Example, side: str) -> int:
    return int((example[f"{side}_labels"] != IGNORE_INDEX).sum())


def score_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a file, for the table of `labkit evaluate`."""
    return [
        {
            "data": source,
            "chosen is likelier": _share(found["likelier"]),
            "likelier a token": _share(found["likelier a token"]),
            "chosen is shorter": _share(found["shorter"]),
            "pairs": f"{found['pairs']:,}",
        }
        if "pairs" in found
        else {"data": source, **found}
        for source, found in scores.items()
    ]

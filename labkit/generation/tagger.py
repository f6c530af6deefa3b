"""A tagger and its tokenizer: words to tags, entities and probabilities.

    rows of words ──> pieces, in windows ──> model ──> scores of the first pieces
                  ──> the windows of a row joined ──> CRF or softmax over the whole row

A CRF decodes the row, not the window, so no tag forgets its neighbour where a window ends.

Legend: B rows, W words, K tags.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labkit import runtime
from labkit.batches import IGNORE_INDEX, Batches, Pad, word_examples
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.generation.classifier import Reading
from labkit.models.tagger import Tagger, is_tagger, open_tagger
from labkit.text.bio import OUTSIDE, repaired, spans
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder

#: Rows that are decoded together.
ROWS_AT_A_TIME = 64


class TaggedText(NamedTuple):
    """What a tagger says of a row."""

    words: list[str]
    tags: list[str]
    """Well-formed BIO."""
    probabilities: list[float]
    """Of each tag: of a CRF its marginal."""

    @property
    def entities(self) -> list[dict[str, Any]]:
        """`type`, `text`, `start` and `end` in words, `probability` (of its least sure word)."""
        return [
            {
                "type": name,
                "text": " ".join(self.words[start:end]),
                "start": start,
                "end": end,
                "probability": min(self.probabilities[start:end]),
            }
            for start, end, name in spans(self.tags)
        ]

    def __str__(self) -> str:
        """The words, entities in brackets with their type: [Amara Bell PERSON] took it ."""
        found = {start: (end, name) for start, end, name in spans(self.tags)}
        parts, place = [], 0
        while place < len(self.words):
            end, name = found.get(place, (place + 1, OUTSIDE))
            text = " ".join(self.words[place:end])
            parts.append(text if name == OUTSIDE else f"[{text} {name}]")
            place = end
        return " ".join(parts)


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in their order.

    >>> split_words("Omar's key.")
    ['Omar', "'", 's', 'key', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text)


@dataclass(frozen=True)
class WordTagger:
    """A tagger and its tokenizer."""

    model: Tagger
    tokenizer: Tokenizer
    reading: Reading

    def scores(
        self,
        rows: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        precision: str = "fp32",
        watch: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    ) -> list[Tensor]:
        """The score of each tag at each word, (W, K) a row, on the CPU.

        Args:
            rows: words, at least one in each.
            batch_size: windows at a time, at least 1.
            precision: of the forward pass, as in `runtime.autocast`.
            watch: (batches, their number) -> the same batches, for a progress bar.

        Raises:
            LabError: no row, an empty one, or a word that does not fit into a window.
        """
        if not rows:
            raise LabError("0 rows were given: give at least one row of words")
        examples, places = word_examples(self.tokenizer, rows, self.reading.max_length)
        items = [{**e, "place": torch.tensor(i)} for i, e in enumerate(examples)]
        lengths = [len(item["input_ids"]) for item in items]
        batches = Batches(items, batch_size, Pad(self.tokenizer.pad_id), lengths=lengths)
        stream: Iterable[Any] = batches.evaluation_batches()
        if watch is not None:
            stream = watch(stream, batches.steps_per_epoch)
        device = next(self.model.parameters()).device
        said: dict[int, Tensor] = {}
        for batch in stream:
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            with evaluating(self.model), runtime.autocast(device, precision):
                logits = self.model(**inputs).logits
            if logits is None or not bool(logits.isfinite().all()):
                raise LabError("the scores are not finite: the weights are damaged, train again")
            for number, labels, row in zip(
                batch["place"].tolist(), batch["labels"], logits.float().cpu(), strict=True
            ):
                said[number] = row[labels != IGNORE_INDEX]
        joined: list[list[Tensor]] = [[] for _ in rows]
        for number, window in enumerate(places):
            joined[window.row].append(said[number])
        return [torch.cat(parts) for parts in joined]

    def tag(self, rows: Sequence[Sequence[str]], **how: Any) -> list[TaggedText]:
        """Tags of each word of each row; arguments as in `scores`."""
        scores, names = self.scores(rows, **how), self.model.tags
        head = self.model.crf
        found = []
        for first in range(0, len(rows), ROWS_AT_A_TIME):
            part = scores[first : first + ROWS_AT_A_TIME]
            scores_BWK = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            if head is not None:
                scores_BWK = scores_BWK.to(head.start_K.device)
            lengths = torch.tensor([len(row) for row in part], device=scores_BWK.device)
            places = torch.arange(scores_BWK.shape[1], device=scores_BWK.device)
            words_BW = places < lengths.unsqueeze(1)
            with torch.inference_mode():
                tags_BW = self.model.decode(scores_BWK, words_BW)
                chances_BWK = self.model.probabilities(scores_BWK, words_BW)
                sure_BW = chances_BWK.gather(2, tags_BW.clamp(min=0).unsqueeze(2)).squeeze(2)
            for row, n, tags, sure in zip(
                rows[first:], lengths.tolist(), tags_BW.tolist(), sure_BW.tolist(), strict=False
            ):
                said = repaired([names[k] for k in tags[:n]])
                found.append(TaggedText(list(row), said, sure[:n]))
        return found

    def __call__(self, text: str) -> TaggedText:
        """Tags of a text, cut into words by `split_words`.

        Example:
            print(labkit.load_tagger("runs/finetune")("Amara gave the key to Omar."))
        """
        return self.tag([split_words(text)])[0]


def load_tagger(name: str | Path, *, device: str = "auto") -> WordTagger:
    """Open a tagger with its tokenizer.

    Args:
        name: a run folder, or any folder with a token classifier in the `transformers` format.
        device: auto, cpu or cuda.

    Raises:
        LabError: there is no such folder, or it holds no complete tagger or no tokenizer.
    """
    folder = model_folder(name)
    if not is_tagger(folder):
        raise LabError(f"{folder} holds no tagger: labkit finetune --task tagging makes one")
    tokenizer = Tokenizer.from_pretrained(folder)
    model = open_tagger(folder).to(runtime.pick_device(device)).eval()
    return WordTagger(model, tokenizer, Reading.of(folder, model, tokenizer))

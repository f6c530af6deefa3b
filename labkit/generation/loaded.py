"""The Python front door: a language model by name or folder, ready to write and to be scored.

labkit.load("runs/mine") ──> LanguageModel ──> .generate("Once")  text
labkit.load("smollm2")                    ├──> .chat([...])       the answer in a conversation
                                          ├──> .answer(["..."])   the best answers to sources
                                          └──> .score("A text.")  bits per byte, perplexity
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from labkit import runtime
from labkit.atomic import write_json
from labkit.batches import AFTER_SOURCE, prompt_ids, source_ids
from labkit.errors import LabError
from labkit.evaluation.documents import DocumentBits
from labkit.evaluation.language import document_nats, score_text
from labkit.generation.beam import beam_search
from labkit.generation.sampling import generate
from labkit.models.adapting.growing import remove_blocks
from labkit.models.config import context_length
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.folders import is_seq2seq, open_lm, open_seq2seq
from labkit.models.transformer import Transformer
from labkit.text.chat_template import Message
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder

#: Documents that are tokenized together.
DOCUMENTS_AT_A_TIME = 256
#: A model that could read more is scored at this many tokens, unless asked otherwise.
MOST_CONTEXT = 1024


@dataclass(frozen=True)
class LanguageModel:
    """A language model and its tokenizer."""

    model: nn.Module
    """Labkit's own where its shape is known, else transformers'; in evaluation mode."""
    tokenizer: Tokenizer
    """Text to ids and back."""
    after_prompt: str = ""
    """Put behind every prompt, as in the training of `labkit finetune --task seq2seq`."""

    @property
    def answers_sources(self) -> bool:
        """Whether it was made to answer a source with a target, instead of continuing a text."""
        return bool(self.after_prompt) or isinstance(self.model, EncoderDecoder)

    def generate(
        self,
        prompt: str = "",
        *,
        chat: bool = False,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        samples: int = 1,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """Texts that continue the prompt, without the prompt; each ends at its end of text.

        Args:
            prompt: empty begins a new text.
            chat: put the prompt as a question, as instruction fine-tuning does.
            max_new_tokens: at least 1; what no longer fits into the context slides out of it. Of
                a search and of an encoder-decoder the text ends where the context does.
            temperature, top_k, top_p: as in `generation.generate`.
            seed: of the sampling; None draws anew each time.
            samples: how many texts.
            beams: above 1 searches for the best texts instead of drawing some (`beam_search`):
                the best `samples` of so many beams; temperature and seed have no meaning then.
            length_penalty: of the search: 0 for the likeliest text, above 0 for longer ones.

        Raises:
            LabError: a value is out of range, a chat without a prompt, or an encoder-decoder
                without a source.
        """
        if samples < 1:
            raise LabError(f"samples {samples} is out of range: choose at least 1")
        ids = self.ids_of(prompt, chat)
        if beams == 1:
            return self._continue([ids] * samples, max_new_tokens, temperature, top_k, top_p, seed)
        if top_k is not None or top_p is not None:
            raise LabError(
                "beams search for the best text and draw nothing: leave out top_k, top_p"
            )
        if samples > beams:
            raise LabError(f"samples {samples} is out of range: {beams} beams end with {beams}")
        (found,) = self._search([ids], max_new_tokens, beams, length_penalty)
        return found[:samples]

    def answer(
        self,
        sources: Sequence[str],
        *,
        max_new_tokens: int = 100,
        beams: int = 1,
        length_penalty: float = 1.0,
        batch_size: int = 16,
    ) -> list[str]:
        """The best answer to each source: greedy, or by beam search.

        Args:
            sources: prompts, each as in `generate` without chat; sorted by length inside.
            max_new_tokens, beams, length_penalty: as in `generate`.
            batch_size: sources at a time, at least 1.

        Raises:
            LabError: a value is out of range, or an encoder-decoder gets an empty source.
        """
        if batch_size < 1:
            raise LabError(f"batch_size {batch_size} is out of range: choose at least 1")
        prompts = [self.ids_of(source, chat=False) for source in sources]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        said = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            batch = [prompts[i] for i in some]
            if beams == 1:
                answers = self._continue(batch, max_new_tokens, 0.0, None, None, 0)
            else:
                found = self._search(batch, max_new_tokens, beams, length_penalty)
                answers = [texts[0] for texts in found]
            for i, text in zip(some, answers, strict=True):
                said[i] = text
        return said

    def ids_of(self, prompt: str, chat: bool = False) -> list[int]:
        """The tokens that the model reads for a prompt of `generate`."""
        if chat and not prompt:
            raise LabError("chat needs a prompt: give a question")
        if isinstance(self.model, EncoderDecoder):
            if chat or not prompt:
                raise LabError("an encoder-decoder answers a source: give a prompt, without chat")
            return source_ids(self.tokenizer, prompt)
        if chat:
            return self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        if self.after_prompt and prompt:
            return prompt_ids(self.tokenizer, prompt)
        return [self.tokenizer.end_of_text_id, *self.tokenizer.encode(prompt)]

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text or a turn."""
        return {self.tokenizer.end_of_text_id, self.tokenizer.end_of_turn_id}

    def _room(self, max_new_tokens: int) -> int:
        """As many new tokens as an encoder-decoder's answer can have; a decoder's text slides."""
        if isinstance(self.model, EncoderDecoder):
            return min(max_new_tokens, context_length(self.model) - 1)
        return max_new_tokens

    def _search(
        self, prompts: list[list[int]], max_new_tokens: int, beams: int, length_penalty: float
    ) -> list[list[str]]:
        """The texts of each prompt's search, the best first."""
        room = self._room(max_new_tokens)
        if not isinstance(self.model, EncoderDecoder):
            fits = context_length(self.model) - max(map(len, prompts)) + 1
            room = min(room, fits) if fits > 0 else room
        start = self.tokenizer.end_of_text_id
        found = beam_search(self.model, prompts, room, beams, length_penalty, self.ends, start)
        return [[self.tokenizer.decode(it.ids) for it in texts] for texts in found]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
    ) -> str:
        """The assistant's next turn of a conversation.

        Args:
            messages: the turns so far, such as `[{"role": "user", "content": "Hello"}]`.
            max_new_tokens, temperature, top_k, top_p, seed: as in `generation.generate`.

        Raises:
            LabError: a value is out of range, or the chat template refuses the conversation.
        """
        how = (max_new_tokens, temperature, top_k, top_p, seed)
        return self._continue([self.tokenizer.apply_chat_template(messages)], *how)[0]

    def chats(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
    ) -> list[str]:
        """`chat` for several conversations at once, as one batch: the assistant's turn in each.

        Args:
            conversations: at least one, each as in `chat`.
            max_new_tokens, temperature, top_k, top_p, seed: as in `generation.generate`.

        Raises:
            LabError: a value is out of range, or the chat template refuses a conversation.
        """
        prompts = [self.tokenizer.apply_chat_template(messages) for messages in conversations]
        return self._continue(prompts, max_new_tokens, temperature, top_k, top_p, seed)

    def _continue(self, prompts: list[list[int]], max_new_tokens: int, *how: Any) -> list[str]:
        start = self.tokenizer.end_of_text_id
        room = self._room(max_new_tokens)
        answers = generate(self.model, prompts, room, *how, end_id=self.ends, start_id=start)
        return [self.tokenizer.decode(answer) for answer in answers]

    def score(
        self,
        texts: str | Sequence[str],
        *,
        context_length: int | None = None,
        batch_size: int = 16,
        precision: str = "fp32",
    ) -> dict[str, float]:
        """How well the model predicts texts: every token counts, the first of each included.

        Args:
            texts: one text, or documents that stand behind one another with an end of text between.
            context_length: tokens that are read at once, at least 1; None: what the model was made
                for, at most 1024.
            batch_size: contexts at a time, at least 1.
            precision: of the matrix products.

        Returns:
            `bits_per_byte`, `perplexity`, `tokens`, `bytes`.

        Raises:
            LabError: no text, or a context longer than the model reads.
        """
        if isinstance(self.model, EncoderDecoder):
            raise LabError(
                "an encoder-decoder has no probability of a text without its source: compare its"
                " answers with labkit evaluate"
            )
        documents = [texts] if isinstance(texts, str) else list(texts)
        size = sum(len(text.encode()) for text in documents)
        if size == 0:
            raise LabError("the texts have 0 bytes: give at least 1 character to score")
        return score_text(
            self.model,
            self._stream(documents),
            size,
            self._context(context_length),
            batch_size=batch_size,
            precision=precision,
        )

    def score_documents(
        self,
        documents: Sequence[str],
        *,
        context_length: int | None = None,
        batch_size: int = 16,
        precision: str = "fp32",
    ) -> DocumentBits:
        """Bits per byte of documents, each read alone, with intervals; arguments as in `score`.

        Raises:
            LabError: no text, an empty one, or a context longer than the model reads.
        """
        nats_D = document_nats(
            self.model,
            self.tokenizer.encode_batch(list(documents)),
            self.tokenizer.end_of_text_id,
            self._context(context_length),
            batch_size=batch_size,
            precision=precision,
        )
        return DocumentBits(nats_D, np.array([len(text.encode()) for text in documents]))

    def _context(self, asked: int | None) -> int:
        longest = context_length(self.model)
        if asked is None:
            return min(longest, MOST_CONTEXT)
        if not 1 <= asked <= longest:
            raise LabError(
                f"context_length {asked} is out of range: the model reads at most {longest}"
                " tokens, and at least 1"
            )
        return asked

    def _stream(self, documents: Sequence[str]) -> np.ndarray:
        """End of text, then each document and an end of text: the first token has one before it."""
        end = self.tokenizer.end_of_text_id
        encoded = itertools.chain.from_iterable(
            self.tokenizer.encode_batch(documents[start : start + DOCUMENTS_AT_A_TIME])
            for start in range(0, len(documents), DOCUMENTS_AT_A_TIME)
        )
        ids = itertools.chain([end], *([*document, end] for document in encoded))
        return np.fromiter(ids, dtype=np.int64)


def load(name: str | Path, *, device: str = "auto", layers: int | None = None) -> LanguageModel:
    """Open a language model with its tokenizer.

    Args:
        name: smollm2, a run folder, or any model folder in the `transformers` format.
        device: auto, cpu or cuda.
        layers: None for all; fewer make a model that says nothing sensible and runs each line in a
            fraction of the time. The first ones are kept, of a decoder of labkit's shapes.

    Raises:
        LabError: there is no such folder, or it holds no language model or no tokenizer; `layers`
            is out of range, or the model is of another kind.

    Example:
        labkit.load("smollm2").generate("The capital of France is", temperature=0)
    """
    folder = model_folder(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    opened = open_seq2seq(folder) if is_seq2seq(folder) else open_lm(folder)
    if layers is not None:
        _keep(layers, opened)
    model: Any = opened.to(runtime.pick_device(device)).eval()
    return LanguageModel(model, tokenizer, _after_prompt(folder))


def _keep(layers: int, model: Any) -> None:
    """Cut a decoder off after its first layers, in place."""
    if not isinstance(model, Transformer):
        kind = type(model).__name__
        raise LabError(f"layers={layers} is for labkit's decoders, this is {kind}: leave it out")
    count = len(model.blocks)
    if not 1 <= layers <= count:
        raise LabError(f"layers={layers} is out of range: the model has {count}, choose 1 to that")
    remove_blocks(model, range(layers, count))


def keep_form(folder: Path) -> None:
    """Note beside a decoder that it was taught to answer a source behind a line break."""
    file = folder / "tokenizer_config.json"
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, config | {"after_prompt": AFTER_SOURCE})


def _after_prompt(folder: Path) -> str:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return AFTER_SOURCE if config.get("after_prompt") == AFTER_SOURCE else ""

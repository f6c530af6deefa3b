"""The Python front door: a language model by name or folder, ready to write and to be scored.

labkit.load("runs/mine") ──> LanguageModel ──> .generate("Once")  text
labkit.load("smollm2")                    ├──> .chat([...])       the answer in a conversation
                                          └──> .score("A text.")  bits per byte, perplexity
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from labkit import runtime
from labkit.errors import LabError
from labkit.evaluation.language import score_text
from labkit.generation.sampling import generate
from labkit.models.config import context_length
from labkit.models.huggingface.folders import open_lm
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
    ) -> list[str]:
        """Texts that continue the prompt, without the prompt; each ends at its end of text.

        Args:
            prompt: empty begins a new text.
            chat: put the prompt as a question, as instruction fine-tuning does.
            max_new_tokens: at least 1; what no longer fits into the context slides out of it.
            temperature, top_k, top_p: as in `generation.generate`.
            seed: of the sampling; None draws anew each time.
            samples: how many texts.

        Raises:
            LabError: a value is out of range, or a chat without a prompt.
        """
        if samples < 1:
            raise LabError(f"samples {samples} is out of range: choose at least 1")
        if chat and not prompt:
            raise LabError("chat needs a prompt: give a question")
        if chat:
            ids = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        else:
            ids = [self.tokenizer.end_of_text_id, *self.tokenizer.encode(prompt)]
        return self._continue([ids] * samples, max_new_tokens, temperature, top_k, top_p, seed)

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
        ends = {self.tokenizer.end_of_text_id, self.tokenizer.end_of_turn_id}
        answers = generate(self.model, prompts, max_new_tokens, *how, end_id=ends)
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


def load(name: str | Path, *, device: str = "auto") -> LanguageModel:
    """Open a language model with its tokenizer.

    Args:
        name: smollm2, a run folder, or any model folder in the `transformers` format.
        device: auto, cpu or cuda.

    Raises:
        LabError: there is no such folder, or it holds no language model or no tokenizer.

    Example:
        labkit.load("smollm2").generate("The capital of France is", temperature=0)
    """
    folder = model_folder(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    model: Any = open_lm(folder).to(runtime.pick_device(device)).eval()
    return LanguageModel(model, tokenizer)

"""What a Transformer must beat: compression, a feed-forward net, an LSTM.

    bytes     ──► compressed_bits_per_byte: gzip, xz
    input_ids ──► FeedForwardLM: the last few tokens side by side ──► tanh ──► logits
    input_ids ──► LSTMLM: a state carried from token to token             ──► logits

Both networks read (B, T) ids and answer with `.logits` (B, T, V), position t from tokens <= t, so
the objectives, the loop, the evaluation and the generation of this package serve them as they are.
Counting models stand in `ngrams`.

Legend: B batch, T positions, C tokens of context, D embedding width, H hidden width, V vocabulary.

Sources: Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language Model", equations
1-2; Hochreiter & Schmidhuber 1997, "Long Short-Term Memory"; Press & Wolf 2017 (tied embeddings).
"""

from __future__ import annotations

import lzma
import math
import zlib
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.dropout import Dropout


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Tensor
    """(B, T, V) scores of the token after each position."""


class FeedForwardLM(nn.Module):
    """The neural n-gram: h = tanh(b + sum_j W_j e(w_{t-j})), logits = U h + c, j = 0 .. C - 1.

    With `direct`, a linear path from the embeddings is added to the logits. Before the first token
    of a sequence stand zero vectors. Reads sequences of any length, each position from its last C
    tokens alone.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int = 4,
        d_model: int = 64,
        d_hidden: int = 256,
        direct: bool = False,
    ):
        """
        Args:
            vocab_size: V, at least 1.
            context: C, tokens read for each prediction, at least 1 (C = 4: a neural 5-gram).
            d_model: D, at least 1.
            d_hidden: H, at least 1.
            direct: add the direct connections of the paper, C D V weights.

        Raises:
            LabError: a size below 1.
        """
        super().__init__()
        _demand_sizes(vocab_size=vocab_size, context=context, d_model=d_model, d_hidden=d_hidden)
        self.context = context
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.hidden = nn.Linear(context * d_model, d_hidden)
        self.output = nn.Linear(d_hidden, vocab_size)
        self.direct = nn.Linear(context * d_model, vocab_size, bias=False) if direct else None
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)

    def forward(self, input_ids: Tensor) -> Output:
        """Token ids (B, T) to `.logits` (B, T, V)."""
        e_BTD = self.embedding(input_ids)
        padded = F.pad(e_BTD, (0, 0, self.context - 1, 0))  # C - 1 zero vectors before each text
        x_BTDC = padded.unfold(1, self.context, 1)  # a view: oldest token first
        x_BTX = x_BTDC.transpose(-1, -2).flatten(2)  # X = C D
        logits_BTV = self.output(torch.tanh(self.hidden(x_BTX)))
        if self.direct is not None:
            logits_BTV = logits_BTV + self.direct(x_BTX)
        return Output(logits_BTV)


class LSTMLM(nn.Module):
    """Embedding, LSTM layers, projection to the vocabulary: a state that never forgets on its own.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of W x_t + U h_{t-1} + b
    c_t = f * c_{t-1} + i * g;   h_t = o * tanh(c_t)
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
        tied_embeddings: bool = True,
    ):
        """
        Args:
            vocab_size: V, at least 1.
            d_model: width of the embedding and of every state, at least 1.
            num_layers: LSTM layers, at least 1.
            dropout: probability in [0, 1) on the embeddings and on the output of each layer.
            tied_embeddings: the output projection is the embedding matrix.

        Raises:
            LabError: a value outside its range.
        """
        super().__init__()
        _demand_sizes(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers)
        if not 0 <= dropout < 1:
            raise LabError(f"dropout is {dropout}; it must be in [0, 1)")
        self.embedding = nn.Embedding(vocab_size, d_model)
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(d_model, d_model, num_layers, batch_first=True, dropout=between)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(d_model, vocab_size)
        if tied_embeddings:
            nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
            self.output.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Output:
        """Token ids (B, T) to `.logits` (B, T, V); the state starts at zero."""
        x_BTD = self.dropout(self.embedding(input_ids))
        h_BTD, _ = self.lstm(x_BTD)
        return Output(self.output(self.dropout(h_BTD)))


def _demand_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise LabError(f"{name} is {value}; it must be at least 1")


def compressed_bits_per_byte(
    text: bytes, training: bytes = b"", method: Literal["gzip", "xz"] = "xz"
) -> float:
    """Bits that a compressor spends on each byte of `text`, having seen `training` first.

    gzip takes the last 32 KiB of the training text as its preset dictionary: all that its window
    holds. xz has no preset: size(training + text) - size(training), under a window that holds both.

    Args:
        text: held-out text, UTF-8, at least 1 byte.
        training: what a language model would have been trained on; empty: the text alone.
        method: "gzip" (32 KiB window) or "xz" (LZMA2).

    Cost: gzip some 20 MB/s; xz about 1 MB/s over training and text.

    >>> compressed_bits_per_byte(b"abracadabra" * 1000, method="xz") < 0.2
    True
    """
    if not text:
        raise LabError("0 bytes to compress: give at least 1 byte of text.")
    if method == "gzip":
        window = training[-(1 << 15) :]
        coder = (
            zlib.compressobj(9, zlib.DEFLATED, 15, zdict=window) if window else zlib.compressobj(9)
        )
        size = len(coder.compress(text) + coder.flush())
    elif method == "xz":
        size = _xz_size(training + text) - (_xz_size(training) if training else 0)
    else:
        raise LabError(f"method {method!r} is unknown: use 'gzip' or 'xz'.")
    return 8 * size / len(text)


def _xz_size(data: bytes) -> int:
    window = 1 << max(16, math.ceil(math.log2(len(data) + 1)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": min(window, 1 << 28)}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))

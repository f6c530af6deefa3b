"""An encoder that reads a source and a decoder that writes an answer (BART, T5, the first one).

    input_ids_BS ────────> encoder ──> hidden_BSD          each source token sees the whole source
                                           │
                                           └──────────┐    keys and values of cross-attention
                                                      v
    decoder_input_ids_BT ──> self-attention ──> cross-attention ──> ffn      num_layers times
                             (causal)           (T x S, all of the source)
                                                                  └──> logits_BTV

Two `Transformer`s and one embedding table. GPT-2 and Llama are the right half without its
cross-attention, BERT is the left half: most language models are not encoder-decoders.

Legend: B batch, S source positions, T target positions, D model width, V vocabulary.

Sources: Vaswani et al. 2017, figure 1; Lewis et al. 2020 (BART).
"""

import dataclasses

from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.attention import Source, padding_mask
from labkit.models.config import TransformerConfig
from labkit.models.kv_cache import KVCache
from labkit.models.transformer import Output, Transformer


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence model; its inputs are named as in `transformers`.

    `gradient_checkpointing` works as in `Transformer`, on both sides.

    Args:
        config: The shape, kind="encoder_decoder". Both sides share one embedding table; with
            tied_embeddings it is the output projection, too.

    Raises:
        LabError: Another kind.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if config.kind != "encoder_decoder":
            raise LabError(
                f"kind is {config.kind!r}; EncoderDecoder needs kind='encoder_decoder':"
                " build transformer.Transformer(config) instead"
            )
        self.config = config
        self.encoder = Transformer(
            dataclasses.replace(config, kind="encoder", vocabulary_head=False)
        )
        self.decoder = Transformer(
            dataclasses.replace(config, kind="decoder"), cross_attention=True
        )
        self.rebuild()

    def rebuild(self) -> None:
        """Compute what is no weight, and tie what is tied: after weights came in from outside."""
        self.encoder.rebuild()
        self.decoder.embedding = self.encoder.embedding
        self.decoder.rebuild()

    @property
    def lm_head(self) -> nn.Linear | None:
        """The vocabulary projection, or None."""
        return self.decoder.lm_head

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks recompute their activations in the backward pass."""
        return self.decoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        source: Source | None = None,
    ) -> Output:
        """Source and the answer so far to the logits of each next answer token.

        Args:
            input_ids: (B, S) source tokens, in [0, V); None if `source` is given.
            attention_mask: (B, S) of the source, 1 = real, 0 = padding; None: all real.
            decoder_input_ids: (B, T) the answer shifted right: a start token, then the answer
                without its last token.
            decoder_attention_mask: (B, T) of the answer, as in `Transformer.forward`.
            cache: From `new_cache`, for one source; decoder_input_ids are then the next T tokens.
            source: From `read`, so that generation runs the encoder once.

        Returns:
            Output(logits (B, T, V) or None, hidden (B, T, D) of the decoder, cache).

        Raises:
            LabError: A side has no tokens, or a sequence or mask does not fit.
        """
        source = self.read(input_ids, attention_mask) if source is None else source
        return self.decoder(
            _answer(decoder_input_ids), decoder_attention_mask, cache=cache, source=source
        )

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What the vocabulary projection reads: `lm_head(encode(...))` are the logits of `forward`.

        Returns:
            hidden_BTD of the decoder.
        """
        source = self.read(input_ids, attention_mask)
        return self.decoder.encode(
            _answer(decoder_input_ids), decoder_attention_mask, source=source
        )

    def read(self, input_ids: Tensor | None, attention_mask: Tensor | None = None) -> Source:
        """Run the encoder: what the decoder's cross-attention will read.

        Args:
            input_ids: (B, S) source tokens.
            attention_mask: (B, S), 1 = real, 0 = padding; None: all real.

        Raises:
            LabError: There is no source, or the mask does not fit it.
        """
        if input_ids is None:
            raise LabError("input_ids is None; an encoder-decoder reads a source: give its ids")
        hidden_BSD = self.encoder(input_ids, attention_mask).hidden
        mask_B11S = None if attention_mask is None else padding_mask(attention_mask)
        return Source(hidden_BSD, mask_B11S, input_ids)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embedding

    def get_output_embeddings(self) -> nn.Linear | None:
        """The vocabulary projection (its weight may be the embedding's), or None."""
        return self.lm_head

    def new_cache(self, batch_size: int, capacity: int | None = None) -> KVCache:
        """An empty cache for one batch of answers, as `Transformer.new_cache`."""
        return self.decoder.new_cache(batch_size, capacity)


def shift_right(labels_BT: Tensor, start_id: int) -> Tensor:
    """decoder_input_ids for these labels: the start token, then each label but the last.

    >>> import torch
    >>> shift_right(torch.tensor([[7, 8, 2]]), start_id=1).tolist()
    [[1, 7, 8]]

    Args:
        labels_BT: Answer tokens; -100 (no target) becomes start_id.
        start_id: First token of every answer.
    """
    before_BT = labels_BT.roll(1, dims=1)
    before_BT[:, 0] = start_id
    return before_BT.masked_fill(before_BT < 0, start_id)


def _answer(decoder_input_ids: Tensor | None) -> Tensor:
    if decoder_input_ids is None:
        raise LabError(
            "decoder_input_ids is None; give the answer so far, at least its start token"
            " (encoder_decoder.shift_right makes it from labels)"
        )
    return decoder_input_ids

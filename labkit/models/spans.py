"""An encoder that points: two numbers a token, "the answer begins here" and "it ends here".

    input_ids_BT ──> encoder ──> hidden_BTD ──> linear D -> 2 ──> start logits_BT, end logits_BT

Legend: B examples, T positions, D model width.

Source: Devlin et al. 2019, arXiv:1810.04805, section 4.2.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.huggingface.weights import transformers_model
from labkit.models.transformer import Transformer


class SpanOutput(NamedTuple):
    """What a reader says, named as in transformers."""

    start_logits: Tensor
    """(B, T), any real number."""
    end_logits: Tensor
    """(B, T), any real number."""


class SpanReader(nn.Module):
    """A labkit encoder with BERT's head for answers that are spans of a text.

    Args:
        encoder: kind="encoder"; its hidden states are read, its own head is not.

    Raises:
        LabError: the model sees only the past.
    """

    base_model_prefix = "encoder"
    """As in `transformers`: the strategy "head" trains all but this."""

    def __init__(self, encoder: Transformer):
        super().__init__()
        if encoder.config.kind != "encoder":
            raise LabError(
                f"kind is {encoder.config.kind!r}: a reader of spans needs an encoder, which sees "
                "both sides of a token"
            )
        self.encoder, self.config = encoder, encoder.config
        self.qa_outputs = nn.Linear(encoder.config.d_model, 2)
        nn.init.normal_(self.qa_outputs.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(self.qa_outputs.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SpanOutput:
        """Token ids to the logits of the beginning and of the end.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = real, 0 = padding; None: all real.
            token_type_ids: (B, T), 0 in the question, 1 in the text; left out by an encoder that
                has no segments.
        """
        kinds = token_type_ids if self.config.token_types else None
        hidden_BTD = self.encoder(input_ids, attention_mask, token_type_ids=kinds).hidden
        start_BT, end_BT = self.qa_outputs(hidden_BTD).unbind(-1)
        return SpanOutput(start_BT, end_BT)

    def to_huggingface(self) -> Any:
        """The BertForQuestionAnswering that computes the same logits, in evaluation mode.

        Raises:
            LabError: no BERT has the encoder's shape.
        """
        import transformers

        bert = transformers_model(self.encoder)
        config = bert.config
        config.num_labels = 2
        theirs = transformers.BertForQuestionAnswering(config)
        body = getattr(bert, "bert", bert)
        theirs.bert.load_state_dict(
            {name: value for name, value in body.state_dict().items() if "pooler" not in name}
        )
        theirs.qa_outputs.load_state_dict(self.qa_outputs.state_dict())
        return theirs.to(self.qa_outputs.weight.dtype).eval()  # pyright: ignore

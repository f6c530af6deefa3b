"""A tagger: an encoder or decoder, a score for each tag at each position, perhaps a CRF on top.

    input_ids_BT ──> body ──> hidden_BTD ──> dropout, classifier ──> logits_BTK
                                                                        ├──> softmax a word
                                                                        └──> crf over the words
    save_pretrained: a token classifier of `transformers`, and crf.safetensors beside it
    open_tagger:     such a folder; or the body of any model folder, with a new head

Without a CRF the folder says in `transformers` what it says here. With one, `transformers` reads
the emissions alone; config.json then names the head, and a folder that has lost its CRF does not
open here.

Legend: B rows, T positions, D width, K tags.

Sources: Devlin et al. 2019, arXiv:1810.04805, section 5.3; Lample et al. 2016, arXiv:1603.01360.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labkit.batches.types import IGNORE_INDEX
from labkit.errors import LabError
from labkit.models.crf import LinearChainCRF, bio_constraints
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.configs import hf_config
from labkit.models.huggingface.folders import architectures, open_token_classifier
from labkit.models.huggingface.reading import read_config
from labkit.models.huggingface.weights import transformers_model
from labkit.models.transformer import Output, Transformer

Head = Literal["softmax", "crf"]
CRF_FILE = "crf.safetensors"
#: The CRF's scores move this many times faster than the weights of the net (see `LinearChainCRF`).
CRF_RATE = 50.0


class Tagger(nn.Module):
    """A body with a head for tags.

    Args:
        body: labkit's `Transformer` (a head that it has is left out, its weights are copied), or a
            bare encoder or decoder of `transformers`, which is trained as it is.
        tags: names of the K tags, O, B-X and I-X.
        head: softmax, or crf: with transitions, and BIO's constraints.
        dropout: on the hidden states before the classifier.

    Raises:
        LabError: an unknown head, an encoder-decoder, or a shape that no transformers class has.
    """

    base_model_prefix = "body"
    """As in `transformers`: the strategy "head" trains all but this."""

    def __init__(
        self, body: nn.Module, tags: Sequence[str], head: Head = "softmax", dropout: float = 0.1
    ):
        super().__init__()
        if head not in get_args(Head):
            raise LabError(f"head {head!r} is unknown: choose {' or '.join(get_args(Head))}")
        if isinstance(body, EncoderDecoder):
            raise LabError("an encoder-decoder writes: tag with an encoder or a decoder")
        if isinstance(body, Transformer):
            body = _bare(body)
        self.body = body
        self.config = _config(body, tags, head)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(int(self.config.hidden_size), len(tags))
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.crf = None
        if head == "crf":
            self.crf = LinearChainCRF(len(tags), bio_constraints(tags), CRF_RATE)

    @property
    def tags(self) -> list[str]:
        """Names of the tags, in the order of the scores."""
        return [self.config.id2label[i] for i in range(self.config.num_labels)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        """Token ids (B, T) to logits (B, T, K): of a CRF its emissions."""
        if isinstance(self.body, Transformer):
            hidden_BTD = self.body(input_ids, attention_mask=attention_mask).hidden
        else:
            found = self.body(input_ids=input_ids, attention_mask=attention_mask)
            hidden_BTD = found.last_hidden_state
        return Output(self.classifier(self.dropout(hidden_BTD)), hidden_BTD)

    def decode(self, scores_BWK: Tensor, words_BW: Tensor) -> Tensor:
        """The tags of words, (B, W): each word's likeliest, or the CRF's likeliest row.

        Args:
            scores_BWK: logits of the words, gathered at the left.
            words_BW: True: a word.

        Returns:
            `IGNORE_INDEX` where there is no word.
        """
        if self.crf is not None:
            return self.crf.decode(scores_BWK, words_BW)[0]
        return scores_BWK.argmax(-1).masked_fill(~words_BW, IGNORE_INDEX)

    def probabilities(self, scores_BWK: Tensor, words_BW: Tensor) -> Tensor:
        """p(tag at the word | text), (B, W, K): a softmax, or the CRF's marginals."""
        if self.crf is not None:
            return self.crf.marginals(scores_BWK, words_BW)
        return scores_BWK.float().softmax(-1) * words_BW.unsqueeze(-1)

    def can_generate(self) -> bool:
        """False, as `transformers` asks of its own models."""
        return False

    def as_token_classifier(self) -> Any:
        """The token classifier of `transformers` with the same logits, in evaluation mode."""
        import transformers

        theirs = transformers.AutoModelForTokenClassification.from_config(self.config)
        ours = transformers_model(self.body) if isinstance(self.body, Transformer) else self.body
        getattr(theirs, theirs.base_model_prefix).load_state_dict(ours.state_dict())
        _last_linear(theirs).load_state_dict(self.classifier.state_dict())
        return theirs.to(self.classifier.weight.dtype).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `AutoModelForTokenClassification` opens, and crf.safetensors beside it."""
        self.as_token_classifier().save_pretrained(folder)
        if self.crf is not None:
            scores = {name: self.crf.rate * x for name, x in self.crf.state_dict().items()}
            save_file({k: v.contiguous() for k, v in scores.items()}, Path(folder) / CRF_FILE)


def open_tagger(
    folder: str | Path, tags: Sequence[str] | None = None, head: Head | None = None
) -> Tagger:
    """A tagger from a model folder, in evaluation mode.

    Args:
        folder: one that `Tagger.save_pretrained` or a token classifier of `transformers` wrote; or,
            with `tags`, any encoder or decoder.
        tags: None: those of the folder. Where it has just these, its classifier is kept; else the
            classifier begins anew.
        head: softmax or crf; None: that of the folder. A CRF that the folder lacks begins at 0.

    Raises:
        LabError: there is no such model, its weights are not complete, or its CRF is missing.
    """
    folder = Path(folder)
    theirs: Any = open_token_classifier(folder, tags)
    details = read_config(folder)
    named = theirs.config.id2label
    names = [str(named[i]) for i in range(theirs.config.num_labels)]
    kept = is_tagger(folder) and (tags is None or _names(details) == list(tags))
    saved: Head = details.get("tagging_head", "softmax") if kept else "softmax"
    tagger = Tagger(theirs.base_model, names, head or saved)
    if kept:
        tagger.classifier.load_state_dict(_last_linear(theirs).state_dict())
        if saved == "crf" and tagger.crf is not None:
            _read_crf(tagger.crf, folder)
    return tagger.eval()


def is_tagger(folder: Path) -> bool:
    """Whether a model folder names a token classifier."""
    return any("TokenClassification" in name for name in architectures(folder))


def _read_crf(crf: LinearChainCRF, folder: Path) -> None:
    try:
        scores = load_file(folder / CRF_FILE)
        crf.load_state_dict({name: value / crf.rate for name, value in scores.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise LabError(
            f"{folder} has a crf head, and its {CRF_FILE} is missing or damaged ({said}): save the "
            "model again"
        ) from error


def _names(details: dict[str, Any]) -> list[str]:
    named = details.get("id2label") or {}
    return [str(named.get(str(i))) for i in range(len(named))]


def _bare(model: Transformer) -> Transformer:
    """The model without a head, its weights copied."""
    config = dataclasses.replace(model.config, vocabulary_head=False, num_labels=0)
    bare = Transformer(config)
    theirs = model.state_dict()
    bare.load_state_dict({name: theirs[name] for name in bare.state_dict()})
    bare.rebuild()
    return bare.to(model.embedding.weight)


def _config(body: nn.Module, tags: Sequence[str], head: Head) -> Any:
    """What `transformers` has to know: the shape of the body, the names, the head."""
    ours = isinstance(body, Transformer)
    config: Any = hf_config(body.config)[1] if ours else copy.deepcopy(body.config)
    config.id2label = dict(enumerate(tags))
    config.label2id = {name: i for i, name in enumerate(tags)}
    config.tagging_head = head
    return config


def _last_linear(model: nn.Module) -> nn.Linear:
    """The layer of a token classifier that gives its logits."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]

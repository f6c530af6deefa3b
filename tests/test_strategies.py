"""A strategy decides which parameters move, on labkit's models and on transformers'."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from labkit import objectives
from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig
from labkit.models.adapting import strategies

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def labkit_classifier():
    return Transformer(
        TransformerConfig.bert(
            vocab_size=30, context_length=8, d_model=16, num_layers=2, num_heads=2, num_labels=3
        )
    )


def transformers_classifier():
    return BertForSequenceClassification(
        BertConfig(vocab_size=30, intermediate_size=32, num_labels=3, **TINY)
    )


MODELS = pytest.mark.parametrize("make", [labkit_classifier, transformers_classifier])


def moved(model):
    """Names of the parameters that one step of gradient descent changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, 30, (6, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    total, _ = objectives.classification(model, {**batch, "labels": torch.arange(6) % 3})
    total.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= p.grad
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@MODELS
def test_head_moves_only_the_classifier(make):
    model = make()
    names = strategies.apply(model, "head")
    assert names == ["classifier.weight", "classifier.bias"]
    assert moved(model) == set(names)


@MODELS
def test_full_moves_the_body_too(make):
    model = make()
    strategies.apply(model, "head")
    names = strategies.apply(model, "full")  # a strategy replaces the one before
    assert names == [name for name, _ in model.named_parameters()]
    changed = moved(model)
    assert {"classifier.weight"} < changed
    assert any("embedding" in name for name in changed)


@MODELS
def test_table_counts_what_is_trained(make):
    model = make()
    strategies.apply(model, "head")
    table = strategies.parameter_table(model)
    assert table.loc["classifier", "trained"] == 16 * 3 + 3
    assert table.loc["total", "trained"] == 16 * 3 + 3
    assert table.loc["total", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table.loc["classifier", "share"] == 1
    assert table.loc["total", "share"] < 0.1


def test_unknown_name_lists_the_allowed():
    with pytest.raises(LabError, match="'loro' is unknown: choose one of full, encoder, head"):
        strategies.apply(labkit_classifier(), "loro")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: BertModel(BertConfig(vocab_size=30, intermediate_size=32, **TINY)), "missing"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2)),
            "tied",
        ),
        (lambda: BertForMaskedLM(BertConfig(vocab_size=30, intermediate_size=32, **TINY)), "tied"),
    ],
)
def test_head_needs_a_head_of_its_own(model, why):
    with pytest.raises(LabError, match=why):
        strategies.apply(model(), "head")


def test_an_untied_language_model_head_can_be_trained_alone():
    config = TransformerConfig(
        vocab_size=30, context_length=8, d_model=16, num_layers=1, num_heads=2,
        tied_embeddings=False,
    )  # fmt: skip
    names = strategies.apply(Transformer(config), "head")
    assert names == ["lm_head.weight"]

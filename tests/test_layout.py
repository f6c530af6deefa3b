"""Weights transposed in memory: the same products, and nothing left behind."""

import pytest
import torch
from torch.testing import assert_close

from labkit.generate import generate
from labkit.layout import ColumnMajor
from labkit.transformer import Transformer, TransformerConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = TransformerConfig.llama(
        vocab_size=50, context_length=64, d_model=32, num_layers=2, num_heads=2
    )
    return Transformer(config).eval()


def weights(model):
    return dict(model.named_parameters(remove_duplicate=False))


def test_the_products_stay_the_same_and_the_strides_change(model):
    ids = torch.randint(50, (3, 10))
    expected = model(ids).logits
    fast = ColumnMajor(model)
    linear = model.blocks[0].attention.out
    assert linear.weight.stride() == (32, 1)
    with fast.weights():
        assert linear.weight.stride() == (1, 32)
        assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_after_the_block_the_model_is_what_it_was(model):
    before = weights(model)
    fast = ColumnMajor(model)
    with fast.weights():
        assert model.lm_head.weight is not model.embedding.weight
    with pytest.raises(IndexError), fast.weights():
        model(torch.tensor([[50]]))
    after = weights(model)
    assert all(after[name] is before[name] for name in before)
    assert model.lm_head.weight is model.embedding.weight


def test_other_formats_are_left_alone(model):
    assert ColumnMajor(model.bfloat16()).swaps == []


def test_a_long_text_is_that_of_the_plain_loop(model):
    ids = torch.randint(50, (1, 5)).tolist()
    with torch.no_grad():
        for _ in range(40):
            logits = model(torch.tensor(ids)).logits[0, -1]
            ids[0].append(int(logits.argmax()))
    assert generate(model, ids[0][:5], 40, temperature=0) == ids[0][5:]
    assert all(p.requires_grad for p in model.parameters())

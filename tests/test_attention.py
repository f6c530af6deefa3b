"""Attention, masks, positions and the cache, through their public names."""

import doctest

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models import attention as att


def qkv(B=2, H=3, T=5, S=5, K=8, dtype=torch.float64):
    torch.manual_seed(0)
    return (torch.randn(B, H, n, K, dtype=dtype) for n in (T, S, S))


def test_by_hand_matches_a_loop_over_positions():
    q, k, v = qkv(B=1, H=1, T=3, S=4)
    out, weights = att.scaled_dot_product_attention(q, k, v)
    for t in range(3):
        scores = torch.tensor([float(q[0, 0, t] @ k[0, 0, s]) / 8**0.5 for s in range(4)])
        w = scores.exp() / scores.exp().sum()
        assert_close(weights[0, 0, t].float(), w.float())
        assert_close(
            out[0, 0, t], sum(w[s].double() * v[0, 0, s] for s in range(4)), rtol=1e-5, atol=1e-6
        )


def test_a_query_that_sees_nothing_gets_zero_and_a_finite_gradient():
    q, k, v = (x.requires_grad_() for x in qkv())
    mask = att.causal_mask(5).clone()
    mask[0] = False
    out, weights = att.scaled_dot_product_attention(q, k, v, mask)
    assert not out[:, :, 0].any()
    assert not weights[:, :, 0].any()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_by_hand_gradients_are_right_in_float64():
    q, k, v = (x.requires_grad_() for x in qkv(B=1, H=2, T=3, S=3, K=4))
    mask = att.causal_mask(3)
    run = lambda *x: att.scaled_dot_product_attention(*x, mask)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v))


def test_causal_mask_aligns_the_last_queries_with_the_last_keys():
    assert torch.equal(att.causal_mask(4), torch.ones(4, 4).tril().bool())
    assert torch.equal(att.causal_mask(2, 5), torch.ones(5, 5).tril().bool()[-2:])


def test_padding_and_document_masks():
    padding = att.padding_mask(torch.tensor([[1, 1, 0]]))
    assert padding.tolist() == [[[[True, True, False]]]]
    documents = att.document_mask(torch.tensor([[0, 0, 1]]))
    assert documents[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_heads_share_keys_and_values(groups):
    q, k, v = (x.float() for x in qkv(H=4))
    k, v = k[:, :groups], v[:, :groups]
    repeated = (x.repeat_interleave(4 // groups, dim=1) for x in (k, v))
    assert_close(att.attention(q, k, v), att.scaled_dot_product_attention(q, *repeated)[0])


def test_dropout_keeps_the_mean_and_only_acts_when_asked():
    q, k, v = (x.bfloat16().requires_grad_() for x in qkv(B=64, T=16, S=16))
    plain = att.attention(q, k, v)
    assert torch.equal(plain, att.attention(q, k, v))
    dropped = att.attention(q, k, v, dropout=0.5)
    assert not torch.equal(plain, dropped)
    assert (dropped.float().mean() - plain.float().mean()).abs() < 0.02


def test_sinusoidal_has_the_papers_values():
    table = att.sinusoidal(50, 8)
    assert table.shape == (50, 8)
    assert_close(table[7, 2], torch.tensor(7 / 10_000 ** (2 / 8)).sin())
    assert_close(table[7, 3], torch.tensor(7 / 10_000 ** (2 / 8)).cos())


def test_rotated_scores_depend_on_distance_only():
    q, k = torch.randn(2, 16, dtype=torch.float64)
    cos, sin = att.rotary_table(100, 16)

    def score(t, s):
        return att.rotate(q, cos[t], sin[t]) @ att.rotate(k, cos[s], sin[s])

    assert_close(score(9, 4), score(95, 90), rtol=1e-5, atol=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3
    assert_close(att.rotate(q, cos[9], sin[9]).norm(), q.norm(), rtol=1e-6, atol=1e-6)


def test_cache_returns_what_was_appended_and_names_an_overflow():
    cache = att.KVCache(num_layers=2, batch_size=1, num_kv_heads=1, capacity=3, head_width=2)
    first, second = torch.ones(1, 1, 2, 2), torch.full((1, 1, 1, 2), 2.0)
    for new in (first, second):
        for layer in range(2):
            keys, values = cache.append(layer, new, -new)
        cache.advance(new.shape[2])
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, -keys)
    with pytest.raises(LabError, match="holds 3 positions and 4"):
        cache.append(0, second, second)


def test_cross_attention_reads_the_source_and_its_mask():
    torch.manual_seed(0)
    layer = att.CrossAttention(12, 4, num_kv_heads=2).double()
    x, source = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    q = layer.q(x).view(2, 5, 4, 3).transpose(1, 2)
    k, v = (part.view(2, 7, 2, 3).transpose(1, 2) for part in layer.kv(source).chunk(2, dim=-1))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    by_hand = layer.out(att.scaled_dot_product_attention(q, k, v)[0].transpose(1, 2).flatten(2))
    assert_close(layer(x, att.Source(source)), by_hand)
    mask = torch.ones(2, 7)
    mask[:, 4:] = 0
    masked = layer(x, att.Source(source, att.padding_mask(mask)))
    assert_close(masked, layer(x, att.Source(source[:, :4])))
    assert (masked - by_hand).abs().max() > 1e-3


def test_impossible_heads_are_named():
    with pytest.raises(LabError, match="num_heads"):
        att.MultiHeadAttention(d_model=10, num_heads=3)
    with pytest.raises(LabError, match="even"):
        att.rotary_table(4, 5)


def test_shapes_are_checked_in_tests():
    q, k, v = (x.float() for x in qkv())
    with pytest.raises(Exception, match=r"(?i)type-check"):
        att.attention(q, k, v[..., :3])


def test_doctests():
    assert doctest.testmod(att).failed == 0

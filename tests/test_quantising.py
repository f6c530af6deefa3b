"""Quantisation: errors within their bound, bytes by the formula, the same function, files."""

import copy
import doctest

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from training import ragged_batches, tiny_model

from labkit.errors import LabError
from labkit.generation import generate
from labkit.models import Transformer, TransformerConfig, compression
from labkit.models.compression import (
    Grid,
    StoredEmbedding,
    StoredLinear,
    StoredMatrix,
    best_clip,
    gptq,
    load_quantised,
    output_error,
    quantise,
    quantise_model,
    round_weights,
    save_quantised,
    second_moments,
    stored_bytes,
    use_kernels,
)
from labkit.models.compression.grids import nearest
from labkit.models.compression.stored import pack, unpack
from labkit.models.compression.targets import linear_layers
from labkit.models.huggingface import to_huggingface

GRIDS = [
    Grid(bits, group, symmetric)
    for bits, group in ((2, 16), (3, "row"), (4, 8), (4, "tensor"), (8, "row"), (8, 32))
    for symmetric in (True, False)
]
every_grid = pytest.mark.parametrize(
    "grid", GRIDS, ids=lambda g: f"{g.bits}-{g.group}-{'sym' if g.symmetric else 'affine'}"
)


def matrix(rows: int = 24, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns) * torch.logspace(-3, 1, rows)[:, None] + 0.01


def within(w, stored, share=0.5):
    """|w - stored| <= share · s, but for the rounding of the sum in fp32."""
    slack = 1e-6 * (w.abs() + stored.dequantise().abs())
    return (w - stored.dequantise()).abs() <= share * stored.steps() * (1 + 1e-6) + slack


# --- the grid ------------------------------------------------------------------------------------


@every_grid
def test_every_weight_is_stored_within_half_a_step(grid):
    w = matrix()
    stored = quantise(w, grid)
    assert within(w, stored).all()
    assert not within(w, stored, share=0.4).all(), "the bound is no looser than it must be"
    cut = stored._replace(codes_OI=(w / stored.steps() + grid.middle).floor().byte())
    if grid.symmetric:
        assert not within(w, cut).all(), "cutting off instead of rounding breaks it"


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
    st.integers(2, 8),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_holds_for_any_weights(values, bits, symmetric):
    w = torch.tensor([values])
    stored = quantise(w, Grid(bits, 4, symmetric))
    # below 6e-8, the smallest fp16 number, a step cannot become
    assert (within(w, stored) | ((w - stored.dequantise()).abs() < 1e-7)).all()


@every_grid
def test_codes_use_the_range_and_no_more(grid):
    stored = quantise(matrix(), grid)
    assert int(stored.codes_OI.max()) <= grid.largest
    assert int(stored.codes_OI.min()) >= int(grid.symmetric)
    assert stored.scales_OG.dtype == torch.float16


def test_zero_is_exact_where_the_grid_is_symmetric_and_a_constant_group_where_it_is_not():
    w = torch.zeros(2, 8)
    w[0, 3] = 1.0
    assert (quantise(w, Grid(4, 8)).dequantise()[w == 0] == 0).all()
    flat = torch.full((1, 8), 0.25)
    assert_close(quantise(flat, Grid(4, 8, symmetric=False)).dequantise(), flat, atol=0, rtol=0)


def test_one_outlier_rules_its_group_and_no_other():
    w = torch.randn(8, 64) * 0.01
    w[0, 0] = 10.0
    lost = {
        group: (w - quantise(w, Grid(4, group)).dequantise())[:, 32:].norm()
        for group in (32, "row", "tensor")
    }
    alone = (w[1:] - quantise(w, Grid(4, "row")).dequantise()[1:]).norm()
    assert lost[32] < 0.15 * w[:, 32:].norm() < lost["tensor"]
    assert (quantise(w, Grid(4, "tensor")).dequantise() == 0).sum() == w.numel() - 1
    assert alone < 0.2 * w[1:].norm(), "the other rows do not notice"


def test_affine_grids_fit_weights_that_are_not_around_0():
    w = torch.rand(16, 64) + 3
    errors = [(w - quantise(w, Grid(4, 32, s)).dequantise()).norm() for s in (True, False)]
    assert errors[1] < 0.2 * errors[0]


def test_a_clipped_range_has_finer_steps_and_bounds_only_what_is_inside():
    w = matrix()
    whole, cut = quantise(w, Grid(3, 32)), quantise(w, Grid(3, 32), clip=0.5)
    assert_close(cut.steps(), whole.steps() / 2, rtol=2e-3, atol=1e-7)
    inside = w.abs() <= cut.steps() * 3
    assert within(w, cut)[inside].all()
    assert not within(w, cut)[~inside].all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_best_clip_is_never_worse_and_at_few_bits_better(symmetric):
    w = torch.randn(32, 128)
    for bits in (2, 4, 8):
        grid = Grid(bits, "row", symmetric)
        plain = (w - quantise(w, grid).dequantise()).norm()
        clipped = (w - quantise(w, grid, best_clip(w, grid)).dequantise()).norm()
        assert clipped <= plain
        assert bits > 2 or clipped < 0.9 * plain


def test_what_matters_more_is_clipped_less():
    w = torch.randn(1, 32)
    w[0, 0] = 8.0
    grid, important = Grid(3, "row"), torch.ones(32)
    important[0] = 1000.0
    assert best_clip(w, grid) < 1
    assert best_clip(w, grid, important) == 1


@every_grid
def test_bits_per_weight_are_those_of_what_is_stored(grid):
    w = matrix()
    stored = quantise(w, grid)
    numbers = stored.scales_OG.numel() * (1 if grid.symmetric else 2)
    assert grid.bits_per_weight(*w.shape) == grid.bits + 16 * numbers / w.numel()
    if grid.bits in (2, 4, 8):
        assert 8 * stored_bytes(StoredMatrix(stored)) == grid.bits_per_weight(*w.shape) * w.numel()


def test_scales_that_round_to_the_nearest_would_break_the_bound():
    w = torch.tensor([[1.0, 0.3, -0.2, 0.1]]) * 0.70023
    stored = quantise(w, Grid(8, 4))
    near = (w.abs().amax() / 127).half().view(1, 1)
    assert float(near) < float(w.abs().amax() / 127) <= float(stored.scales_OG)
    naive = nearest(w, near - 0, None, Grid(8, 4))
    assert (w - naive.dequantise()).abs().max() > (w - stored.dequantise()).abs().max()


# --- calibration ---------------------------------------------------------------------------------


def moments(inputs: int, positions: int = 400) -> torch.Tensor:
    """Inputs that go together, as those of a real layer do."""
    x = torch.randn(positions, inputs // 4) @ torch.randn(inputs // 4, inputs)
    x = x + 0.3 * torch.randn(positions, inputs)
    return x.T @ x / positions


def test_two_columns_by_the_closed_form():
    """The second weight makes up for the error of the first: w2 + e H12 / H22."""
    h = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    grid = Grid(3, "row")
    w = torch.randn(50, 2)
    plain, ours = quantise(w, grid), gptq(w, h, grid, damping=0)
    error = w[:, :1] - plain.dequantise()[:, :1]
    best = torch.cat([w[:, :1], w[:, 1:] + error * h[0, 1] / h[1, 1]], dim=1)
    expected = nearest(best, plain.scales_OG, None, grid)
    assert torch.equal(ours.codes_OI, expected.codes_OI)
    assert not torch.equal(ours.codes_OI, plain.codes_OI)


@pytest.mark.parametrize(
    "grid", [Grid(3, 16), Grid(4, "row"), Grid(2, 32, symmetric=False)], ids=str
)
def test_codes_chosen_for_the_inputs_lose_less_of_the_outputs(grid):
    w, h = torch.randn(48, 96), moments(96)
    plain, ours = quantise(w, grid), gptq(w, h, grid)
    lost = [output_error(w, q.dequantise(), h) for q in (plain, ours)]
    assert lost[1] < 0.7 * lost[0]
    assert (w - ours.dequantise()).norm() > (w - plain.dequantise()).norm(), "weights move further"
    unlike = moments(96)
    assert output_error(w, ours.dequantise(), unlike) > 1.5 * lost[1], "bought for this text"


def test_inputs_that_have_nothing_to_do_with_each_other_leave_nothing_to_win():
    w, grid = torch.randn(20, 32), Grid(4, 8)
    assert torch.equal(gptq(w, torch.eye(32), grid).codes_OI, quantise(w, grid).codes_OI)


def test_the_error_of_the_outputs_is_what_it_says():
    w, x = torch.randn(5, 12), torch.randn(300, 12)
    q = quantise(w, Grid(3, 4)).dequantise()
    by_hand = ((x @ (w - q).T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    assert output_error(w, q, x.T @ x) == pytest.approx(float(by_hand), rel=1e-4)


def test_moments_are_those_of_the_real_positions():
    model = tiny_model()
    batches = list(ragged_batches(examples=8).evaluation_batches())
    found = second_moments(model, batches)
    assert set(found) == set(linear_layers(model))
    seen = []
    layer = model.blocks[1].ffn.down
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch["input_ids"], batch.get("attention_mask"))
    handle.remove()
    x = torch.cat([
        s[b["attention_mask"].bool()] if "attention_mask" in b else s.flatten(0, 1)
        for s, b in zip(seen, batches, strict=True)
    ])  # fmt: skip
    assert_close(found["blocks.1.ffn.down"], x.T @ x / len(x), atol=1e-6, rtol=1e-4)
    padded = torch.cat([s.flatten(0, 1) for s in seen])
    assert len(padded) > len(x), "there was padding, and it did not count"
    assert not any(m._forward_pre_hooks for m in model.modules())


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_loses_nothing(bits):
    codes = torch.randint(2**bits, (6, 32), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (6, 32 * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)


@every_grid
def test_a_stored_layer_computes_with_the_stored_weights(grid):
    if grid.bits == 3:
        return
    w, x, bias = matrix(), torch.randn(2, 3, 64), torch.randn(24)
    stored = quantise(w, grid)
    layer = StoredLinear(StoredMatrix(stored), bias)
    assert_close(layer(x), F.linear(x, stored.dequantise(), bias), atol=0, rtol=0)
    assert not torch.allclose(layer(x), F.linear(x, w, bias), atol=1e-6)
    ids = torch.tensor([[3, 0], [23, 3]])
    assert torch.equal(StoredEmbedding(layer.matrix)(ids), stored.dequantise()[ids])


FAMILIES = ["llama", "gpt2", "bert", "untied", "hf-llama", "hf-gpt2", "hf-bert", "hf-untied"]


def families():
    shape = {"vocab_size": 31, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 2}
    shape["initializer_range"] = 0.2
    llama = Transformer(TransformerConfig.llama(**shape, d_ff=32))
    gpt2 = Transformer(TransformerConfig.gpt2(**shape, dropout=0.0))
    bert = Transformer(TransformerConfig.bert(**shape, dropout=0.0, num_labels=3))
    untied = Transformer(TransformerConfig.llama(**shape, d_ff=32, tied_embeddings=False))
    return {
        "llama": llama, "gpt2": gpt2, "bert": bert, "untied": untied,
        "hf-llama": to_huggingface(llama), "hf-gpt2": to_huggingface(gpt2),
        "hf-bert": to_huggingface(bert), "hf-untied": to_huggingface(untied),
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_model_computes_what_rounded_weights_do_and_survives_a_file(name, tmp_path):
    model = families()[name].eval()
    ids = torch.randint(31, (2, 9))
    with torch.no_grad():
        before = model(ids).logits
        rounded = round_weights(copy.deepcopy(model), Grid(4, 8))
        wanted = rounded(ids).logits
        small = quantise_model(copy.deepcopy(model), Grid(4, 8))
        assert_close(small(ids).logits, wanted, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(wanted, before, atol=1e-4), "4 bits are not nothing"

        file = save_quantised(small, tmp_path / "small.safetensors")
        again = load_quantised(families()[name].eval(), file)
        assert torch.equal(again(ids).logits, small(ids).logits)
    assert stored_bytes(small) < stored_bytes(model)
    assert file.stat().st_size < stored_bytes(small) + 12_000
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["llama", "untied", "hf-llama", "hf-untied"])
def test_a_tied_embedding_is_stored_once(name, tmp_path):
    model = families()[name].eval()
    kept = stored_bytes(quantise_model(copy.deepcopy(model), Grid(8, 16)))
    whole = quantise_model(model, Grid(8, 16), embedding=Grid(8, 16))
    copies = 2 if "untied" in name else 1
    one = 31 * 16
    assert kept - stored_bytes(whole) == copies * (4 * one - one - 2 * 31)
    inside, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (inside.matrix is head.matrix) == (copies == 1)
    ids = torch.randint(31, (2, 9))
    again = load_quantised(
        families()[name].eval(), save_quantised(whole, tmp_path / "a.safetensors")
    )
    with torch.no_grad():
        assert torch.equal(again(ids).logits, whole(ids).logits)
    assert stored_bytes(again) == stored_bytes(whole)


def test_a_quantised_model_writes_text_and_its_bytes_are_the_formula():
    model = tiny_model(d_model=32)
    layers = {n: tuple(layer.weight.shape) for n, layer in linear_layers(model).items()}
    rest = stored_bytes(model) - sum(4 * o * i for o, i in layers.values())
    grid = Grid(4, 16, symmetric=False)
    quantise_model(model, grid)
    matrices = sum(grid.bits_per_weight(o, i) * o * i / 8 for o, i in layers.values())
    assert stored_bytes(model) == rest + matrices
    forgotten = sum(grid.bits * o * i / 8 for o, i in layers.values())
    assert matrices == 1.5 * forgotten, "two scales of 16 bits for 16 weights are 2 more bits"
    rounded = round_weights(tiny_model(d_model=32), grid)
    prompt = [1, 2, 3]
    assert generate(model, prompt, 6, temperature=0) == generate(rounded, prompt, 6, temperature=0)


def test_moments_choose_the_codes_of_a_model_and_only_the_chosen_layers_change():
    model = tiny_model(d_model=32)
    found = second_moments(model, ragged_batches().evaluation_batches())
    plain = round_weights(copy.deepcopy(model), Grid(3, 16))
    ours = round_weights(copy.deepcopy(model), Grid(3, 16), moments=found)
    for name, layer in linear_layers(model).items():
        lost = [
            output_error(layer.weight, m.get_submodule(name).weight, found[name])
            for m in (plain, ours)
        ]
        assert lost[1] < lost[0], name
    part = round_weights(copy.deepcopy(model), Grid(3, 16), choose=lambda name: "ffn" in name)
    assert torch.equal(part.blocks[0].attention.qkv.weight, model.blocks[0].attention.qkv.weight)
    assert torch.equal(part.blocks[0].ffn.up.weight, plain.blocks[0].ffn.up.weight)


# --- products with codes -------------------------------------------------------------------------


def test_whole_numbers_are_multiplied_exactly():
    w, x, bias = matrix(), torch.randn(2, 5, 64) * 3, torch.randn(24)
    stored = quantise(w, Grid(8, "row"))
    model = nn.ModuleDict({"a": StoredLinear(StoredMatrix(stored), bias)})
    held = stored_bytes(model)
    assert use_kernels(model) == 1
    assert stored_bytes(model) == held
    scale = x.abs().amax(-1, keepdim=True) / 127
    weights = (stored.codes_OI.double() - 128).T

    def by_hand(codes):
        return (codes.double() @ weights).float() * scale * stored.scales_OG.float().T + bias

    assert_close(model["a"](x), by_hand((x / scale).round()))
    cut = by_hand((x / scale).int())  # towards 0 instead of to the nearest
    assert not torch.allclose(model["a"](x), cut, rtol=1e-3)
    exact = F.linear(x, stored.dequantise(), bias)
    bound = scale / 2 * stored.dequantise().abs().sum(1)
    assert ((model["a"](x) - exact).abs() <= bound * 1.001).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_the_product_of_four_bits_is_that_of_the_stored_weights_as_bf16_rounds(symmetric, group):
    w, x = torch.randn(32, 128), torch.randn(3, 128)
    stored = quantise(w, Grid(4, group, symmetric))
    model = nn.ModuleDict({"a": StoredLinear(StoredMatrix(stored))})
    use_kernels(model)
    exact = F.linear(x, stored.dequantise())
    size = F.linear(x.abs(), stored.dequantise().abs())
    assert ((model["a"](x) - exact).abs() <= 2**-6 * size).all()
    assert (model["a"](x) - F.linear(x, w)).norm() > 2 * (model["a"](x) - exact).norm()
    assert stored_bytes(model) == 32 * 128 // 2 + 32 * 128 // group * 4


def test_a_model_with_kernels_stays_near_the_stored_one_and_shares_what_was_shared():
    model = tiny_model(d_model=64).eval()
    quantise_model(model, Grid(4, 32), embedding=Grid(8, "row"))
    before = stored_bytes(model)
    ids = torch.randint(31, (2, 9))
    with torch.no_grad():
        wanted = model(ids).logits
        assert use_kernels(model) == 9
        found = model(ids).logits
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    assert model.lm_head.matrix is model.embedding.matrix
    groups = [m.scales_and_zeros[..., 0].numel() for m in model.modules() if hasattr(m, "group")]
    assert stored_bytes(model) == before + 2 * sum(groups)


# torchao 0.18.0 as a witness, recorded: installed, it writes to stderr when transformers opens a
# model. W and then quantize_affine(W, (1, size), scales, 0, torch.int8, -largest, largest) of
# torchao.quantization.quant_primitives, with the scales of the test; and the codes in
# quantize_(layer, Int8WeightOnlyConfig()), whose scales are max|w| / 127.5. Codes as hexadecimal
# bytes, the middle added.
W = torch.linspace(0, 20, 128).sin().view(4, 32) * torch.tensor([[1.0], [0.1], [3.0], [0.02]])
AFFINE_4 = (
    "08090a0c0d0e0e0f0f0f0f0f0f0e0e0d0f0d0c0a0806040204030202010101010101020304050607"
    "08090b0c0d0e0e0f0f0f0f0f0f0e0e0d0f0d0c0a0806040204030202010101010101020304050607"
    "08090b0c0d0e0e0f0f0f0f0f0f0e0e0d0f0d0b090706040204030202010101010102020304050607"
    "080a0b0c0d0e0e0f"
)
AFFINE_8 = (
    "8094a7bacbdae7f1f9fdfffdf8f1e6d9cab9a6937f6b58453425190e0702010308101a2737485b6e"
    "8296a9bcccdbe8f2fafefffdf8f0e5d8c8b7a4917d6956433324170d0602010308111c29394a5d70"
    "8498abbdcedde9f3fafefffdf7efe4d6c7b5a38f7b6754423122160c0602010309111d2a3a4c5e72"
    "869aadbfd0deeaf4"
)
LAYER_8 = (
    "8094a7bacbdae7f2f9fefffef9f1e7dacab9a7937f6b58453425180e06020102070f1a2737485a6e"
    "8296a9bccddce9f3fafefffef8f0e6d8c9b7a5917d6956433223170d0602000308101b29384a5c70"
    "8498abbeceddeaf4fbfffffdf8efe4d7c7b5a38f7b6754413122160c0501000309111c2a3a4b5e72"
    "869aadbfd0dfebf5"
)


def recorded(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8).view(4, 32)


@pytest.mark.parametrize(
    ("grid", "theirs"), [(Grid(4, 8), AFFINE_4), (Grid(8, "row"), AFFINE_8)], ids=["4-8", "8-row"]
)
def test_torchao_finds_the_same_codes_on_the_same_grid(grid, theirs):
    assert torch.equal(quantise(W, grid).codes_OI, recorded(theirs))


def test_a_layer_of_torchao_is_within_half_a_step_of_the_same_weights():
    ours = quantise(W, Grid(8, "row"))
    theirs = (recorded(LAYER_8).float() - 128) * W.abs().amax(1, keepdim=True) / 127.5
    assert ((theirs - W).abs() <= 0.5 * ours.steps()).all()
    assert within(W, ours).all()
    assert 0 < (recorded(LAYER_8) != ours.codes_OI).float().mean() < 0.5, "another grid"
    assert (theirs - ours.dequantise()).abs().max() <= ours.steps().max()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Grid(1), "choose 2 to 8"),
        (lambda: Grid(4, "column"), "choose a number, 'row' or 'tensor'"),  # type: ignore
        (lambda: quantise(torch.randn(2, 10), Grid(4, 4)), "does not divide the 10 inputs"),
        (lambda: quantise(torch.randn(10), Grid(4)), "give a matrix"),
        (lambda: quantise(torch.randn(2, 8), Grid(4, 8), clip=0.0), "clip 0.0 is out of range"),
        (lambda: quantise(torch.full((2, 8), torch.nan), Grid(4, 8)), "not finite"),
        (lambda: quantise(torch.full((2, 8), 1e9), Grid(4, 8)), "beyond fp16"),
        (lambda: gptq(torch.randn(2, 8), torch.eye(4), Grid(4, 8)), "for 8 inputs"),
        (lambda: gptq(torch.randn(2, 8), torch.zeros(8, 8), Grid(4, 8)), "mean square is 0"),
        (lambda: gptq(torch.randn(2, 8), torch.ones(8, 8), Grid(4, 8), 0.0), "no inverse"),
        (lambda: gptq(torch.randn(2, 8), torch.eye(8), Grid(4, 8), -1.0), "damping -1.0"),
        (lambda: second_moments(tiny_model(), []), "0 positions"),
        (lambda: quantise_model(tiny_model(), Grid(3, 16)), "store 2, 4 or 8 bits"),
        (lambda: quantise_model(nn.Linear(2, 2), Grid(4)), "0 linear layers"),
        (
            lambda: quantise_model(tiny_model(), Grid(4, 16), choose=lambda n: False),
            "0 of 8 layers",
        ),
        (lambda: use_kernels(quantise_model(tiny_model(), Grid(4, 16))), "0 of 8 quantised"),
        (lambda: save_quantised(tiny_model(), "x"), "0 quantised layers"),
        (lambda: load_quantised(tiny_model(), "none.safetensors"), "no quantised model"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_is_allowed(wrong, words):
    with pytest.raises(LabError, match=words):
        wrong()


def test_a_file_for_another_model_is_refused(tmp_path):
    file = save_quantised(quantise_model(tiny_model(), Grid(4, 16)), tmp_path / "a.safetensors")
    with pytest.raises(LabError, match="not the same in"):
        load_quantised(tiny_model(num_layers=1), file)
    with pytest.raises(LabError, match="not the same in"):
        load_quantised(tiny_model(num_layers=3), file)
    with pytest.raises(LabError, match="not the same in"):
        load_quantised(tiny_model(d_model=32), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LabError, match="damaged"):
        load_quantised(tiny_model(), file)


@pytest.mark.parametrize("module", [compression.grids, compression.stored])
def test_what_their_docstrings_show(module):
    assert doctest.testmod(module).failed == 0

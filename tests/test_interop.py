"""Folders that transformers opens, and clear refusals. Equality of logits: test_exactness.py."""

import json

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models import EncoderDecoder, Transformer, TransformerConfig, counts
from labkit.models.huggingface import (
    from_huggingface,
    load_pretrained,
    save_pretrained,
    to_huggingface,
)
from labkit.text import train_bpe

TINY = {"vocab_size": 300, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 4}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_auto_classes_open_the_folder_tokenizer_included(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = train_bpe(["Mira gave the red lamp to Tom. " * 20], 300)
    config = getattr(TransformerConfig, family)(**{**TINY, "vocab_size": tokenizer.vocab_size})
    model = Transformer(config).eval()
    folder = save_pretrained(model, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("Mira gave Tom")])
    assert AutoTokenizer.from_pretrained(folder).encode("Mira gave Tom") == ids[0].tolist()
    assert_close(theirs(ids).logits, model(ids).logits)
    assert theirs.config.eos_token_id == tokenizer.end_of_text_id
    assert not list(folder.glob("*.bin"))


def test_an_encoder_decoder_opens_as_a_sequence_to_sequence_model(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    model = EncoderDecoder(TransformerConfig.bart(**TINY)).eval()
    theirs = AutoModelForSeq2SeqLM.from_pretrained(save_pretrained(model, tmp_path))
    inputs = {
        "input_ids": torch.randint(300, (2, 5)),
        "decoder_input_ids": torch.randint(300, (2, 4)),
    }
    assert_close(theirs(**inputs).logits, model(**inputs).logits)
    assert_close(load_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    stored = list((tmp_path).glob("*.safetensors"))
    assert len(stored) == 1
    once_more = 4 * model.get_input_embeddings().weight.numel()
    largest = 4 * counts.parameters(model.config) + once_more
    assert stored[0].stat().st_size < largest, "the shared table is stored once"


def test_variants_of_bart_that_labkit_lacks_are_named():
    from transformers import BartConfig, BartForConditionalGeneration

    small = {"vocab_size": 9, "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2}
    small |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "decoder_attention_heads": 2}
    uneven = BartForConditionalGeneration(BartConfig(**small, decoder_layers=2))
    with pytest.raises(LabError, match="decoder_layers=2"):
        from_huggingface(uneven)
    even = BartForConditionalGeneration(BartConfig(**small, decoder_layers=1))
    even.final_logits_bias.fill_(1.0)
    with pytest.raises(LabError, match="final_logits_bias"):
        from_huggingface(even)


def test_a_transformers_model_is_saved_as_it_is(tmp_path):
    theirs = to_huggingface(Transformer(TransformerConfig.llama(**TINY)))
    ids = torch.randint(300, (2, 5))
    again = load_pretrained(save_pretrained(theirs, tmp_path))
    assert_close(again(ids).logits, theirs(ids).logits)


def test_mean_pooled_classifier_survives_and_its_encoder_opens(tmp_path):
    from transformers import AutoModel

    config = TransformerConfig.bert(**TINY, num_labels=3, pooling="mean")
    model = Transformer(config).eval()
    ids = torch.randint(300, (2, 5))
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained(tmp_path)(ids).logits, model(ids).logits)
    assert_close(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, model(ids).hidden)
    with pytest.raises(LabError, match="pooling='mean'"):
        to_huggingface(model)


def test_a_new_head_goes_on_an_old_encoder():
    old = Transformer(TransformerConfig.bert(**TINY, vocabulary_head=False)).eval()
    new = from_huggingface(to_huggingface(old), num_labels=4, pooling="mean", dropout=0.3)
    ids = torch.randint(300, (2, 5))
    assert new(ids).logits.shape == (2, 4)
    assert_close(new(ids).hidden, old(ids).hidden)
    assert new.config.dropout == 0.3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TransformerConfig(**TINY, activation="swiglu"), "activation='swiglu'"),
        (TransformerConfig(**TINY, norm="rmsnorm"), "norm='rmsnorm'"),
        (TransformerConfig(**TINY, norm_position="post"), "norm_position='post'"),
        (TransformerConfig(**TINY, num_kv_heads=2), "num_kv_heads=2"),
        (TransformerConfig(**TINY, position="rotary"), "norm='layernorm'"),
        (TransformerConfig(**TINY, num_labels=2, pooling="first"), "decoder"),
        (TransformerConfig(**TINY, kind="encoder"), "norm_position='pre'"),
        (TransformerConfig.bert(**TINY, position="rotary"), "position='rotary'"),
        (TransformerConfig.bart(**TINY, norm_position="pre"), "norm_position='pre'"),
        (TransformerConfig.bart(**TINY, tied_embeddings=False), "tied_embeddings=False"),
    ],
)
def test_shapes_that_no_class_has_name_the_reason(config, reason, tmp_path):
    model = (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)
    with pytest.raises(LabError, match=reason):
        to_huggingface(model)
    with pytest.raises(LabError, match=reason):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_unknown_models_and_folders_are_named(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5Model

    tiny = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    with pytest.raises(LabError, match=r"T5Model is not supported; labkit reads GPT2LMHeadModel"):
        from_huggingface(T5Model(T5Config(**tiny)))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    stretched = LlamaConfig(
        **small,
        num_attention_heads=2,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    )
    with pytest.raises(LabError, match="rope_type 'linear'"):
        from_huggingface(LlamaForCausalLM(stretched))
    with pytest.raises(LabError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5Model"]}))
    with pytest.raises(LabError, match="no safetensors"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LabError, match="holds T5Model"):
        load_pretrained(tmp_path)


def test_weights_of_another_shape_are_named(tmp_path):
    save_pretrained(Transformer(TransformerConfig.gpt2(**TINY)), tmp_path)
    details = json.loads((tmp_path / "config.json").read_text())
    details["labkit"]["d_ff"] = 32
    (tmp_path / "config.json").write_text(json.dumps(details))
    with pytest.raises(LabError, match="different models"):
        load_pretrained(tmp_path)

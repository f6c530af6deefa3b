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
    ("changes", "parts"),
    [
        ({"num_labels": 4, "pooling": "first"}, ("pooler.weight", "classifier.weight")),
        ({"vocabulary_head": True}, ("transform.dense.weight",)),
    ],
    ids=["classifier", "vocabulary"],
)
def test_of_an_old_encoder_only_the_new_parts_are_drawn(changes, parts):
    old = Transformer(TransformerConfig.bert(**TINY, vocabulary_head=False)).eval()
    source = to_huggingface(old)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    torch.manual_seed(3)
    new = from_huggingface(source, **changes)
    after = torch.rand(())
    torch.manual_seed(3)
    state = new.state_dict()
    for name in parts:
        drawn = torch.empty_like(state[name]).normal_(std=new.config.initializer_range)
        assert torch.equal(state[name], drawn), name
        assert not state[name.replace("weight", "bias")].any()
    assert torch.equal(after, torch.rand(())), "nothing else takes random numbers"
    if new.lm_head is not None:
        assert torch.equal(new.transform.norm.weight, torch.ones(TINY["d_model"]))
        assert new.lm_head.weight is new.embedding.weight
        assert not new.lm_head.bias.any()
    assert all(p.requires_grad and not p.is_meta for p in new.parameters())
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert all(torch.equal(source.state_dict()[name], value) for name, value in before.items())


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


def edit_config(folder, **changes):
    file = folder / "config.json"
    details = json.loads(file.read_text())
    for name, value in changes.items():
        where = details["labkit"] if name in details["labkit"] else details
        where[name] = value
    file.write_text(json.dumps(details))


def test_weights_of_another_shape_are_named(tmp_path):
    save_pretrained(Transformer(TransformerConfig.gpt2(**TINY)), tmp_path)
    edit_config(tmp_path, d_ff=32, n_inner=32)
    with pytest.raises(LabError, match="different models"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"d_ff": 32}, {"num_heads": 2}, {"activation": "relu"}, {"norm_eps": 0.5}]
)
def test_a_block_that_contradicts_config_json_is_passed_over(changes, tmp_path):
    model = Transformer(TransformerConfig.gpt2(**TINY)).eval()
    save_pretrained(model, tmp_path)
    edit_config(tmp_path, **changes)
    ids = torch.randint(300, (2, 5))
    assert_close(load_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("block", [{"surprise": 1}, {"vocab_size": "many"}, "text", [1], 7])
def test_a_damaged_block_is_named(block, tmp_path):
    save_pretrained(Transformer(TransformerConfig.gpt2(**TINY)), tmp_path)
    details = json.loads((tmp_path / "config.json").read_text())
    details["labkit"] = {**details["labkit"], **block} if isinstance(block, dict) else block
    (tmp_path / "config.json").write_text(json.dumps(details))
    with pytest.raises(LabError, match=r'block "labkit".* is damaged'):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("width", [2**20, 2**40])
def test_a_size_beyond_all_memory_is_an_error_not_an_allocation(width, tmp_path):
    save_pretrained(Transformer(TransformerConfig.gpt2(**TINY)), tmp_path)
    edit_config(tmp_path, d_model=width, n_embd=width, d_ff=64, n_inner=64)
    with pytest.raises(LabError, match=r"different models|impossible model"):
        load_pretrained(tmp_path)
    edit_config(tmp_path, d_model=16, n_embd=16, num_layers=10**9, n_layer=10**9)
    with pytest.raises(LabError, match="1000000000 layers"):
        load_pretrained(tmp_path)


#: Shapes of which a part is written for transformers as zeros or a table: there it can be trained.
VOID = {
    "gpt2 without biases": TransformerConfig.gpt2(**TINY, bias=False),
    "gpt2 with sines": TransformerConfig.gpt2(**TINY, position="sinusoidal"),
    "bert without biases": TransformerConfig.bert(**TINY, bias=False),
    "bert with sines": TransformerConfig.bert(**TINY, position="sinusoidal"),
    "bert without types": TransformerConfig.bert(**TINY, token_types=0),
    "bart without biases": TransformerConfig.bart(**TINY, bias=False),
    "bart with sines": TransformerConfig.bart(**TINY, position="sinusoidal"),
    "llama": TransformerConfig.llama(**TINY),
    "bert, first token": TransformerConfig.bert(**TINY, num_labels=3, pooling="first"),
}


def inputs_of(config):
    ids = torch.randint(300, (2, 5))
    more = {"decoder_input_ids": torch.randint(300, (2, 4))}
    return {"input_ids": ids, **(more if config.kind == "encoder_decoder" else {})}


@pytest.mark.parametrize("config", VOID.values(), ids=VOID.keys())
def test_what_transformers_trained_on_is_not_forgotten(config, tmp_path):
    """The block "labkit" stays in config.json when transformers saves; it may be out of date."""
    import transformers

    model = (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config).eval()
    save_pretrained(model, tmp_path / "ours")
    inputs = inputs_of(config)
    again = load_pretrained(tmp_path / "ours")
    assert again.config == config, "untouched, the block is believed"
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)

    name = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    assert "labkit" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert_close(
        load_pretrained(tmp_path / "theirs")(**inputs).logits, theirs.eval()(**inputs).logits
    )


def test_a_mean_pooled_classifier_trained_on_in_transformers_is_read_as_such(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = Transformer(TransformerConfig.bert(**TINY, num_labels=3, pooling="mean")).eval()
    save_pretrained(model, tmp_path / "ours")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", num_labels=3)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = torch.randint(300, (2, 5))
    assert_close(load_pretrained(tmp_path / "theirs")(ids).logits, theirs.eval()(ids).logits)


def test_resized_embeddings_and_several_files_are_read(tmp_path):
    from transformers import AutoModelForCausalLM

    save_pretrained(Transformer(TransformerConfig.llama(**TINY)), tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.resize_token_embeddings(320)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    again = load_pretrained(tmp_path / "theirs")
    ids = torch.randint(320, (2, 5))
    assert again.config.vocab_size == 320
    assert_close(again(ids).logits, theirs.eval()(ids).logits)
    sorted((tmp_path / "theirs").glob("*.safetensors"))[1].unlink()
    with pytest.raises(LabError, match="missing or damaged"):
        load_pretrained(tmp_path / "theirs")


def test_an_untied_masked_model_keeps_its_own_output_bias():
    from transformers import BertConfig, BertForMaskedLM

    config = to_huggingface(Transformer(TransformerConfig.bert(**TINY))).config
    theirs = BertForMaskedLM(BertConfig(**(config.to_dict() | {"tie_word_embeddings": False})))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    ids = torch.randint(300, (2, 5))
    assert_close(from_huggingface(theirs.eval())(ids).logits, theirs(ids).logits)


SAID = [{"role": "user", "content": "Who has the lamp?"}]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_saved_model_stops_and_chats_in_transformers(family, tmp_path):
    """generate and pipeline read generation_config.json, not config.json."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = train_bpe(["Mira gave the red lamp to Tom. " * 20], 300)
    config = getattr(TransformerConfig, family)(**{**TINY, "vocab_size": tokenizer.vocab_size})
    model = Transformer(config).eval()
    folder = save_pretrained(model, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    hf_tokenizer = AutoTokenizer.from_pretrained(folder)
    assert hf_tokenizer.model_max_length == config.context_length
    asked = hf_tokenizer.apply_chat_template(SAID, add_generation_prompt=True)["input_ids"]
    assert asked == tokenizer.apply_chat_template(SAID)

    # Make the end of text by far the likeliest: the model must stop at once, everywhere.
    with torch.no_grad():
        hidden = model(torch.tensor([asked])).hidden[0, -1]
        weight = theirs.get_output_embeddings().weight
        weight[tokenizer.end_of_text_id] = hidden * 1000 / hidden.norm() ** 2
    written = theirs.generate(torch.tensor([asked]), max_new_tokens=5, do_sample=False)
    assert written[0, len(asked) :].tolist() == [tokenizer.end_of_text_id]
    writer = pipeline("text-generation", model=theirs, tokenizer=hf_tokenizer)
    for prompt in ("Mira", "", SAID):
        assert writer(prompt, max_new_tokens=3, do_sample=False)


def test_the_folder_of_a_tokenizer_will_do(tmp_path):
    """As `labkit finetune` passes it: the ids of the base model's tokenizer stand in the config."""
    tokenizer = train_bpe(["Mira gave the red lamp to Tom. " * 20], 300)
    tokenizer.save(tmp_path / "base")
    config = TransformerConfig.llama(**{**TINY, "vocab_size": tokenizer.vocab_size})
    folder = save_pretrained(Transformer(config), tmp_path / "model", tmp_path / "base")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        assert (said["eos_token_id"], said["pad_token_id"]) == (0, 1)
    assert (folder / "chat_template.jinja").exists()


def test_a_classifier_that_transformers_lacks_is_never_read_as_its_bare_encoder(tmp_path):
    config = TransformerConfig.bert(**TINY, num_labels=3, pooling="mean")
    save_pretrained(Transformer(config), tmp_path)
    edit_config(tmp_path, layer_norm_eps=0.5)
    with pytest.raises(LabError, match=r"contradicts its block .*a classifier"):
        load_pretrained(tmp_path)


def test_what_says_nothing_of_the_shape_does_not_discredit_the_block(tmp_path):
    model = Transformer(TransformerConfig.llama(**TINY, dropout=0.1, initializer_range=0.5)).eval()
    save_pretrained(model, tmp_path)
    edit_config(tmp_path, attention_dropout=0.3, use_cache=False, a_key_of_a_later_version=1)
    assert load_pretrained(tmp_path).config == model.config


def test_an_encoder_gets_no_chat_template(tmp_path):
    tokenizer = train_bpe(["Mira gave the red lamp to Tom. " * 20], 300)
    tokenizer.save(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    for name, shape in (("bert", TransformerConfig.bert), ("llama", TransformerConfig.llama)):
        model = Transformer(shape(**{**TINY, "vocab_size": tokenizer.vocab_size}))
        for kind, saved in (("ours", model), ("theirs", to_huggingface(model))):
            folder = save_pretrained(saved, tmp_path / name / kind, tmp_path / "base")
            assert (folder / "chat_template.jinja").exists() == (name == "llama"), (name, kind)


def test_saving_says_nothing_and_leaves_the_bars_of_transformers_alone(tmp_path, capfd):
    from transformers.utils import logging

    model = Transformer(TransformerConfig.llama(**TINY))
    shown = logging.is_progress_bar_enabled()
    try:
        for wanted in (True, False):
            (logging.enable_progress_bar if wanted else logging.disable_progress_bar)()
            save_pretrained(model, tmp_path / "ours")
            save_pretrained(to_huggingface(model), tmp_path / "theirs")
            assert logging.is_progress_bar_enabled() == wanted
    finally:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    assert "".join(capfd.readouterr()) == ""

"""Strategies of fine-tuning: what trains and what stays, equal to `peft`, saved alone, resumed.

what                                                              bound
frozen weights after three updates                                torch.equal
LoRA, prompt, prefix = peft: logits, and weights after one step   1e-5
LoRA merged = unmerged; merged for a moment and back              1e-5; torch.equal
LoRA at the start = the base; adapters at the start               torch.equal; 0.05
with a KV cache = without                                         1e-5, same tokens
two updates, stopped, two more = four                             torch.equal
layerwise with a factor of 1 = full                               torch.equal

Each also shows that a naive variant fails it.
"""

import copy
import dataclasses
import json

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from training import VOCAB, config, ragged_batches, tiny_model, weights
from transformers import DynamicCache

from labkit import accounting, generation, objectives, optim
from labkit.batches import Batches, Pad
from labkit.errors import LabError
from labkit.generation.token_step import is_plain
from labkit.models import EncoderDecoder, Transformer, TransformerConfig, context_length
from labkit.models.adapting import (
    Strategy,
    apply,
    load_adapter,
    lora,
    merge,
    prompts,
    save_adapter,
    strategies,
)
from labkit.models.huggingface import load_pretrained, save_pretrained, to_huggingface
from labkit.training import train

D, F, LAYERS, CLASSES = 16, 32, 2, 3
SMALL = {"rank": 4, "alpha": 12.0, "length": 3, "width": 5, "last": 1}


def llama() -> Transformer:
    return tiny_model(num_kv_heads=1, context_length=32)


def bert(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        TransformerConfig.bert(
            vocab_size=VOCAB, context_length=32, d_model=D, num_layers=LAYERS, num_heads=2, d_ff=F,
            num_labels=CLASSES, dropout=dropout,
        )
    )  # fmt: skip


def gpt2() -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        TransformerConfig.gpt2(
            vocab_size=VOCAB, context_length=32, d_model=D, num_layers=LAYERS, num_heads=2, d_ff=F,
            dropout=0.0,
        )
    )  # fmt: skip


def hf_bert():
    return to_huggingface(bert())


KINDS = {"llama": llama, "bert": bert, "transformers bert": hf_bert}


def labelled_batches(batch_size: int = 8, examples: int = 24) -> Batches:
    generator = torch.Generator().manual_seed(1)
    rows = [
        {
            "input_ids": torch.randint(VOCAB, (4 + i % 5,), generator=generator),
            "labels": torch.tensor(i % CLASSES),
        }
        for i in range(examples)
    ]
    return Batches(rows, batch_size, Pad(0), seed=0)


def problem(model):
    """What a model of this file learns: objective and batches."""
    if getattr(model.config, "num_labels", 0) == CLASSES:
        return objectives.classification, labelled_batches()
    return objectives.causal_lm, ragged_batches()


def strategy(name: str, **changes) -> Strategy:
    return Strategy(name, **{**SMALL, **changes})  # type: ignore[arg-type]


def first_batch(model) -> dict[str, torch.Tensor]:
    (batch,) = problem(model)[1].micro_batches(0, None, 0, 1)
    return batch


def logits_of(model, batch) -> torch.Tensor:
    """Logits at the real tokens, or of the classes."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits
    if logits.ndim == 2:
        return logits
    length = batch["input_ids"].shape[1]
    return logits[:, -length:][batch["attention_mask"].bool()]


def shaken(model, size: float = 0.1):
    """Its trained weights moved at random, so that nothing is at a special start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=generator))
    return model


# What trains

#: A layer's parameters: of attention's q, k, v, out and of the feed-forward net, with biases.
Q, KV_LLAMA = D * D + D, D // 2 * D
BERT_BLOCK = 4 * Q + 2 * D * F + F + D + 4 * D
BERT_EMBEDDING = (VOCAB + 32 + 2) * D + 2 * D
LLAMA_BLOCK = 2 * D * D + 2 * KV_LLAMA + 3 * D * F + 2 * D
HEAD = CLASSES * D + CLASSES
COUNTS = {
    "llama": {
        "full": VOCAB * D + LAYERS * LLAMA_BLOCK + D,
        "layerwise": VOCAB * D + LAYERS * LLAMA_BLOCK + D,
        "last_k": LLAMA_BLOCK + D,
        "feed_forward": LAYERS * 3 * D * F,
        "adapters": LAYERS * 2 * (2 * D * 5 + 5 + D) + (2 * LAYERS + 1) * D,
        "lora": LAYERS * 4 * (2 * D + D + D // 2),
        "prompt": 3 * D,
        "prefix": 3 * LAYERS * 2 * D // 2,
    },
    "bert": {
        "full": BERT_EMBEDDING + LAYERS * BERT_BLOCK + Q + HEAD,
        "layerwise": BERT_EMBEDDING + LAYERS * BERT_BLOCK + Q + HEAD,
        "encoder": BERT_EMBEDDING + LAYERS * BERT_BLOCK + Q,
        "head": HEAD,
        "last_k": BERT_BLOCK + Q + HEAD,
        "feed_forward": LAYERS * (2 * D * F + F + D) + HEAD,
        "bitfit": D + LAYERS * (4 * D + F + D + 2 * D) + D + HEAD,
        "adapters": LAYERS * 2 * (2 * D * 5 + 5 + D) + (2 * LAYERS + 1) * 2 * D + HEAD,
        "lora": LAYERS * 2 * 4 * 2 * D + HEAD,
        "prompt": 3 * D + HEAD,
        "prefix": 3 * LAYERS * 2 * D + HEAD,
    },
}
COUNTS["transformers bert"] = COUNTS["bert"]
REFUSED = {"llama": ("encoder", "head", "bitfit")}
BOTH = [(kind, name) for kind in KINDS for name in COUNTS[kind]]

#: Ends of the names that each strategy trains on transformers' BERT; None: all.
OF_BERT = {
    "encoder": lambda n: not n.startswith("classifier"),
    "head": lambda n: n.startswith("classifier"),
    "last_k": lambda n: n.startswith(("bert.encoder.layer.1.", "bert.pooler", "classifier")),
    "feed_forward": lambda n: (
        n.startswith("classifier")
        or ("dense" in n and "attention" not in n and ".layer." in n)
    ),
    "bitfit": lambda n: n.endswith("bias") or n.startswith("classifier"),
    "adapters": lambda n: "adapter." in n or "LayerNorm" in n or n.startswith("classifier"),
    "lora": lambda n: (
        n.startswith("classifier") or ".lora.pairs.q." in n or ".lora.pairs.v." in n
    ),
    "prompt": lambda n: n == "bert.before.vectors" or n.startswith("classifier"),
    "prefix": lambda n: n == "bert.before.vectors" or n.startswith("classifier"),
}  # fmt: skip


def test_every_strategy_is_tested_on_every_kind_or_refused():
    for kind in KINDS:
        assert {*COUNTS[kind], *REFUSED.get(kind, ())} == set(strategies.STRATEGIES)


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_trained_parameters_by_count(kind, name):
    model = KINDS[kind]()
    names = apply(model, strategy(name))
    parameters = dict(model.named_parameters())
    assert names == [n for n, p in parameters.items() if p.requires_grad]
    assert sum(parameters[n].numel() for n in names) == COUNTS[kind][name]


@pytest.mark.parametrize("name", OF_BERT)
def test_trained_parameters_by_name(name):
    model = hf_bert()
    names = apply(model, strategy(name))
    assert names == [n for n, _ in model.named_parameters() if OF_BERT[name](n)]


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, some in REFUSED.items() for n in some])
def test_what_a_model_cannot_take_is_one_sentence(kind, name):
    with pytest.raises(LabError, match=r"(biases|tied)"):
        apply(KINDS[kind](), strategy(name))


@pytest.mark.parametrize(
    ("make", "given", "said"),
    [
        (llama, {"name": "loro"}, "'loro' is unknown"),
        (llama, {"name": "last_k", "last": 3}, "last 3 is out of range: Transformer has 2 blocks"),
        (llama, {"name": "lora", "targets": ("w",)}, "targets"),
        (llama, {"name": "lora", "targets": ("q", "qkv")}, "either qkv"),
        (bert, {"name": "lora", "targets": ("gate",)}, "'gate' is in no block"),
        (llama, {"name": "lora", "rank": 0}, "rank 0 is out of range: choose at least 1"),
        (llama, {"name": "prompt", "length": 32}, "leaves no room"),
        (
            lambda: EncoderDecoder(
                TransformerConfig.bart(
                    vocab_size=9, context_length=8, d_model=8, num_layers=1, num_heads=1
                )
            ),
            {"name": "prefix", "length": 2},
            "EncoderDecoder does not take",
        ),
        (lambda: torch.nn.Linear(2, 2), {"name": "adapters"}, "of no family"),
    ],
)
def test_mistakes_are_named(make, given, said):
    with pytest.raises(LabError, match=said):
        apply(make(), Strategy(**given))


def test_a_strategy_replaces_the_one_before():
    model = bert()
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = logits_of(model.eval(), first_batch(model))
    for name in ("lora", "adapters", "prompt", "prefix"):
        shaken_head = apply(model, strategy(name))
        assert set(shaken_head) - set(before), "something new trains"
    apply(model, "head")
    assert set(dict(model.named_parameters())) == set(before)
    assert torch.equal(logits_of(model, first_batch(model)), plain)
    hf = hf_bert()
    plain = logits_of(hf, first_batch(hf))
    for name in ("lora", "adapters", "prompt", "prefix"):
        apply(hf, strategy(name))
    strategies.remove(hf)
    assert torch.equal(logits_of(hf, first_batch(hf)), plain)


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_frozen_weights_stay_to_the_bit_and_the_others_move(kind, name):
    model = KINDS[kind]()
    trained = set(apply(model, strategy(name)))
    before = weights(model)
    objective, batches = problem(model)
    result = train(model, objective, batches, config(steps=3, warmup_steps=0))
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (n not in trained), n
    assert all(r.loss > 0 for r in result.history)


# Layer-wise rates


def test_layerwise_rates_fall_from_the_top():
    model = bert()
    apply(model, strategy("layerwise", decay=0.5))
    scales = strategies.rate_scales(model)
    assert scales["classifier.weight"] == scales["pooler.weight"] == 1
    assert scales["blocks.1.ffn.up.weight"] == 0.5
    assert scales["blocks.0.attention.qkv.bias"] == 0.25
    assert scales["embedding.weight"] == scales["embedding_norm.bias"] == 0.125
    assert strategies.rate_scales(apply_to(bert(), "full")) == {}

    names = {id(p): n for n, p in model.named_parameters()}
    groups = optim.parameter_groups(model, 0.1)
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert set(found) == set(scales)
    for name, group in found.items():
        assert group["lr_scale"] == scales[name]
        assert (group["weight_decay"] > 0) == (dict(model.named_parameters())[name].ndim > 1)


def apply_to(model, name):
    apply(model, name)
    return model


def after_three(name, optimizer="adamw", **changes):
    model = bert()
    apply(model, strategy(name, **changes))
    settings = config(steps=3, optimizer=optimizer, grad_clip=0.0, warmup_steps=0)
    train(model, *problem(model), settings)
    return weights(model)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "adamw8bit"])
def test_a_factor_of_one_is_full_fine_tuning(optimizer):
    full = after_three("full", optimizer)
    same = after_three("layerwise", optimizer, decay=1.0)
    assert all(torch.equal(same[name], full[name]) for name in full)
    other = after_three("layerwise", optimizer, decay=0.5)
    assert not torch.equal(other["embedding.weight"], full["embedding.weight"])


def test_a_step_of_a_block_is_its_rate_times_the_gradient():
    full, half = bert(), bert()
    start = weights(full)
    for model, settings in ((full, "full"), (half, strategy("layerwise", decay=0.5))):
        apply(model, settings)
        plain = config(steps=1, optimizer="sgd", weight_decay=0.0, grad_clip=0.0, warmup_steps=0)
        train(model, *problem(model), dataclasses.replace(plain, learning_rate=1.0))
    for name, scale in strategies.rate_scales(half).items():
        moved, shorter = weights(full)[name] - start[name], weights(half)[name] - start[name]
        torch.testing.assert_close(shorter, scale * moved, rtol=1e-4, atol=1e-7)


# The start


@pytest.mark.parametrize("make", [llama, bert, gpt2, hf_bert])
def test_at_the_start_lora_is_the_base_and_adapters_nearly(make):
    base = make().eval()
    batch = first_batch(base)
    plain, size = logits_of(base, batch), logits_of(base, batch).std()

    model = copy.deepcopy(base)
    apply(model, strategy("lora"))
    assert torch.equal(logits_of(model, batch), plain)
    for layer in lora.layers(model):
        for pair in layer.lora.pairs.values():
            torch.nn.init.normal_(pair.B)  # both drawn
    assert not torch.allclose(logits_of(model, batch), plain, atol=1e-3)

    model = copy.deepcopy(base)
    apply(model, strategy("adapters"))
    assert (logits_of(model, batch) - plain).abs().max() < 0.05 * size
    for name, p in model.named_parameters():
        if "adapter" in name:
            torch.nn.init.normal_(p, std=0.5)
    assert (logits_of(model, batch) - plain).abs().max() > 0.05 * size


# Equal to peft

METHODS = {
    "lora": {},
    "lora everywhere": {"targets": ("q", "k", "v", "out", "up", "down")},
    "prompt": {},
    "prefix": {},
    "prefix from a net": {"projection": True},
}


def peft_config(name: str, task: str, targets: list[str]):
    if name.startswith("lora"):
        return peft.LoraConfig(task_type=task, r=4, lora_alpha=12, target_modules=targets)
    kind = peft.PromptTuningConfig if name == "prompt" else peft.PrefixTuningConfig
    more = {"prefix_projection": True} if name == "prefix from a net" else {}
    return kind(task_type=task, num_virtual_tokens=3, **more)


def ours_and_theirs(make, method, tmp_path):
    """A labkit model, the same in transformers, and the same in peft, all with the same weights."""
    name, sizes = method.split()[0], METHODS[method]
    if make is gpt2 and name == "lora":  # peft has one pair on its layer c_attn
        sizes = {"targets": ("qkv", *[t for t in sizes.get("targets", ()) if t not in "qkv"])}
    ours = make()
    theirs, plain = to_huggingface(ours), to_huggingface(ours)
    for model in (ours, theirs):
        apply(model, strategy(name, **sizes))
    shaken(ours, 0.5)
    if method == "prefix from a net":  # its net is not saved: copy it
        theirs_before, ours_before = prompts.before(theirs), prompts.before(ours)
        theirs_before.load_state_dict(ours_before.state_dict())
        head = {n: p for n, p in ours.named_parameters() if n.startswith("classifier")}
        theirs.load_state_dict(head, strict=False)
    else:
        load_adapter(theirs, save_adapter(ours, tmp_path / "start"))
    config = json.loads(
        (save_adapter(theirs, tmp_path / "theirs") / "adapter_config.json").read_text()
    )
    settings = peft_config(method, config["task_type"], config.get("target_modules"))
    wrapped = peft.get_peft_model(plain, settings)
    state = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    if name == "lora":
        peft.set_peft_model_state_dict(wrapped, state)
    else:
        encoder, learned = wrapped.prompt_encoder["default"], prompts.before(ours)
        with torch.no_grad():
            encoder.embedding.weight.copy_(learned.vectors)
            if method == "prefix from a net":
                encoder.transform.load_state_dict(learned.net.state_dict())
            for n, p in wrapped.named_parameters():
                if "modules_to_save" in n:
                    p.copy_(state[f"base_model.classifier.{n.split('.')[-1]}"])
    return ours.eval(), theirs.eval(), wrapped.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [llama, bert, gpt2])
def test_equal_to_peft_on_logits_and_after_one_step(make, method, tmp_path):
    ours, theirs, wrapped = ours_and_theirs(make, method, tmp_path)
    batch = first_batch(ours)
    expected = logits_of(wrapped, batch)
    for model in (ours, theirs):
        torch.testing.assert_close(logits_of(model, batch), expected, rtol=1e-5, atol=1e-5)

    settings = config(steps=1, warmup_steps=0, weight_decay=0.0, grad_clip=0.0, learning_rate=3e-3)
    settings = dataclasses.replace(settings, eps=1e-4)  # no sign of a gradient that is all rounding
    saved = []
    for i, model in enumerate((ours, theirs)):
        objective, batches = problem(model)
        train(model, objective, batches, settings)
        folder = save_adapter(model, tmp_path / f"after{i}")
        saved.append(load_file(folder / "adapter_model.safetensors"))
    objective, _ = problem(ours)
    loss, count = peft_loss(wrapped, batch)
    (loss / count).backward()
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    torch.optim.AdamW(trainable, lr=3e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0).step()
    after = get_peft_model_state_dict(wrapped)
    start = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert set(saved[0]) == set(saved[1]) == set(after)
    for name, value in after.items():
        assert (value - start[name]).abs().max() > 1e-3, "the step is larger than the bound"
        for tensors in saved:
            torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-5)


def peft_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if logits.ndim == 3:
        logits = logits[:, -batch["input_ids"].shape[1] :].flatten(0, 1)
    return objectives.cross_entropy(logits, batch["labels"].flatten())


def test_naive_variants_do_not_equal_peft(tmp_path):
    """alpha without / rank; logits read at the prompt; the prefix masked, or at no positions."""
    ours, _, wrapped = ours_and_theirs(llama, "lora", tmp_path)
    batch = first_batch(ours)
    expected = logits_of(wrapped, batch)
    for layer in lora.layers(ours):
        for pair in layer.lora.pairs.values():
            pair.scale = 12.0
    assert not torch.allclose(logits_of(ours, batch), expected, atol=1e-3)

    ours, _, wrapped = ours_and_theirs(llama, "prompt", tmp_path)
    length, real = batch["input_ids"].shape[1], batch["attention_mask"].bool()
    with torch.no_grad():
        shifted = wrapped(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :length]
    assert not torch.allclose(logits_of(ours, batch), shifted[real], atol=1e-3)

    ours, _, wrapped = ours_and_theirs(llama, "prefix", tmp_path)
    expected = logits_of(wrapped, batch)
    plain, pairs = to_huggingface(llama()), prompts.before(ours).pairs(len(real))
    masks = {
        "right": torch.cat((torch.ones(len(real), 3), batch["attention_mask"]), 1).long(),
        "masked": torch.cat((torch.zeros(len(real), 3), batch["attention_mask"]), 1).long(),
    }
    positions = torch.arange(length).expand(len(real), -1)

    def by_hand(mask, first):
        with torch.no_grad():
            return plain(
                batch["input_ids"],
                attention_mask=masks[mask],
                past_key_values=DynamicCache([(k.detach(), v.detach()) for k, v in pairs]),
                position_ids=positions + first,
            ).logits[real]

    torch.testing.assert_close(by_hand("right", 3), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(by_hand("masked", 3), expected, atol=1e-3)
    assert not torch.allclose(by_hand("right", 0), expected, atol=1e-3)


def test_pairs_that_transformers_has_in_one_layer_are_one_pair_of_their_ranks_sum(tmp_path):
    ours = gpt2().eval()
    plain = to_huggingface(ours)
    apply(ours, strategy("lora", targets=("q", "v", "out")))
    shaken(ours)
    wrapped = peft.PeftModel.from_pretrained(plain, save_adapter(ours, tmp_path))
    expected = logits_of(ours, first_batch(ours))
    torch.testing.assert_close(
        logits_of(wrapped, first_batch(ours)), expected, rtol=1e-5, atol=1e-5
    )
    again = gpt2().eval()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(logits_of(again, first_batch(ours)), expected, rtol=1e-5, atol=1e-5)


# Merging, saving


@pytest.mark.parametrize("make", [llama, bert, gpt2, hf_bert])
def test_merged_is_unmerged_and_a_plain_model(make, tmp_path):
    base = make().eval()
    model = copy.deepcopy(base)
    apply(model, strategy("lora", targets=("q", "k", "out", "down")))
    shaken(model)
    batch = first_batch(model)
    unmerged, state = logits_of(model, batch), copy.deepcopy(model.state_dict())

    with lora.merged(model):
        assert set(model.state_dict()) == set(base.state_dict())
        torch.testing.assert_close(logits_of(model, batch), unmerged, rtol=1e-5, atol=1e-5)
        save_pretrained(model, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits_of(model, batch), unmerged)

    without = copy.deepcopy(model)
    merge(model)
    assert strategies.of(model) is None
    torch.testing.assert_close(logits_of(model, batch), unmerged, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits_of(load_pretrained(tmp_path), batch), unmerged, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(LabError, match="0 layers with LoRA"):
        merge(model)
    for layer in lora.layers(without):
        for pair in layer.lora.pairs.values():
            pair.scale = 1.0  # B A alone
    merge(without)
    assert not torch.allclose(logits_of(without, batch), unmerged, atol=1e-3)


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_saved_alone_and_loaded(kind, name, tmp_path):
    base = KINDS[kind]().eval()
    model = copy.deepcopy(base)
    trained = apply(model, strategy(name))
    shaken(model)
    batch = first_batch(model)
    folder = save_adapter(model, tmp_path, base="minilm", classes=["a"])
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == COUNTS[kind][name]
    assert json.loads((folder / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == "minilm"  # fmt: skip
    assert json.loads((folder / "labkit.json").read_text())["classes"] == ["a"]
    assert load_adapter(base, folder) == trained
    torch.testing.assert_close(logits_of(base, batch), logits_of(model, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("make", [llama, bert])
def test_peft_opens_ours_and_labkit_opens_theirs(make, name, tmp_path):
    ours, _, wrapped = ours_and_theirs(make, name, tmp_path)
    batch = first_batch(ours)
    expected = logits_of(ours, batch)
    opened = peft.PeftModel.from_pretrained(to_huggingface(make()), tmp_path / "start").eval()
    torch.testing.assert_close(logits_of(opened, batch), expected, rtol=1e-5, atol=1e-5)
    wrapped.save_pretrained(tmp_path / "from peft")
    for model in (make(), to_huggingface(make())):
        load_adapter(model, tmp_path / "from peft")
        torch.testing.assert_close(logits_of(model.eval(), batch), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    model = llama()
    with pytest.raises(LabError, match="has no strategy"):
        save_adapter(model, tmp_path)
    apply(model, strategy("lora"))
    folder = save_adapter(model, tmp_path / "lora")
    with pytest.raises(LabError, match="no tensor of the adapter is for a layer"):
        load_adapter(bert(), folder)
    with pytest.raises(LabError, match="has shape"):
        load_adapter(tiny_model(d_model=32), folder)
    with pytest.raises(LabError, match="has no place"):
        load_adapter(tiny_model(num_layers=1, num_kv_heads=1), folder)
    file = folder / "adapter_config.json"
    kept = file.read_text()
    for change, said in (
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3': labkit reads LORA"),
    ):
        file.write_text(json.dumps(json.loads(kept) | change))
        with pytest.raises(LabError, match=said):
            load_adapter(llama(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    file.write_text(kept)
    with pytest.raises(LabError, match="missing or damaged"):
        load_adapter(llama(), folder)
    apply(model, strategy("adapters"))
    with pytest.raises(LabError, match="is in only one of"):
        load_adapter(tiny_model(num_layers=1), save_adapter(model, tmp_path / "nets"))


# Generation


@pytest.mark.parametrize("name", ["lora", "adapters", "prompt", "prefix"])
@pytest.mark.parametrize("library", ["labkit", "transformers"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_with_a_cache_as_without(make, library, name):
    model = make().eval()
    model = to_huggingface(model) if library == "transformers" else model
    texts = [[5, 6, 7, 8], [9, 1]]  # of two lengths: padded on the left
    plain = next(iter(generation.stream(model, texts, 8, temperature=0))).logits
    apply(model, strategy(name, targets=("q", "v") if make is llama else ("qkv",)))
    shaken(model, 0.5)
    assert not is_plain(model) if library == "labkit" else True
    with_cache, without = (
        list(generation.stream(model, texts, 8, temperature=0, use_cache=use))
        for use in (True, False)
    )
    for a, b in zip(with_cache, without, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)
    ignored = (with_cache[0].logits - plain).abs().max()
    assert ignored > 1e-3, "ignoring what was learned would be noticed"
    written = torch.stack([step.tokens for step in with_cache], 1).tolist()
    alone = [generation.generate(model, text, 8, temperature=0) for text in texts]
    assert alone == written


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_what_is_learned_takes_room_in_the_context(name):
    model = llama().eval()
    apply(model, strategy(name))
    assert context_length(model) == 29
    assert context_length(apply_to(to_huggingface(gpt2()), strategy(name))) == 29
    written = generation.generate(model, [1, 2], 60, temperature=0)  # slides
    assert len(written) == 60
    with pytest.raises(LabError, match=r"has 33 tokens, 3 of them learned"):
        model(torch.ones(1, 30, dtype=torch.long))
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(LabError, match="document_ids pack"):
        model(ids, document_ids=ids, position_ids=ids)


# Training on


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_two_updates_and_two_more_are_four(name, tmp_path):
    def run(**changes):
        model = bert(dropout=0.1)
        apply(model, strategy(name))
        settings = config(save_every=2, steps=4, **changes)
        stop = changes.pop("until", None)
        train(
            model, *problem(model), dataclasses.replace(settings, **changes),
            on_step=lambda record: "stop" if record.step == stop else None,
        )  # fmt: skip
        return weights(model)

    whole = run()
    part = bert(dropout=0.1)
    apply(part, strategy(name))

    class Killed(Exception):
        pass

    def kill(record):
        if record.step == 3:  # one update after the checkpoint is lost
            raise Killed

    settings = config(save_every=2, steps=4, out=tmp_path)
    with pytest.raises(Killed):
        train(part, *problem(part), settings, on_step=kill)
    resumed = bert(dropout=0.1)
    apply(resumed, strategy(name))
    train(resumed, *problem(resumed), dataclasses.replace(settings, resume=True))
    assert all(torch.equal(value, whole[n]) for n, value in weights(resumed).items())
    anew = bert(dropout=0.1)
    apply(anew, strategy(name))
    train(anew, *problem(anew), config(steps=2))
    assert any(not torch.equal(value, whole[n]) for n, value in weights(anew).items())
    opened = {entry.name for entry in tmp_path.iterdir()}
    assert ("model" in opened) == (name not in ("adapters", "prompt", "prefix"))


def test_activation_checkpointing_changes_nothing():
    for name in ("lora", "adapters", "prompt", "prefix"):
        found = []
        for saving in (False, True):
            model = llama()
            apply(model, strategy(name))
            model.gradient_checkpointing = saving
            train(model, *problem(model), config(steps=2))
            found.append(weights(model))
        for n, value in found[0].items():
            torch.testing.assert_close(found[1][n], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "name"), BOTH)
def test_gradients_and_moments_cost_what_the_count_says(kind, name):
    model = KINDS[kind]()
    trained = apply(model, strategy(name))
    batch = first_batch(model)
    objective, _ = problem(model)
    measured = accounting.measure_memory(model, lambda: objective(model, batch)[0])
    shape = llama().config if kind == "llama" else bert().config
    predicted = accounting.predict_memory(shape, 8, 16, trainable=COUNTS[kind][name])
    assert measured.gradients == predicted.gradients
    assert measured.optimizer == predicted.optimizer + 4 * len(trained)  # a counter a tensor

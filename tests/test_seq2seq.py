"""Sources and targets: batches, smoothing, what is read of the source, what own words cost."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from labkit.batches import (
    Batches,
    Pad,
    continued_example,
    prompt_ids,
    source_ids,
    source_target,
    translated_example,
    translated_examples,
)
from labkit.errors import LabError
from labkit.evaluation import mean_loss
from labkit.evaluation.exposure import exposure
from labkit.generation import beam_search, generate
from labkit.models import (
    EncoderDecoder,
    Source,
    Transformer,
    TransformerConfig,
    cross_attention_by_hand,
    padding_mask,
)
from labkit.models.attention import CrossAttention
from labkit.models.cross_weights import cross_weights
from labkit.objectives import SmoothedLM, causal_lm, seq2seq, smoothing_floor
from labkit.text import train_bpe
from labkit.training import TrainConfig, train

TINY = {"vocab_size": 23, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 4}
BART = TransformerConfig.bart(**TINY, dropout=0.0)
MODERN = TransformerConfig.llama(**TINY, kind="encoder_decoder", num_kv_heads=2)
END = 22
shapes = pytest.mark.parametrize("config", [BART, MODERN], ids=["bart", "modern"])


def model_of(config, spread=0.15, trained=False):
    torch.manual_seed(0)
    model = (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.requires_grad_(trained).eval()


def pairs(count=12, seed=0):
    """Sources of 3 to 6 tokens, of which the target is the reverse."""
    generator = torch.Generator().manual_seed(seed)
    sources = [torch.randint(20, (3 + i % 4,), generator=generator).tolist() for i in range(count)]
    return [[*s, END] for s in sources], [s[::-1] for s in sources]


# --- examples ----------------------------------------------------------------------------------


@shapes
def test_a_padded_batch_of_pairs_has_the_loss_of_its_pairs_one_by_one(config):
    model, (sources, targets) = model_of(config), pairs()
    examples = [translated_example(s, t, END) for s, t in zip(sources, targets, strict=True)]
    batch = Pad(7)(examples)
    assert batch["input_ids"].shape == batch["decoder_input_ids"].shape == (12, 8)
    loss, count = causal_lm(model, batch)
    assert count == sum(len(t) + 1 for t in targets)
    alone = [causal_lm(model, Pad(0, 1)([example]))[0] for example in examples]
    assert_close(loss, torch.stack(alone).sum(), atol=1e-3, rtol=1e-5)
    unmasked = {key: value for key, value in batch.items() if key != "attention_mask"}
    assert abs(float(causal_lm(model, unmasked)[0] - loss)) > 0.1, "padding of the source is read"


def test_texts_become_pairs_with_their_ends():
    tokenizer = train_bpe(["thou art he", "you are he"] * 20, 270)
    end = tokenizer.end_of_text_id
    (example,) = translated_examples(tokenizer, ["thou art"], ["you are"], 40)
    assert example["input_ids"].tolist() == [*tokenizer.encode("thou art"), end]
    said = tokenizer.encode("you are")
    assert example["decoder_input_ids"].tolist() == [end, *said]
    assert example["labels"].tolist() == [*said, end]
    (short,) = translated_examples(tokenizer, ["thou art"], ["you are"], 2)
    assert short["input_ids"].tolist() == [*source_ids(tokenizer, "thou art")[:1], end]
    assert short["labels"].tolist() == said[:2], "what is cut does not end"
    text = continued_example(tokenizer, "thou art", "you are")
    prompt = prompt_ids(tokenizer, "thou art")
    assert prompt == [end, *tokenizer.encode("thou art\n")]
    assert text["input_ids"].tolist() == [*prompt, *said]
    assert text["labels"][len(prompt) - 1 :].tolist() == [*said, end]
    assert (text["labels"][: len(prompt) - 1] == -100).all()
    with pytest.raises(LabError, match="source of 1 and target of 0 tokens"):
        translated_examples(tokenizer, [""], [""], 9)
    with pytest.raises(LabError, match="max_length 1 is out of range"):
        translated_examples(tokenizer, ["a"], ["b"], 1)


def test_the_examples_in_the_docstrings():
    for module in (source_target, seq2seq):
        assert doctest.testmod(module).failed == 0


# --- smoothing ---------------------------------------------------------------------------------


@shapes
def test_a_smoothed_loss_by_hand_in_training_and_the_plain_one_in_evaluation(config):
    model, (sources, targets) = model_of(config), pairs()
    batch = Pad(0)([translated_example(s, t, END) for s, t in zip(sources, targets, strict=True)])
    labels = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logs = model(**inputs).logits.log_softmax(-1)
    valid = labels != -100
    nll = -logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0][valid]
    mean = -logs.mean(-1)[valid]
    model.train()  # without dropout the same logits
    loss, count = SmoothedLM(0.1)(model, batch)
    assert count == valid.sum()
    assert_close(loss, (0.9 * nll + 0.1 * mean).sum(), atol=1e-3, rtol=1e-5)
    model.eval()
    assert_close(SmoothedLM(0.1)(model, batch)[0], nll.sum(), atol=1e-3, rtol=1e-5)
    assert abs(float(loss - nll.sum())) > 0.1


def test_evaluation_during_training_is_the_plain_loss():
    sources, targets = pairs(24)
    examples = [translated_example(s, t, END) for s, t in zip(sources, targets, strict=True)]
    batches, model = Batches(examples, 8, Pad(0)), model_of(BART, trained=True)
    config = TrainConfig(steps=4, eval_every=4, learning_rate=1e-3, precision="fp32")
    result = train(model, SmoothedLM(0.3), batches, config, validation=batches)
    plain, _ = mean_loss(model, causal_lm, batches, precision="fp32")
    assert result.history[-1].validation["loss"] == pytest.approx(plain, rel=1e-5)


def test_the_floor_of_smoothing_is_the_loss_of_the_smoothed_target_itself():
    q = torch.full((9,), 0.2 / 9)
    q[3] += 0.8
    best = F.cross_entropy(q.log()[None], torch.tensor([3]), label_smoothing=0.2)
    assert smoothing_floor(0.2, 9) == pytest.approx(float(best), rel=1e-5)
    sure = torch.full((1, 9), -30.0)
    sure[0, 3] = 30.0
    assert float(F.cross_entropy(sure, torch.tensor([3]), label_smoothing=0.2)) > 10
    assert smoothing_floor(0.0, 9) == 0
    with pytest.raises(LabError, match=r"smoothing 1\.0 is out of range"):
        SmoothedLM(1.0)


# --- cross-attention ---------------------------------------------------------------------------


@shapes
def test_cross_attention_by_hand_is_the_fused_one(config):
    model = model_of(config)
    layer = next(m for m in model.modules() if isinstance(m, CrossAttention))
    x, hidden = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    source = Source(hidden, padding_mask(mask))
    out, weights = cross_attention_by_hand(layer, x, source)
    assert_close(out, layer(x, source), atol=1e-5, rtol=1e-5)
    assert weights.shape == (2, 4, 5, 7)
    assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert (weights[1, :, :, 4:] == 0).all()
    naive, _ = cross_attention_by_hand(layer, x, Source(hidden))
    assert (naive - out).abs().max() > 1e-3


@shapes
def test_the_weights_of_all_layers_and_the_model_is_left_as_it_was(config):
    model = model_of(config).train()
    sources, targets = pairs()
    batch = Pad(0)([translated_example(s, t, END) for s, t in zip(sources, targets, strict=True)])
    weights = cross_weights(
        model, batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"]
    )
    assert weights.shape == (2, 12, 4, 8, 8)
    assert_close(weights.sum(-1), torch.ones(2, 12, 4, 8))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


# --- learning, exposure ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copier():
    """An encoder-decoder that learned to write its source's tokens, one by one."""
    torch.manual_seed(0)
    config = TransformerConfig.bart(
        vocab_size=23, context_length=16, d_model=32, num_layers=1, num_heads=4, dropout=0.0,
        initializer_range=0.18,
    )  # fmt: skip
    model = EncoderDecoder(config)
    sources, _ = pairs(400)
    examples = [translated_example(s, s[:-1], END) for s in sources]
    batches = Batches(examples, 32, Pad(0))
    settings = TrainConfig(steps=350, learning_rate=4e-3, warmup_steps=20, precision="fp32")
    history = train(model, SmoothedLM(0.05), batches, settings).history
    assert history[-1].loss < 0.5 * history[0].loss
    return model


def test_it_learns_to_copy_and_its_attention_stands_on_the_diagonal(copier):
    sources, _ = pairs(20, seed=5)
    said = generate(copier, sources, 10, temperature=0, end_id=END, start_id=END)
    right = sum(s[:-1] == t for s, t in zip(sources, said, strict=True))
    assert right >= 10
    best = [b[0].ids for b in beam_search(copier, sources, 10, 4, 1.0, END, start_id=END)]
    assert sum(s[:-1] == t for s, t in zip(sources, best, strict=True)) >= right - 2
    examples = Pad(0)([translated_example(s, s[:-1], END) for s in sources])
    weights = cross_weights(
        copier, examples["input_ids"], examples["attention_mask"], examples["decoder_input_ids"]
    )
    read = weights.mean((0, 2)).argmax(-1)
    hits = [int(read[i, t]) == t for i, s in enumerate(sources) for t in range(len(s) - 1)]
    assert sum(hits) / len(hits) > 0.5


def test_own_words_cost_nothing_at_first_and_something_later():
    for config in (BART, TransformerConfig.gpt2(**TINY, dropout=0.0)):
        model, (sources, targets) = model_of(config, spread=0.4), pairs()
        targets = [[*t, END] for t in targets]
        longest = max(map(len, targets))
        own = generate(model, sources, longest, temperature=0, start_id=END)
        found = exposure(model, sources, targets, own, END, batch_size=5)
        assert found.count_T.tolist() == [12, 12, 12, 12, 9, 6, 3]
        assert_close(found.gold_nats_T[0], found.own_nats_T[0])
        assert found.gold_right_T[0] == found.own_right_T[0]
        assert (found.gold_nats_T[1:] - found.own_nats_T[1:]).abs().max() > 0.01
        perfect = exposure(model, sources, own, own, END)
        assert_close(perfect.gold_nats_T, perfect.own_nats_T)
        assert_close(perfect.own_right_T, perfect.count_T)


def test_exposure_is_that_of_one_pair_after_the_other():
    model, (sources, targets) = model_of(BART), pairs()
    own = generate(model, sources, 6, temperature=0, start_id=END)
    found = exposure(model, sources, targets, own, END)
    nats = 0.0
    for source, target, said in zip(sources, targets, own, strict=True):
        for t, token in enumerate(target):
            prefix = torch.tensor([[END, *said[:t]]])
            with torch.no_grad():
                logits = model(torch.tensor([source]), decoder_input_ids=prefix).logits[0, -1]
            nats -= float(logits.log_softmax(-1)[token])
    assert float(found.own_nats_T.sum()) == pytest.approx(nats, rel=1e-5)
    assert math.isfinite(nats)


def test_exposure_that_cannot_be_measured_is_said():
    model, (sources, targets) = model_of(BART), pairs(2)
    with pytest.raises(LabError, match="answer 0 has 1 tokens, its target 3: let the model"):
        exposure(model, sources, targets, [[1], [1, 2, 3, 4]], END)
    with pytest.raises(LabError, match="2 sources, 2 targets and 0 answers"):
        exposure(model, sources, targets, [], END)


# --- a model that makes its logits itself --------------------------------------------------------


class Echo(EncoderDecoder):
    """Gives each token of its source three nats more: it needs their ids."""

    def forward(self, *inputs, cache=None, source=None, **named):
        if source is None:
            read = [named.pop(k, None) for k in ("input_ids", "attention_mask")]
            source = self.read(*(inputs[:2] or read))
        answer = named.get("decoder_input_ids", inputs[2] if len(inputs) > 2 else None)
        assert source.ids_BS is not None
        output = self.decoder(answer, cache=cache, source=source)
        real_BS = 1.0 if source.mask_B11S is None else source.mask_B11S[:, 0, 0].float()
        said_BS = 3.0 * real_BS * torch.ones_like(source.ids_BS, dtype=torch.float)
        heard = torch.zeros_like(output.logits[:, 0]).scatter_add(-1, source.ids_BS, said_BS)
        return output._replace(logits=output.logits + heard[:, None])


def test_in_a_search_each_beam_keeps_the_tokens_of_its_source():
    torch.manual_seed(0)
    model, (sources, _) = Echo(BART).eval(), pairs(6)
    together = beam_search(model, sources, 6, 3, 1.0, END, start_id=END)
    for source, found in zip(sources, together, strict=True):
        (alone,) = beam_search(model, [source], 6, 3, 1.0, END, start_id=END, use_cache=False)
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert_close([h.score for h in found], [h.score for h in alone], atol=1e-4, rtol=1e-4)

"""objectives: what each one counts, and the contrastive loss beside its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from labkit import objectives
from labkit.batches import (
    Batches,
    CorruptSpans,
    MaskTokens,
    NextSentence,
    Pad,
    document_windows,
    in_turn,
    neighbours,
    pair_groups,
)
from labkit.errors import LabError
from labkit.models import EncoderDecoder, Transformer, TransformerConfig
from labkit.objectives import losses

VOCAB = 40
SPECIAL = range(30, 40)  # 30 end, 31 pad, 32 mask, 33 first, 34 separator, 35 ... sentinels


def model(kind="encoder", **changes):
    torch.manual_seed(0)
    config = TransformerConfig.llama(
        vocab_size=VOCAB, context_length=32, d_model=16, num_layers=1, num_heads=2, kind=kind,
        **changes,
    )  # fmt: skip
    return (EncoderDecoder if kind == "encoder_decoder" else Transformer)(config).eval()


@pytest.fixture
def documents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(30, (60,), generator=generator).tolist() for _ in range(6)]


# --- the loss ---


def test_infonce_is_its_formula():
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    total, count = losses.contrastive(first, second, temperature=0.2)
    expected = 0.0
    for b in range(3):
        for i in range(5):
            scores = torch.stack(
                [F.cosine_similarity(first[b, i], second[b, j], dim=0) / 0.2 for j in range(5)]
            )
            expected += float(torch.logsumexp(scores, 0) - scores[i])
    assert int(count) == 15
    assert float(total) == pytest.approx(expected, rel=1e-12)


def test_infonce_of_equal_vectors_is_the_logarithm_of_the_group():
    ones = torch.ones(2, 8, 4)
    total, count = losses.contrastive(ones, ones)
    assert float(total / count) == pytest.approx(math.log(8))


def test_negatives_stay_inside_the_group():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3, 6)
    whole = losses.contrastive(first, second)
    parts = [losses.contrastive(first[b : b + 1], second[b : b + 1]) for b in range(4)]
    assert_close(whole[0], sum(p[0] for p in parts))
    joined = losses.contrastive(first.reshape(1, 12, 6), second.reshape(1, 12, 6))
    assert float(joined[0]) > float(whole[0]) + 1, "negatives of the whole batch: another problem"


def test_infonce_gradients():
    torch.manual_seed(0)
    vectors = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: losses.contrastive(v[0], v[1], 0.5)[0], (vectors,))


@pytest.mark.parametrize(
    ("size", "temperature", "words"),
    [(1, 0.1, "a group of 1 pair has no negatives"), (2, 0.0, "temperature 0.0 is out of range")],
)
def test_impossible_contrast_is_named(size, temperature, words):
    with pytest.raises(LabError, match=words):
        losses.contrastive(torch.ones(1, size, 3), torch.ones(1, size, 3), temperature)


# --- the objectives ---


def test_contrastive_reads_both_sides_of_each_group(documents):
    groups = pair_groups(neighbours(documents, 8), 3)
    batch = Batches(groups, 2).micro_batches(0)[0]
    assert batch["input_ids"].shape == (2, 2, 3, 8)
    encoder = model(vocabulary_head=False)
    total, count = objectives.contrastive(encoder, batch, temperature=0.1)
    expected = 0.0
    for ids in batch["input_ids"]:
        first, second = (F.normalize(encoder(side).hidden.mean(1), dim=-1) for side in ids)
        expected += F.cross_entropy(first @ second.T / 0.1, torch.arange(3), reduction="sum")
    assert int(count) == 6
    assert_close(total, expected)


def test_next_sentence_adds_its_loss_to_the_masked_one(documents):
    pairs = neighbours(documents, 12)
    corrupt = in_turn(NextSentence(pairs, 33, 34), MaskTokens(32, VOCAB, SPECIAL))
    batch = Batches(pairs, 8, corrupt=corrupt).micro_batches(0)[0]
    two_heads = objectives.NextSentenceModel(model(token_types=2))
    total, count = objectives.masked_lm_with_next_sentence(two_heads, batch, weight=7.0)
    words_only, _ = objectives.masked_lm_with_next_sentence(two_heads, batch, weight=0.0)
    inputs = {key: batch[key] for key in ("input_ids", "token_type_ids")}
    output, scores = two_heads(**inputs)
    masked = F.cross_entropy(
        output.logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"
    )
    pair = F.cross_entropy(scores, batch["next_sentence_label"], reduction="sum")
    assert int(count) == int((batch["labels"] != -100).sum())
    assert_close(words_only, masked)
    assert_close(total, masked + 7 * pair)
    del batch["next_sentence_label"]
    with pytest.raises(LabError, match="no next_sentence_label"):
        objectives.masked_lm_with_next_sentence(two_heads, batch)


def test_causal_lm_serves_masked_tokens_and_spans(documents):
    windows = document_windows(documents, 20)
    masked = Batches(windows, 5, corrupt=MaskTokens(32, VOCAB, SPECIAL)).micro_batches(0)[0]
    total, count = objectives.causal_lm(model(), masked)
    logits = model()(masked["input_ids"]).logits
    assert_close(total, F.cross_entropy(logits.mT, masked["labels"], reduction="sum"))
    assert int(count) == 15

    spans = Batches(windows, 5, Pad(31), corrupt=CorruptSpans(range(35, 40), SPECIAL, 30))
    batch = spans.micro_batches(0)[0]
    both = model("encoder_decoder")
    total, count = objectives.causal_lm(both, batch)
    logits = both(
        batch["input_ids"], batch["attention_mask"], decoder_input_ids=batch["decoder_input_ids"]
    ).logits
    assert_close(total, F.cross_entropy(logits.mT, batch["labels"], reduction="sum"))
    assert int(count) == int((batch["labels"] != -100).sum())


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_a_text_vector_does_not_see_padding(kind):
    reader = model(kind)
    ids = torch.randint(30, (1, 9))
    padded = torch.cat((ids, torch.full((1, 5), 31)), dim=1)
    mask = (torch.arange(14) < 9).long().unsqueeze(0)
    alone = objectives.text_vectors(reader, ids)
    assert_close(objectives.text_vectors(reader, padded, mask), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(objectives.text_vectors(reader, padded), alone, atol=1e-3)

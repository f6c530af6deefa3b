"""Compression, and the two neural baselines: equal to loops, causal, at home in the package."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from labkit.batches import Batches, Windows
from labkit.errors import LabError
from labkit.evaluation import language_model, mean_loss
from labkit.generation import generate
from labkit.models import LSTMLM, FeedForwardLM, compressed_bits_per_byte, counts
from labkit.objectives import causal_lm
from labkit.training import TrainConfig, train

V = 11


def feed_forward(**changes):
    torch.manual_seed(0)
    return FeedForwardLM(**{"vocab_size": V, "context": 3, "d_model": 5, "d_hidden": 7, **changes})


def lstm(**changes):
    torch.manual_seed(0)
    return LSTMLM(**{"vocab_size": V, "d_model": 6, **changes})


MODELS = pytest.mark.parametrize(
    "make", [feed_forward, lstm, lambda: feed_forward(direct=True), lambda: lstm(num_layers=2)]
)

# --- the networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_feed_forward_is_the_formula_position_by_position(direct):
    model = feed_forward(direct=direct)
    if model.direct is not None:
        nn.init.normal_(model.direct.weight)
    ids_BT = torch.randint(V, (2, 6))
    got = model(ids_BT).logits
    assert got.shape == (2, 6, V)
    for b in range(2):
        for t in range(6):
            vectors = [
                model.embedding.weight[ids_BT[b, j]] if j >= 0 else torch.zeros(5)
                for j in range(t - 2, t + 1)
            ]
            x = torch.cat(vectors)
            h = torch.tanh(model.hidden.weight @ x + model.hidden.bias)
            logits = model.output.weight @ h + model.output.bias
            if model.direct is not None:
                logits = logits + model.direct.weight @ x
            assert_close(got[b, t], logits)


def test_feed_forward_reads_its_context_and_nothing_before_it():
    model = feed_forward(context=3)
    ids_BT = torch.randint(V, (1, 8))
    for changed, moved in ((4, True), (5, True), (6, True), (3, False), (7, False)):
        other = ids_BT.clone()
        other[0, changed] = (other[0, changed] + 1) % V
        differs = (model(other).logits[0, 6] - model(ids_BT).logits[0, 6]).abs().max() > 1e-6
        assert bool(differs) == moved, changed


def test_lstm_is_the_cell_written_out():
    model = lstm().double()
    ids_BT = torch.randint(V, (2, 5))
    weight, recurrent = model.lstm.weight_ih_l0, model.lstm.weight_hh_l0
    bias = model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0
    h = c = torch.zeros(2, 6, dtype=torch.float64)
    for t in range(5):
        gates = model.embedding(ids_BT[:, t]) @ weight.T + h @ recurrent.T + bias
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        assert_close(model(ids_BT).logits[:, t], h @ model.output.weight.T + model.output.bias)


@MODELS
def test_no_position_sees_the_future(make):
    model, ids_BT = make(), torch.randint(V, (2, 9))
    other = ids_BT.clone()
    other[:, 5:] = (other[:, 5:] + 1) % V
    before, after = model(ids_BT).logits, model(other).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_tied_embeddings_are_one_matrix():
    tied, untied = lstm(), lstm(tied_embeddings=False)
    assert tied.output.weight is tied.embedding.weight
    assert untied.output.weight is not untied.embedding.weight
    assert counts.count_parameters(untied) - counts.count_parameters(tied) == V * 6


def test_parameter_counts():
    ff = counts.count_parameters(feed_forward())
    assert ff == V * 5 + (3 * 5 + 1) * 7 + (7 + 1) * V
    assert counts.count_parameters(feed_forward(direct=True)) - ff == 3 * 5 * V
    assert counts.count_parameters(lstm()) == V * 6 + 4 * 6 * (6 + 6 + 2) + V


# --- the rest of the package takes them --------------------------------------------------------


@MODELS
def test_the_loop_teaches_them_a_cycle_and_generate_goes_round(make):
    model = make()
    cycle = np.tile(np.arange(V), 40)
    batches = Batches(Windows(cycle, 12), 8)
    config = TrainConfig(
        steps=120,
        learning_rate=2e-2,
        warmup_steps=5,
        weight_decay=0,
        precision="fp32",
        device="cpu",
    )
    history = train(model, causal_lm, batches, config).history
    assert history[0].loss > 2
    assert history[-1].loss < 0.6
    assert generate(model, [3, 4, 5], 12, temperature=0) == [(6 + i) % V for i in range(12)]


@MODELS
def test_evaluation_agrees_with_the_loop(make):
    model = make().eval()
    batches = Batches(Windows(np.random.default_rng(0).integers(0, V, 60), 12), 2)
    score = language_model(model, list(batches.evaluation_batches()))
    loss, tokens = mean_loss(model, causal_lm, batches, precision="fp32")
    assert score.tokens == tokens == 48
    assert score.loss == pytest.approx(loss, rel=1e-6)


@MODELS
def test_generation_is_sampling_from_the_last_position(make):
    model, text = make(), [3, 1, 4]
    new = generate(
        model, text, 30, temperature=0
    )  # as long as one likes: there is no context limit
    for _ in range(30):
        text = [*text, int(model(torch.tensor([text])).logits[0, -1].argmax())]
    assert new == text[3:]


def test_prompts_of_different_lengths_are_refused():
    with pytest.raises(LabError, match="different lengths"):
        generate(lstm(), [[1, 2], [3]], 2)
    assert len(generate(lstm(), [[1, 2], [3, 4]], 2)) == 2


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FeedForwardLM(V, context=0), "context is 0"),
        (lambda: FeedForwardLM(V, d_hidden=0), "d_hidden is 0"),
        (lambda: LSTMLM(0), "vocab_size is 0"),
        (lambda: LSTMLM(V, num_layers=0), "num_layers is 0"),
        (lambda: LSTMLM(V, dropout=1.0), "dropout is 1.0"),
    ],
)
def test_bad_sizes(make, named):
    with pytest.raises(LabError, match=named):
        make()


# --- compression -------------------------------------------------------------------------------


def test_compression_of_noise_costs_eight_bits_and_training_text_helps():
    noise = np.random.default_rng(0).bytes(20_000)
    for method in ("gzip", "xz"):
        assert compressed_bits_per_byte(noise, method=method) == pytest.approx(8, abs=0.05)
        assert compressed_bits_per_byte(noise, noise, method=method) < 0.2


def test_gzip_forgets_what_xz_remembers():
    rng = np.random.default_rng(0)
    page, filler = rng.bytes(5_000), rng.bytes(100_000)
    assert compressed_bits_per_byte(page, page + filler, "gzip") > 7.9
    assert compressed_bits_per_byte(page, filler + page, "gzip") < 1.5
    assert compressed_bits_per_byte(page, page + filler, "xz") < 1.5


def test_gzip_matches_the_library():
    import gzip

    text = b"the cat sat on the mat. " * 50
    header_and_trailer = 18 - 6  # gzip's against zlib's
    expected = 8 * (len(gzip.compress(text, 9)) - header_and_trailer) / len(text)
    assert compressed_bits_per_byte(text, method="gzip") == pytest.approx(expected)


def test_compression_bad_input():
    with pytest.raises(LabError, match="0 bytes"):
        compressed_bits_per_byte(b"")
    with pytest.raises(LabError, match="zip9"):
        compressed_bits_per_byte(b"a", method="zip9")  # type: ignore[arg-type]

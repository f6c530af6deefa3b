"""experts: mixtures in log space, the posterior over experts, routers, and what each costs."""

import math

import pytest
import torch
from torch.testing import assert_close
from training import VOCAB, config, tiny_model

from labkit import objectives
from labkit.batches import Batches, stack
from labkit.errors import LabError
from labkit.evaluation import language_model
from labkit.models import BayesianEnsemble, Ensemble, HardRouting, Router, SoftRouting, experts
from labkit.models.counts import measure_flops
from labkit.training import train


@pytest.fixture(scope="module")
def three():
    models = []
    for seed in range(3):
        model = tiny_model(seed=seed, initializer_range=0.3)
        models.append(model.eval())
    return models


@pytest.fixture(scope="module")
def ids():
    return torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def router():
    torch.manual_seed(5)
    made = Router(VOCAB, 3, d_model=8)
    torch.nn.init.normal_(made.head.weight)
    return made


def log_p(models, ids):
    with torch.no_grad():
        return torch.stack([model(ids).logits.log_softmax(-1) for model in models])


# --- in log space ---


def test_a_mixture_far_below_the_range_of_floats():
    log_p_KN = torch.tensor([[-2000.0], [-2001.0]], dtype=torch.float64)
    log_w_K = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    expected = -2000 + math.log(0.25 + 0.75 * math.exp(-1))
    assert float(experts.mix(log_p_KN, log_w_K[:, None])) == pytest.approx(expected, abs=1e-9)
    naive = (log_w_K[:, None].exp() * log_p_KN.exp()).sum().log()
    assert math.isinf(naive), "probabilities outside log space must be seen to fail"


def test_the_gradient_of_a_mixture_is_weight_minus_responsibility():
    z = torch.randn(3, dtype=torch.float64, requires_grad=True)
    p = torch.rand(3, dtype=torch.float64).log().requires_grad_()
    loss = -experts.mix(p, z.log_softmax(0))
    by_z, by_p = torch.autograd.grad(loss, (z, p))
    r = experts.responsibilities(p, z.log_softmax(0)).detach()
    assert_close(by_z, z.softmax(0).detach() - r)
    assert_close(by_p, -r)


def test_the_posterior_pays_for_a_text_what_the_mixture_of_texts_pays():
    log_p_KBT = torch.rand(3, 2, 40, dtype=torch.float64).log() * 3
    log_prior_K = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    log_w_KBT = experts.posterior_log_weights(log_p_KBT, log_prior_K)
    by_token = experts.mix(log_p_KBT, log_w_KBT).sum(-1)
    whole = experts.mix(log_p_KBT.sum(-1), log_prior_K[:, None])
    assert_close(by_token, whole)
    assert_close(log_w_KBT[:, :, 0].exp(), log_prior_K.exp()[:, None].expand(3, 2))
    assert (by_token >= log_p_KBT.sum(-1) + log_prior_K[:, None] - 1e-9).all()

    seen = torch.log_softmax(log_p_KBT.cumsum(-1) + log_prior_K[:, None, None], 0)
    cheating = experts.mix(log_p_KBT, seen).sum(-1)
    assert (cheating > whole + 0.1).all(), "weights that have seen their token must be noticed"


# --- mixtures as models ---


def test_an_ensemble_is_the_weighted_mean_of_probabilities(three, ids):
    out = Ensemble(three, [1, 2, 1])(ids)
    weights = torch.tensor([0.25, 0.5, 0.25])
    expected = (weights[:, None, None, None] * log_p(three, ids).exp()).sum(0)
    assert_close(out.logits.exp(), expected)
    assert_close(out.weights[0, 0], weights)
    logits = torch.stack([model(ids).logits for model in three])
    of_logits = (weights[:, None, None, None] * logits).sum(0).softmax(-1)
    assert (of_logits - expected).abs().max() > 0.01, "a mean of logits must be noticed"


def test_its_logits_are_log_probabilities_that_evaluation_reads(three, ids):
    ensemble = Ensemble(three)
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    score = language_model(ensemble, [batch])
    expected = experts.mix(
        log_p(three, ids[:, :-1]).gather(-1, ids[:, 1:].expand(3, -1, -1)[..., None])[..., 0],
        torch.full((3, 1, 1), 1 / 3).log(),
    )
    assert score.nats == pytest.approx(float(-expected.sum()), rel=1e-5)
    assert_close(ensemble(ids).logits.logsumexp(-1), torch.zeros(4, 12), atol=1e-5, rtol=0)


def test_the_bayesian_ensemble_follows_bayes_rule(three, ids):
    prior = torch.tensor([0.6, 0.3, 0.1])
    out = BayesianEnsemble(three, prior.tolist())(ids)
    said = log_p(three, ids)[:, :, :-1].gather(-1, ids[:, 1:].expand(3, -1, -1)[..., None])[..., 0]
    for t in (0, 1, 5, 11):
        evidence = prior[:, None] * said[:, :, :t].sum(-1).exp()
        assert_close(out.weights[:, t], (evidence / evidence.sum(0)).T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [Ensemble, BayesianEnsemble, SoftRouting, HardRouting])
def test_no_mixture_looks_ahead(kind, three, ids, router):
    model = kind(three, router) if kind in (SoftRouting, HardRouting) else kind(three)
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    with torch.no_grad():
        one, other = model(ids), model(changed)
    assert_close(one.logits[:, :9], other.logits[:, :9])
    assert (one.logits[:, 9:] - other.logits[:, 9:]).abs().max() > 0.01


# --- routing ---


def test_a_router_reads_the_mean_of_what_came(router, ids):
    logits = router(ids).logits
    for t in (0, 4, 11):
        expected = router.head(router.embedding(ids[:, : t + 1]).mean(1))
        assert_close(logits[:, t], expected)


def test_soft_routing_weights_by_the_router(three, ids, router):
    out = SoftRouting(three, router)(ids)
    assert_close(out.weights, router(ids).logits.softmax(-1))
    expected = (out.weights.movedim(-1, 0)[..., None] * log_p(three, ids).exp()).sum(0)
    assert_close(out.logits.exp(), expected)


@pytest.mark.parametrize("read", [1, 3, 12, 20])
def test_hard_routing_mixes_first_and_then_one_goes_on(three, ids, router, read):
    model = HardRouting(three, router, read=read)
    with torch.no_grad():
        out, soft = model(ids), SoftRouting(three, router)(ids)
    choice = model.choose(ids)
    assert torch.equal(choice, router(ids[:, :read]).logits[:, -1].argmax(-1))
    early = min(read - 1, 12)
    assert_close(out.logits[:, :early], soft.logits[:, :early])
    alone = log_p(three, ids)[choice, torch.arange(4)]
    assert_close(out.logits[:, early:], alone[:, early:])
    assert_close(out.weights.sum(-1), torch.ones(4, 12))


def test_a_router_learns_domains_by_the_loop():
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i in range(60):
        k = i % 3
        ids = torch.randint(10 * k, 10 * k + 10, (6,), generator=generator)
        examples.append({"input_ids": ids, "labels": torch.tensor(k)})
    torch.manual_seed(0)
    router = Router(VOCAB, 3)
    settings = config(steps=40, learning_rate=3e-2, weight_decay=0.0)
    result = train(router, objectives.routing, Batches(examples, 12), settings)
    assert result.history[0].loss == pytest.approx(math.log(3), abs=1e-4), "it starts undecided"
    batch = stack(examples)
    assert (router(batch["input_ids"]).logits[:, -1].argmax(-1) == batch["labels"]).all()
    _, count = objectives.routing(router, batch)
    assert count == 60 * 6


# --- cost ---


def test_predicted_flops_are_measured_flops(three, ids, router):
    systems = {
        "ensemble": Ensemble(three),
        "posterior": BayesianEnsemble(three),
        "soft": SoftRouting(three, router),
        "hard": HardRouting(three, router, read=4),
    }
    for name, system in systems.items():
        one_text = ids[:1]
        with torch.no_grad():
            measured = measure_flops(lambda system=system, one_text=one_text: system(one_text))
        assert system.flops_per_token(12) * 12 == pytest.approx(measured, rel=1e-6), name
    assert systems["hard"].flops_per_token(12) < 0.7 * systems["soft"].flops_per_token(12)


# --- errors ---


def test_experts_that_do_not_fit_are_named(three, router):
    with pytest.raises(LabError, match=r"vocabularies \[31, 40\]"):
        Ensemble([three[0], tiny_model(vocab_size=40)])
    with pytest.raises(LabError, match="0 experts"):
        Ensemble([])
    with pytest.raises(LabError, match="for 3 experts"):
        Ensemble(three, [0.5, 0.5])
    with pytest.raises(LabError, match="not all 0"):
        Ensemble(three, [0.0, 0.0, 0.0])
    with pytest.raises(LabError, match="scores 3 experts and there are 2"):
        SoftRouting(three[:2], router)
    with pytest.raises(LabError, match="read is 0"):
        HardRouting(three, router, read=0)

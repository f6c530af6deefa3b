"""planted: the ten runs of chapter 21 differ from the healthy one by their bug, and by it alone."""

import numpy as np
import pytest
import torch

from labkit.errors import LabError
from labkit.notebook.planted import BUGS, Ward, diagnosis, exchange_test
from labkit.optim import optimizers
from labkit.training import causality_leak, gradient_check, initial_loss, label_offset


@pytest.fixture(scope="module")
def ward():
    return Ward(stories=40, held=6, vocab_size=300, length=24, width=32, layers=2, batch=4,
                updates=12)  # fmt: skip


def patient_with(ward, bug):
    (number,) = [n for n in range(1, 11) if diagnosis(n) == bug]
    return ward.patient(number)


def symptoms(ward, patient):
    """What each check says of a run: the same for all but the bug it is made for."""
    batch, model = patient.batches.micro_batches(0)[0], patient.fresh()
    every = patient.batches.collate(patient.batches.examples)
    course = patient.train(every=2)
    full = {"input_ids": torch.tensor([ids[:13] for ids in ward.train_ids[:2]])}
    kinds = {finding.kind for finding in course.hook.warnings}
    return {
        "denominator": initial_loss(model, patient.objective, batch).excess < -0.3,
        "shift": bool((label_offset(every) != 1).any()),
        "mask": causality_leak(model, full).change > 1e-4,
        "detached": max(gradient_check(model, patient.objective, batch).values()) > 1e-3,
        "mode": "mode" in kinds,
        "order": patient.batches.indices(0) == patient.batches.indices(10),
        "precision": "unmoved" in kinds,
        "rate": patient.config.warmup_steps > patient.config.steps / 2,
        "leak": len(patient.batches.examples) > len(ward.train_ids),
    }


def test_every_bug_has_a_run():
    assert sorted(map(diagnosis, range(1, 11))) == sorted(BUGS)


def test_the_healthy_run_has_none_of_them(ward):
    assert not any(symptoms(ward, ward.patient(0)).values())


@pytest.mark.parametrize("bug", sorted(set(BUGS) - {"decay", "precision"}))
def test_a_run_has_its_bug_and_no_other(ward, bug):
    found = symptoms(ward, patient_with(ward, bug))
    assert {name for name, is_so in found.items() if is_so} == {bug}


def test_weights_in_half_the_bits(ward):
    assert {p.dtype for p in patient_with(ward, "precision").fresh().parameters()} == {
        torch.bfloat16
    }


def test_norms_decay_in_one_run_only_and_the_optimiser_is_put_back(ward):
    honest = optimizers.parameter_groups
    gains = {}
    for name, patient in (("healthy", ward.patient(0)), ("decay", patient_with(ward, "decay"))):
        model = patient.train().model
        vectors = [p.detach().mean() for p in model.parameters() if p.ndim == 1]
        gains[name] = float(torch.stack(vectors).mean())
    assert gains["decay"] < gains["healthy"] - 0.005
    assert optimizers.parameter_groups is honest


def test_a_run_is_the_same_twice_and_what_is_no_run_is_named(ward):
    assert ward.patient(0).train().losses == ward.patient(0).train().losses
    assert ward.patient(0, seed=1).train().losses != ward.patient(0).train().losses
    with pytest.raises(LabError, match="patient 11 is out of range: choose 0 to 10"):
        ward.patient(11)


def test_exchanging_members_of_one_source_is_rarely_a_surprise():
    rng = np.random.default_rng(0)
    honest = [exchange_test(rng.normal(size=20), rng.normal(size=25), 200) for _ in range(100)]
    assert 0.4 < np.mean(honest) < 0.6
    assert np.mean(np.array(honest) < 0.1) < 0.2
    assert exchange_test(rng.normal(size=20), rng.normal(size=25) + 2, 400) < 0.01
    # Two against two: of six ways to divide four numbers, two are as far apart as these.
    assert exchange_test(np.array([0.0, 0.0]), np.array([1.0, 1.1]), 4000) == pytest.approx(
        1 / 3, abs=0.03
    )

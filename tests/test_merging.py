"""merging: averages, lines and task vectors of state dicts; what differs is named."""

import pytest
import torch
from torch.testing import assert_close
from training import tiny_model

from labkit.errors import LabError
from labkit.models.adapting import merging


def states(count=3):
    return [tiny_model(seed=seed).state_dict() for seed in range(count)]


def test_the_average_is_the_mean_tensor_by_tensor():
    a, b, c = states()
    found = merging.average([a, b, c])
    for name in a:
        assert_close(found[name], (a[name] + b[name] + c[name]) / 3)
    weighted = merging.average([a, b], [3, 1])
    assert_close(
        weighted["embedding.weight"], 0.75 * a["embedding.weight"] + 0.25 * b["embedding.weight"]
    )
    assert (weighted["embedding.weight"] - merging.average([a, b])["embedding.weight"]).norm() > 0.1


def test_a_merged_state_loads_and_inputs_stay():
    a, b, _ = states()
    before = {name: tensor.clone() for name, tensor in a.items()}
    model = tiny_model(seed=9)
    model.load_state_dict(merging.average([a, b]))
    assert model.lm_head.weight is model.embedding.weight
    assert all(torch.equal(a[name], before[name]) for name in a)


def test_the_order_of_the_models_does_not_matter():
    a, b, c = states()
    one, other = merging.average([a, b, c]), merging.average([c, a, b])
    assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_interpolation_meets_both_ends():
    a, b, _ = states()
    assert all(torch.equal(merging.interpolate(a, b, 0.0)[name], a[name]) for name in a)
    assert all(torch.equal(merging.interpolate(a, b, 1.0)[name], b[name]) for name in a)
    assert_close(merging.interpolate(a, b, 0.3), merging.average([a, b], [0.7, 0.3]))


def test_task_arithmetic_is_ancestor_plus_scaled_vectors():
    ancestor, a, b = states()
    found = merging.task_arithmetic(ancestor, [a, b], [0.5, -0.25])
    one, two = merging.task_vector(a, ancestor), merging.task_vector(b, ancestor)
    for name, start in ancestor.items():
        assert_close(found[name], start + 0.5 * one[name] - 0.25 * two[name])
    assert_close(merging.task_arithmetic(ancestor, [a, b], 0.5), merging.average([a, b]))
    assert_close(merging.task_arithmetic(ancestor, [a], 1.0), dict(a))


def test_counters_are_kept_and_formats_too():
    a = {"weight": torch.ones(2, dtype=torch.bfloat16), "steps": torch.tensor(7)}
    b = {"weight": torch.zeros(2, dtype=torch.bfloat16), "steps": torch.tensor(7)}
    found = merging.average([a, b])
    assert found["steps"] == 7
    assert found["weight"].dtype == torch.bfloat16
    with pytest.raises(LabError, match=r"'steps' is torch.int64 and differs in model 1"):
        merging.average([a, {**b, "steps": torch.tensor(8)}])


def test_the_first_tensor_that_differs_is_named():
    small, large = tiny_model().state_dict(), tiny_model(d_model=32).state_dict()
    with pytest.raises(
        LabError, match=r"'embedding.weight' has shape \(31, 16\) in model 0 and \(31"
    ):
        merging.average([small, large])
    deeper = tiny_model(num_layers=3).state_dict()
    with pytest.raises(LabError, match=r"'blocks\.2\.\S+' is missing in model 0"):
        merging.interpolate(small, deeper, 0.5)
    with pytest.raises(LabError, match=r"'blocks\.2\.\S+' is missing in model 1"):
        merging.task_vector(deeper, small)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0]])
def test_impossible_weights_are_named(weights):
    with pytest.raises(LabError, match="for 2 models"):
        merging.average(states(2), weights)


def test_nothing_to_merge_is_named():
    with pytest.raises(LabError, match="0 models"):
        merging.average([])
    with pytest.raises(LabError, match="2 scales for 1 experts"):
        merging.task_arithmetic(states(1)[0], states(1), [0.5, 0.5])

"""Tasks one after the other: what forgets less is what it says it is.

what                                                              bound
pull under accumulation = one batch, mean = task + pull           1e-6
gradient of the pull, three ways; joined anchors = all of them    1e-10, float64
soft targets = torch's KL; gradient T (q - p)                     1e-10, float64
Fisher from data = squares of each example's own gradient         1e-6
Fisher with all labels = diagonal of the exact matrix             1e-10, float64
Fisher with drawn labels -> the exact one                         5 % in norm, 400 draws
grown model = the model; the new blocks taken out = the model     torch.equal
a task's logits after another task's adapter trained              torch.equal
figures of a matrix = by hand                                     1e-12

Each also shows that a naive variant fails it.
"""

import copy
import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from training import VOCAB, config, ragged_batches, tiny_model, weights

from labkit import evaluation, generation, objectives, training
from labkit.batches import Batches, stack
from labkit.errors import LabError
from labkit.evaluation import TaskMatrix, mean_loss
from labkit.models import Transformer, TransformerConfig
from labkit.models.adapting import (
    Strategy,
    TaskAdapters,
    insert_blocks,
    remove_blocks,
    strategies,
    train_only,
)
from labkit.models.transformer import Output
from labkit.objectives import (
    Anchor,
    Distilled,
    Pulled,
    anchored,
    causal_lm,
    classification,
    joined,
    quadratic_pull,
    soft_targets,
)
from labkit.training import fisher_diagonal, train


class Softmax(nn.Module):
    """Logits = W x + b: small enough that everything about it is known."""

    def __init__(self, inputs: int = 4, classes: int = 3):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(inputs, classes).double()

    def forward(self, x: torch.Tensor) -> Output:
        return Output(self.layer(x), x, None)


def points(count: int = 12, inputs: int = 4, classes: int = 3) -> Batches:
    torch.manual_seed(2)
    return Batches(
        [
            {"x": torch.randn(inputs, dtype=torch.float64), "labels": torch.tensor(i % classes)}
            for i in range(count)
        ],
        batch_size=4,
        collate=stack,
    )


def exact_matrix(model: Softmax, batches: Batches) -> torch.Tensor:
    """E_x (diag p - p p') (x) (x x'), the Fisher matrix of W, in closed form: (CI, CI)."""
    total = torch.tensor(0.0)
    for batch in batches.evaluation_batches(1):
        x_I = batch["x"][0]
        p_C = model(batch["x"]).logits[0].softmax(-1).detach()
        total = total + torch.kron(torch.diag(p_C) - torch.outer(p_C, p_C), torch.outer(x_I, x_I))
    return total / len(batches.examples)


# --- the pull ----------------------------------------------------------------------------------


def moved_model(scale: float = 0.05) -> tuple[Transformer, Anchor]:
    model = tiny_model()
    importance = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    anchor = anchored(model, importance)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn_like(p)
    return model, anchor


def one_update(objective, micro=None):
    model, anchor = moved_model()
    train(model, objective(anchor), ragged_batches(), config(steps=1, micro_batch_size=micro))
    return weights(model)


def test_the_pull_under_accumulation_is_that_of_one_batch():
    def exact(anchor):
        return Pulled(causal_lm, [anchor], weight=20.0)

    assert_close(one_update(exact, micro=2), one_update(exact), atol=1e-6, rtol=1e-5)


def test_a_pull_that_is_added_once_to_each_micro_batch_is_not():
    def naive(anchor):
        def objective(model, batch):
            loss_sum, count = causal_lm(model, batch)
            return loss_sum + 20.0 * quadratic_pull(model, anchor), count

        return objective

    with pytest.raises(AssertionError):
        assert_close(one_update(naive, micro=2), one_update(naive), atol=1e-6, rtol=1e-5)


def test_the_mean_loss_holds_the_pull_once_in_training_and_not_in_evaluation():
    model, anchor = moved_model()
    batch = next(iter(ragged_batches().evaluation_batches()))
    pulled = Pulled(causal_lm, [anchor], weight=3.0)
    plain, count = causal_lm(model, batch)
    total, same = pulled(model.train(), batch)
    assert_close(total / same, plain / count + 3.0 * quadratic_pull(model, anchor))
    assert_close(pulled(model.eval(), batch)[0], plain)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert pulled(model.train(), nothing)[0].item() == 0


def test_the_pull_is_half_the_weighted_square_and_its_gradient_the_force():
    model = Softmax()
    importance = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    anchor = anchored(model, importance)
    with torch.no_grad():
        model.layer.weight += 0.3
    pull = quadratic_pull(model, anchor)
    assert_close(pull, (importance["layer.weight"] * 0.3**2).sum() / 2)
    pull.backward()
    assert_close(model.layer.weight.grad, importance["layer.weight"] * 0.3)


def test_joined_anchors_pull_as_all_of_them():
    model, anchors = Softmax(), []
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.layer.weight += torch.randn_like(model.layer.weight)
        importance = {n: torch.rand_like(p) for n, p in model.named_parameters()}
        importance["layer.weight"][0, 0] = 0  # a weight that no task minds
        anchors.append(anchored(model, importance))

    def force(some):
        model.zero_grad()
        torch.stack([quadratic_pull(model, a) for a in some]).sum().backward()
        return model.layer.weight.grad.clone()

    with torch.no_grad():
        model.layer.weight -= 1.0
    assert_close(force([joined(anchors)]), force(anchors), atol=1e-10, rtol=0)
    plain_mean = torch.stack([a.weights["layer.weight"] for a in anchors]).mean(0)
    naive = joined(anchors)._replace(
        weights={**joined(anchors).weights, "layer.weight": plain_mean}
    )
    assert float((force([naive]) - force(anchors)).abs().max()) > 0.05


def test_a_strong_pull_holds_what_matters_and_lets_the_rest_go():
    model = tiny_model()
    importance = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    importance["blocks.0.ffn.up.weight"] += 1.0
    anchor = anchored(model, importance)
    train(
        model,
        Pulled(causal_lm, [anchor], weight=1e4),
        ragged_batches(),
        config(steps=20, optimizer="sgd", learning_rate=5e-5, grad_clip=0.0, betas=(0.0, 0.9)),
    )
    gone = {
        n: float((p - anchor.weights[n]).norm() / anchor.weights[n].norm())
        for n, p in model.named_parameters()
        if "ffn.up" in n
    }
    assert gone["blocks.0.ffn.up.weight"] < 0.5 * gone["blocks.1.ffn.up.weight"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Pulled(causal_lm, [], -1.0), "weight -1.0 is out of range"),
        (lambda: anchored(Softmax(), {"nothing": torch.ones(1)}), "no such parameter"),
        (lambda: anchored(Softmax(), {"layer.bias": -torch.ones(3)}), "give 0 or more"),
        (lambda: joined([]), "0 anchors"),
        (lambda: quadratic_pull(tiny_model(), anchored(Softmax())), "no parameter 'layer.weight'"),
        (lambda: Distilled(Softmax(), share=1.5), "share 1.5"),
        (lambda: Distilled(Softmax(), temperature=0.0), "temperature 0.0"),
        (lambda: fisher_diagonal(Softmax(), points(), "some"), "labels 'some' is unknown"),  # type: ignore
        (lambda: fisher_diagonal(Softmax(), points(), examples=0), "examples 0"),
        (lambda: insert_blocks(tiny_model(), [5]), "choose numbers from 0 to 1"),
        (lambda: insert_blocks(tiny_model(), [0, 0]), "each once"),
        (lambda: insert_blocks(Softmax(), [0]), "cannot grow here"),  # type: ignore
        (lambda: train_only(tiny_model(), [2]), "choose from 0 to 1"),
        (lambda: remove_blocks(tiny_model(), [0, 1]), "leave one"),
        (lambda: TaskAdapters(tiny_model(), "full"), "changes the base"),
        (lambda: TaskAdapters(tiny_model(), "lora").keep(), "0 adapters are on"),
        (lambda: TaskAdapters(tiny_model(), "lora").use("news"), "none yet"),
        (lambda: TaskMatrix([[1, 2], [3, 4]], ["a", "b"]), r"shape \(2, 2\) for 2 tasks"),
        (lambda: TaskMatrix(np.full((3, 2), np.nan), ["a", "b"]), "not finite"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_is_allowed(wrong, words):
    with pytest.raises(LabError, match=words):
        wrong()


# --- soft targets ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_are_the_divergence_at_a_temperature(temperature):
    torch.manual_seed(0)
    z, u = torch.randn(2, 7, 5, dtype=torch.float64)
    targets = torch.tensor([0, -100, 2, 1, -100, 4, 3])
    z.requires_grad_(True)
    total, count = soft_targets(z, u, targets, temperature)
    valid = targets != -100
    log_q, p = (z / temperature).log_softmax(-1), (u / temperature).softmax(-1)
    by_torch = F.kl_div(log_q[valid], p[valid], reduction="sum") * temperature**2
    assert_close(total, by_torch, atol=1e-10, rtol=0)
    assert int(count) == 5
    total.backward()
    force = temperature * (log_q.exp() - p).detach()
    force[~valid] = 0
    assert_close(z.grad, force, atol=1e-10, rtol=0)
    everywhere = F.kl_div(log_q, p, reduction="sum") * temperature**2  # naive: padding counts
    assert abs(float((everywhere - total).detach())) > 0.01


def test_soft_targets_of_a_hot_teacher_become_differences_of_logits():
    z, u = torch.randn(2, 3, 6, dtype=torch.float64)
    z = z.sub(z.mean(-1, keepdim=True)).requires_grad_(True)
    u = u - u.mean(-1, keepdim=True)
    soft_targets(z, u, torch.zeros(3, dtype=torch.long), 1e4)[0].backward()
    assert_close(z.grad, (z.detach() - u) / 6, atol=1e-3, rtol=0)


def test_soft_targets_that_count_nowhere_are_nothing():
    z = torch.randn(2, 5, requires_grad=True)
    total, count = soft_targets(z, torch.randn(2, 5), torch.full((2,), -100))
    assert (float(total), int(count)) == (0.0, 0)
    with pytest.raises(LabError, match="one vocabulary"):
        soft_targets(z, torch.randn(2, 4), torch.zeros(2, dtype=torch.long))


def test_distillation_under_accumulation_is_one_batch_and_evaluates_the_labels():
    def run(micro):
        model, teacher = tiny_model(), tiny_model(seed=5)
        objective = Distilled(teacher, share=0.7, temperature=2.0)
        train(model, objective, ragged_batches(), config(steps=2, micro_batch_size=micro))
        return model, objective

    (whole, objective), (parts, _) = run(None), run(2)
    assert_close(weights(parts), weights(whole), atol=1e-5, rtol=1e-4)
    plain = mean_loss(whole, causal_lm, ragged_batches())
    assert mean_loss(whole, objective, ragged_batches()) == pytest.approx(plain, rel=1e-6)


def test_a_teacher_that_is_the_model_itself_is_refused_and_a_copy_pulls_nowhere():
    model = tiny_model()
    batch = next(iter(ragged_batches().evaluation_batches()))
    with pytest.raises(LabError, match="would move along"):
        Distilled(model)(model.train(), batch)
    total, _ = Distilled(copy.deepcopy(model), share=1.0)(model.train(), batch)
    total.backward()
    assert float(total) == pytest.approx(0, abs=1e-4)
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-4


# --- Fisher ------------------------------------------------------------------------------------


def test_the_empirical_fisher_squares_each_examples_own_gradient():
    model, batches = tiny_model(), ragged_batches(examples=6)
    ours = fisher_diagonal(model, batches, "data")
    by_definition = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    targets = 0
    for batch in batches.evaluation_batches(1):
        model.zero_grad()
        loss_sum, count = causal_lm(model, batch)
        loss_sum.backward()
        targets += int(count)
        for n, p in model.named_parameters():
            by_definition[n] += p.grad**2
    by_definition = {n: square / targets for n, square in by_definition.items()}
    assert_close(ours, by_definition, atol=1e-6, rtol=1e-4)

    model.zero_grad()
    loss_sum, _ = causal_lm(model, next(iter(batches.evaluation_batches(6))))
    loss_sum.backward()
    naive = {n: p.grad**2 / targets for n, p in model.named_parameters()}
    with pytest.raises(AssertionError):
        assert_close(naive, by_definition, atol=1e-6, rtol=1e-4)


def test_the_fisher_with_all_labels_is_the_diagonal_of_the_exact_matrix():
    model, batches = Softmax(), points()
    exact = exact_matrix(model, batches).diagonal().view(3, 4)
    ours = fisher_diagonal(model, batches, "all")["layer.weight"]
    assert_close(ours, exact, atol=1e-10, rtol=0)
    empirical = fisher_diagonal(model, batches, "data")["layer.weight"]
    assert float((empirical - exact).norm() / exact.norm()) > 0.1, "another quantity"


def test_the_fisher_is_the_curvature_of_the_mean_loss_of_a_softmax():
    """Cross-entropy is linear in the labels there, so Gauss-Newton is the Hessian."""
    model, batches = Softmax(), points()
    batch = next(iter(batches.evaluation_batches(12)))

    def mean(weight):
        logits = batch["x"] @ weight.view(3, 4).T + model.layer.bias
        return F.cross_entropy(logits, batch["labels"])

    flat = model.layer.weight.detach().flatten()
    hessian = torch.autograd.functional.hessian(mean, flat)
    assert_close(hessian, exact_matrix(model, batches), atol=1e-10, rtol=0)  # type: ignore
    ours = fisher_diagonal(model, batches, "all")["layer.weight"].flatten()
    assert_close(ours, hessian.diagonal(), atol=1e-10, rtol=0)  # type: ignore


def test_drawn_labels_tend_to_the_fisher_and_depend_on_the_seed_alone():
    model, batches = Softmax(), points()
    exact = exact_matrix(model, batches).diagonal().view(3, 4)
    draws = [fisher_diagonal(model, batches, "sampled", seed=s)["layer.weight"] for s in range(400)]
    mean = torch.stack(draws).mean(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.05
    again = fisher_diagonal(model, batches, "sampled", seed=3)["layer.weight"]
    assert torch.equal(again, draws[3])
    assert not torch.equal(draws[3], draws[4])


def test_all_labels_of_a_text_add_up_over_its_positions():
    """The sum over every joint labelling of a text of two targets, by enumeration."""
    model = tiny_model(vocab_size=5).double()
    ids = torch.tensor([1, 2])
    batches = Batches([{"input_ids": ids, "labels": torch.tensor([2, 4])}], 1, stack)
    name = "blocks.0.attention.out.weight"
    ours = fisher_diagonal(model, batches, "all")[name]
    total = torch.zeros_like(ours)
    for first in range(5):
        for second in range(5):
            log_p_TV = model(ids[None]).logits[0].log_softmax(-1)
            joint = log_p_TV[0, first] + log_p_TV[1, second]
            (g,) = torch.autograd.grad(joint, [dict(model.named_parameters())[name]])
            total += joint.exp().detach() * g**2
    assert_close(ours, total / 2, atol=1e-10, rtol=1e-6)


def test_measuring_leaves_the_model_as_it_was():
    model = tiny_model(dropout=0.3).train()
    before = weights(model)
    model.blocks[1].eval()
    fisher_diagonal(model, ragged_batches(), examples=2)
    assert model.blocks[0].training
    assert not model.blocks[1].training
    assert_close(weights(model), before, atol=0, rtol=0)
    assert all(p.grad is None for p in model.parameters())
    masked = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([-100, -100])}]
    with pytest.raises(LabError, match="0 valid targets"):
        fisher_diagonal(model, Batches(masked, 1, stack))


# --- growth ------------------------------------------------------------------------------------

IDS = torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_grown_model_computes_what_it_computed(shape):
    model = tiny_model()
    if shape == "gpt2":
        small = {"vocab_size": VOCAB, "context_length": 16, "d_model": 16, "num_layers": 2}
        model = Transformer(TransformerConfig.gpt2(num_heads=2, dropout=0.0, **small)).eval()
        with torch.no_grad():
            for block in model.blocks:
                block.attention.out.bias.fill_(0.3)
    before = model(IDS).logits
    assert insert_blocks(model, [1, 0]) == [1, 3]
    assert len(model.blocks) == model.config.num_layers == 4
    assert torch.equal(model(IDS).logits, before)

    naive = tiny_model()
    at_first = naive(IDS).logits
    naive.blocks.insert(1, copy.deepcopy(naive.blocks[0]))
    assert float((naive(IDS).logits - at_first).detach().abs().max()) > 1e-3


def test_new_blocks_learn_and_taken_out_leave_the_old_model():
    model = tiny_model()
    before = model(IDS).logits.detach()
    new = insert_blocks(model, [0, 1])
    names = train_only(model, new)
    assert names
    assert all(n.startswith(("blocks.1.", "blocks.3.")) for n in names)
    loss_before, _ = mean_loss(model, causal_lm, ragged_batches())
    train(model, causal_lm, ragged_batches(), config(steps=20))
    loss_after, _ = mean_loss(model, causal_lm, ragged_batches())
    assert loss_after < loss_before - 0.01
    prompt = torch.tensor([[1, 2, 3]])
    grown = [generation.generate(model, prompt, max_new_tokens=4, use_cache=c, temperature=0)
             for c in (True, False)]  # fmt: skip
    assert torch.equal(torch.as_tensor(grown[0]), torch.as_tensor(grown[1]))
    remove_blocks(model, new)
    assert torch.equal(model(IDS).logits, before)
    assert model.config.num_layers == 2


def test_a_post_norm_model_cannot_grow_unchanged():
    bert = Transformer(
        TransformerConfig.bert(
            vocab_size=VOCAB, context_length=16, d_model=16, num_layers=2, num_heads=2
        )
    )
    with pytest.raises(LabError, match="norm_position is 'post'"):
        insert_blocks(bert, [0])


# --- an adapter per task -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "adapters", "prompt", "prefix"])
def test_learning_a_task_cannot_touch_another(name):
    model = tiny_model(context_length=32)
    bank = TaskAdapters(model, Strategy(name, rank=2, width=4, length=2))
    base = model(IDS).logits.detach()
    logits = {}
    for number, task in enumerate(("news", "code")):
        bank.begin(task)
        train(model, causal_lm, ragged_batches(seed=number), config(steps=5, seed=number))
        bank.keep()
        logits[task] = model(IDS).logits.detach()
    assert bank.tasks == ["news", "code"]
    assert bank.active == "code"
    for task in ("news", "code", "news"):
        bank.use(task)
        assert torch.equal(model(IDS).logits, logits[task])
    bank.use(None)
    assert torch.equal(model(IDS).logits, base)
    assert not torch.equal(logits["news"], logits["code"])
    assert 0 < bank.numbers("news") < sum(p.numel() for p in model.parameters())


def test_one_adapter_for_all_tasks_is_touched():
    model = tiny_model()
    strategies.apply(model, Strategy("lora", rank=2))
    train(model, causal_lm, ragged_batches(), config(steps=5))
    after_first = model(IDS).logits.detach()
    train(model, causal_lm, ragged_batches(seed=1), config(steps=5))
    assert not torch.equal(model(IDS).logits, after_first)


def test_a_classifiers_head_belongs_to_its_task():
    shape = {"vocab_size": VOCAB, "context_length": 16, "d_model": 16, "num_layers": 2}
    torch.manual_seed(0)
    made = TransformerConfig.bert(num_heads=2, num_labels=3, dropout=0.0, **shape)
    model = Transformer(made).eval()
    base, head = model(IDS).logits.detach(), model.classifier.weight.detach().clone()
    bank = TaskAdapters(model, "lora")
    rows = [{"input_ids": ids, "labels": torch.tensor(i)} for i, ids in enumerate(IDS)]
    bank.begin("topics")
    train(model, classification, Batches(rows, 3, stack), config(steps=3))
    bank.keep()
    assert not torch.equal(model.classifier.weight, head)
    bank.use(None)
    assert torch.equal(model(IDS).logits, base)


# --- the matrix --------------------------------------------------------------------------------

R = [[0.10, 0.30, 0.20], [0.90, 0.40, 0.20], [0.80, 0.85, 0.50], [0.60, 0.88, 0.95]]


def test_the_figures_of_a_matrix_are_those_by_hand():
    matrix = TaskMatrix(R, ["a", "b", "c"])
    assert matrix.average == pytest.approx((0.60 + 0.88 + 0.95) / 3)
    assert matrix.learned == pytest.approx((0.90 + 0.85 + 0.95) / 3)
    assert matrix.forgetting_T.tolist() == pytest.approx([0.90 - 0.60, 0.85 - 0.88])
    assert matrix.forgetting == pytest.approx((0.30 - 0.03) / 2)
    assert matrix.backward == pytest.approx((-0.30 + 0.03) / 2)
    assert matrix.forward == pytest.approx(((0.40 - 0.30) + (0.50 - 0.20)) / 2)
    assert matrix.table().loc["after b", "a"] == 0.80
    last = TaskMatrix([*R[:3], [0.0, 0.0, 0.95]], ["a", "b", "c"])
    assert last.scores_KT[-1, -1] == matrix.scores_KT[-1, -1], "the last task tells nothing"
    assert last.forgetting > matrix.forgetting + 0.5


def test_forgetting_is_from_the_best_and_backward_from_the_diagonal():
    rows = [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.6, 0.5, 0.5]]
    matrix = TaskMatrix(rows, ["a", "b", "c"])
    assert matrix.forgetting_T[0] == pytest.approx(0.3)
    assert matrix.backward == pytest.approx(0.05)


def test_losses_keep_the_meaning_of_every_figure():
    as_losses = TaskMatrix(1 - np.array(R), ["a", "b", "c"], lower_is_better=True)
    as_scores = TaskMatrix(R, ["a", "b", "c"])
    for name in ("forgetting", "backward", "forward"):
        assert getattr(as_losses, name) == pytest.approx(getattr(as_scores, name), abs=1e-12)
    assert as_losses.average == pytest.approx(1 - as_scores.average)
    assert list(as_losses.summary()) == ["average", "learned", "forgetting", "backward", "forward"]


@pytest.mark.parametrize(
    "module", [objectives.distillation, objectives.penalties, evaluation.continual, training.fisher]
)
def test_what_their_docstrings_show(module):
    assert doctest.testmod(module).failed == 0

"""Which parameters a fine-tuning run trains, and which new ones it adds.

    apply(model, "full")     every parameter                     "layerwise"   lower blocks slower
    apply(model, "encoder")  all but the task's own layer        "head"        only that layer
    apply(model, "last_k")   the top blocks and what follows     "bitfit"      the biases
    apply(model, "feed_forward")                                 "adapters"    nets in the blocks
    apply(model, Strategy("lora", rank=4, targets=("q", "v")))   "prompt", "prefix"   before texts

A strategy sets `requires_grad`, and puts in what is new; the loop, the objective and the data stay
the same. Frozen parameters need no gradient and no optimizer state, and nothing below the lowest
trained one needs a backward pass. A classifier's own layer trains with every strategy but
`encoder`.

Sources: Howard & Ruder 2018, arXiv:1801.06146, section 3.2 (a rate for each layer); Clark et al.
2020, arXiv:2003.10555 (the same by a factor); Ben Zaken et al. 2022, arXiv:2106.10199 (BitFit);
`adapters`, `lora` and `prompts` name theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import nn

from labkit.errors import LabError
from labkit.models.adapting import adapters, lora, prompts
from labkit.models.adapting.places import body, has_own_head, head, norms, places
from labkit.models.adapting.settings import ADDING, Strategy
from labkit.models.transformer import blocks

if TYPE_CHECKING:
    import pandas as pd


def apply(model: nn.Module, strategy: str | Strategy) -> list[str]:
    """Make a model ready for a strategy: what trains requires gradients, all else does not.

    Call it before `train`, after the model has its head. A strategy replaces the one before; what
    that one had put in is taken out.

    Args:
        model: labkit or transformers model.
        strategy: a name of `STRATEGIES`, with its usual sizes, or a `Strategy`.

    Returns:
        Names of the trained parameters, in the model's order.

    Raises:
        LabError: unknown name; or a strategy that the model cannot take.
    """
    settings = Strategy(strategy) if isinstance(strategy, str) else strategy  # type: ignore
    remove(model)
    if settings.name in ADDING:
        {"adapters": adapters, "lora": lora}.get(settings.name, prompts).add(model, settings)
    trained = STRATEGIES[settings.name](model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model.strategy = settings  # type: ignore[assignment]
    return [n for n, _ in model.named_parameters() if n in trained]


def of(model: nn.Module) -> Strategy | None:
    """The strategy that was applied to a model last, or None."""
    found = vars(model).get("strategy")
    return found if isinstance(found, Strategy) else None


def remove(model: nn.Module) -> None:
    """Take out what a strategy had put in, unmerged: the model is what it was before."""
    for method in (adapters, lora, prompts):
        method.remove(model)
    vars(model).pop("strategy", None)


def merge(model: nn.Module) -> None:
    """Fold LoRA into the weights, in place: a plain model with the same outputs, saved as one.

    Raises:
        LabError: the model has no LoRA.
    """
    lora.merge(model)
    vars(model).pop("strategy", None)


def rate_scales(model: nn.Module) -> dict[str, float]:
    """Rate of each parameter / rate of the run, by name; those that are not in it have 1.

    After `layerwise` it is decay^depth: 0 for what follows the blocks, 1 for the last block, ...,
    and one more than the first block's for the embeddings.
    """
    settings = of(model)
    if settings is None or settings.name != "layerwise":
        return {}
    stack = list(blocks(model))
    of_block = {
        id(p): len(stack) - number for number, block in enumerate(stack) for p in block.parameters()
    }
    scales, below = {}, True
    for name, p in model.named_parameters():
        depth = of_block.get(id(p))
        below = below and depth is None
        if depth is None:
            depth = len(stack) + 1 if below else 0
        scales[name] = settings.decay**depth
    return scales


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """What is trained, part by part: columns `parameters`, `trained`, `share`; last row `total`.

    A shared (tied) tensor counts once, in the part that comes first.
    """
    import pandas as pd

    prefix = getattr(model, "base_model_prefix", "") + "."
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = name.removeprefix(prefix).split(".")[0]
        row = rows.setdefault(part, [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "trained"])
    table.loc["total"] = table.sum()
    table["share"] = table["trained"] / table["parameters"]
    return table


def _names(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names of the parameters of some modules."""
    ours = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in ours}


def _task(model: nn.Module) -> set[str]:
    """The layer that a task of classes, tags or spans begins anew; of a language model nothing."""
    return _names(model, head(model)) if has_own_head(model) else set()


def _full(model: nn.Module, settings: Strategy) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _head(model: nn.Module, settings: Strategy) -> set[str]:
    own = head(model)
    inside = {id(m) for m in own}
    rest = [m for m in model.children() if id(m) not in inside]
    ours = {id(p) for module in own for p in module.parameters()}
    shared = ours & {id(p) for module in rest for p in module.parameters()}
    if not ours or shared:
        why = "is tied to the embedding" if shared else "is missing"
        raise LabError(
            f"the head of {type(model).__name__} {why}, so {settings.name!r} cannot train it "
            "apart: give the model a classifier (num_labels > 0), untie it, or use 'full'."
        )
    return _names(model, own)


def _encoder(model: nn.Module, settings: Strategy) -> set[str]:
    return _full(model, settings) - _head(model, settings)


def _last_k(model: nn.Module, settings: Strategy) -> set[str]:
    stack = list(blocks(model))
    if settings.last > len(stack):
        raise LabError(
            f"last {settings.last} is out of range: {type(model).__name__} has {len(stack)} blocks"
        )
    names = [name for name, _ in model.named_parameters()]
    chosen = _names(model, stack[-settings.last :])
    top = max(names.index(name) for name in _names(model, stack))
    return chosen | set(names[top + 1 :]) | _task(model)


def _feed_forward(model: nn.Module, settings: Strategy) -> set[str]:
    nets = [p.layer for block in places(model) for p in block if p.role in ("gate", "up", "down")]
    return _names(model, nets) | _task(model)


def _bitfit(model: nn.Module, settings: Strategy) -> set[str]:
    task = _task(model)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    if not biases - task:
        raise LabError(
            f"{type(model).__name__} has 0 biases outside its head, so 'bitfit' has nothing to "
            "train: choose another strategy, such as 'lora'"
        )
    return biases | task


def _adapters(model: nn.Module, settings: Strategy) -> set[str]:
    nets = [m for m in model.modules() if isinstance(m, adapters.Adapter)]
    return _names(model, [*nets, *norms(model)]) | _task(model)


def _lora(model: nn.Module, settings: Strategy) -> set[str]:
    return _names(model, [layer.lora for layer in lora.layers(model)]) | _task(model)


def _before(model: nn.Module, settings: Strategy) -> set[str]:
    learned = body(model).before
    return _names(model, [learned]) | _task(model)  # type: ignore[list-item]


STRATEGIES: dict[str, Callable[[nn.Module, Strategy], set[str]]] = {
    "full": _full,
    "encoder": _encoder,
    "head": _head,
    "last_k": _last_k,
    "feed_forward": _feed_forward,
    "bitfit": _bitfit,
    "layerwise": _full,
    "adapters": _adapters,
    "lora": _lora,
    "prompt": _before,
    "prefix": _before,
}

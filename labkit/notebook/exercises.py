"""`check`: an exercise's answer, judged in words.

A checker lives in `labkit.notebook.checks.chapter_NN` and tests behaviour on fresh random float64
inputs:

    @exercise("03.2", title="Softmax over the keys")
    def softmax_rows(attempt, fresh):
        scores = fresh.normal(4, 6)
        compare(attempt(scores), scores.softmax(-1), {
            "over the wrong axis: each column sums to 1, not each row": scores.softmax(-2),
        })

A stub is "not attempted". A wrong answer is "failed", and where it is a usual one the message names
the mistake. An exception in the learner's code is reported in words with its line; a checker never
crashes.
"""

import ast
import dis
import importlib
import importlib.util
import inspect
import linecache
import math
import textwrap
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from html import escape
from typing import Any, Literal

import torch
from IPython.display import display
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.course.verdicts import VERDICT_MIME
from labkit.errors import LabError

Status = Literal["not attempted", "passed", "failed"]


@dataclass(frozen=True)
class Verdict:
    """What `check` found."""

    number: str
    """The exercise, such as "03.2"."""
    status: Status
    """"not attempted", "passed" or "failed"."""
    message: str
    """One or two sentences for the learner."""

    def _ipython_display_(self) -> None:
        """Nothing: `check` has shown it already, wherever in the cell it stood."""


class Wrong(Exception):
    """Raised by a checker: the answer is wrong, and this sentence says how."""


class NotAttempted(Exception):
    """The stub is still there."""


@dataclass(frozen=True)
class Exercise:
    """A registered checker."""

    number: str
    title: str
    checker: Callable[[Any, "Fresh"], str | None]


_exercises: dict[str, Exercise] = {}


def exercise(number: str, title: str) -> Callable:
    """Register checker(attempt, fresh): it raises `Wrong`, or returns a word of praise or None.

    Args:
        number: "CC.N": chapter and exercise.
        title: what the learner is asked for.
    """

    def register(checker: Callable[[Any, "Fresh"], str | None]) -> Callable:
        _exercises[number] = Exercise(number, title, checker)
        return checker

    return register


def exercises(chapter: str) -> dict[str, Exercise]:
    """The exercises of a chapter ("03"), by number."""
    name = f"labkit.notebook.checks.chapter_{chapter}"
    if importlib.util.find_spec(name) is None:
        raise LabError(
            f"Chapter {chapter!r} has no exercises; a chapter is two digits, such as '03'."
        )
    importlib.import_module(name)
    return {number: it for number, it in _exercises.items() if number.startswith(f"{chapter}.")}


def check(number: str, answer: Any) -> Verdict:
    """Judge an answer and say in words: passed, not attempted, or what is wrong.

    The verdict is saved with the notebook: `labkit.course.collect` finds it there.

    Args:
        number: the exercise, such as "03.2".
        answer: the function, class or value that it asks for.
    """
    known = exercises(number.partition(".")[0])
    if number not in known:
        raise LabError(f"There is no exercise {number!r}; this chapter has {', '.join(known)}.")
    verdict = judge(known[number], answer)
    sign = {"passed": "✓", "not attempted": "○", "failed": "✗"}[verdict.status]
    head = f"{sign} {number} {known[number].title}: {verdict.status}"
    tint = {"passed": "#009E73", "not attempted": "#767676", "failed": "#D55E00"}[verdict.status]
    html = (
        f'<div style="border-left:4px solid {tint};padding:2px 10px">'
        f"<b>{escape(head)}</b><br>{escape(verdict.message)}</div>"
    )
    shown = {"text/html": html, "text/plain": f"{head}\n  {verdict.message}"}
    collectable = {"exercise": number, "status": verdict.status}
    display({**shown, VERDICT_MIME: collectable}, raw=True)
    return verdict


def judge(it: Exercise, answer: Any) -> Verdict:
    """The verdict on an answer, without showing it."""
    if answer is None or answer is Ellipsis or (inspect.isfunction(answer) and is_stub(answer)):
        return Verdict(it.number, "not attempted", "Replace the ... with your answer.")
    attempt = _Attempt(answer) if inspect.isfunction(answer) else answer
    try:
        with torch.random.fork_rng(devices=[]):
            praise = it.checker(attempt, Fresh())
    except NotAttempted:
        return Verdict(it.number, "not attempted", "Replace the ... with your answer.")
    except Wrong as wrong:
        return Verdict(it.number, "failed", str(wrong))
    except Exception as error:
        # A function's own errors are words already; here the checker's line failed on the answer.
        return Verdict(it.number, "failed", _in_words(error, None))
    return Verdict(it.number, "passed", praise or "Right on fresh random inputs.")


def is_stub(function: Callable) -> bool:
    """True where the body is nothing but a docstring and `...`."""
    trivial = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "COPY_FREE_VARS"}
    if any(step.opname not in trivial for step in dis.get_instructions(function)):
        return False
    # `return 4` is as short as a stub; a stub returns None.
    returned = [
        step.argval
        for step in dis.get_instructions(function)
        if step.opname in ("LOAD_CONST", "RETURN_CONST")
    ]
    return returned == [None] and not _returns(function)


class _Attempt:
    """The learner's function: its arguments are protected, its errors become sentences."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.__name__ = function.__name__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        given = [_copy(argument) for argument in arguments]
        given_named = {name: _copy(value) for name, value in named.items()}
        try:
            result = self.function(*given, **given_named)
        except NotImplementedError as error:
            raise NotAttempted from error
        except Exception as error:
            raise Wrong(_in_words(error, self.function)) from error
        for before, after in [
            *zip(arguments, given, strict=True),
            *((named[name], given_named[name]) for name in named),
        ]:
            if isinstance(before, Tensor) and not torch.equal(before, after):
                raise Wrong("Your function changes its input in place; work on a new tensor.")
        if result is None or result is Ellipsis:
            if _has_ellipsis(self.function):
                raise NotAttempted
            raise Wrong(f"{self.__name__} returned None: is there a return on every path?")
        return result


class Fresh:
    """Random float64 inputs, new at every check, off the global generator."""

    def __init__(self, seed: int | None = None) -> None:
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Standard normal times scale."""
        return scale * torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high)."""
        return low + (high - low) * torch.rand(
            *shape, dtype=torch.float64, generator=self.generator
        )

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers low <= n < high, int64."""
        return torch.randint(low, high, shape, generator=self.generator)

    def integer(self, low: int, high: int) -> int:
        """One whole number, low <= n < high."""
        return int(self.integers(low, high, 1))

    def probabilities(self, *shape: int) -> Tensor:
        """Rows that sum to one along the last axis."""
        return self.normal(*shape).softmax(-1)

    def permutation(self, count: int) -> Tensor:
        """0 .. count - 1 in random order."""
        return torch.randperm(count, generator=self.generator)


class Watched(TorchDispatchMode):
    """While open, what an answer does in torch: for exercises that forbid a way or limit memory.

        with Watched() as seen:
            answer = attempt(scores)
        require("logsumexp" not in seen.operations, "Write it yourself: ...")

    Of numpy it sees nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        """Names of the operations, such as "mm"."""
        self.made: list[Tensor] = []
        """New tensors (no views, nothing changed in place): their shapes tell what was held."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.add(func.overloadpacket.__name__)
        if not func.is_view and not func._schema.is_mutable:
            found = result if isinstance(result, tuple | list) else [result]
            self.made += [it for it in found if isinstance(it, Tensor)]
        return result


def compare(
    got: Any,
    expected: Any,
    mistakes: Mapping[str, Any] | None = None,
    *,
    what: str = "The result",
    tolerance: float = 1e-9,
) -> None:
    """Raise `Wrong` unless got equals expected; a known wrong value has its mistake named.

    Args:
        got: a tensor, number, tuple, list or string from the learner.
        expected: the right value, of the same kind.
        mistakes: sentence that names the mistake -> the value that the mistake gives (or a function
            without arguments that computes it).
        what: how the message calls the value.
        tolerance: relative and absolute, for floating values.
    """
    if same(got, expected, tolerance):
        return
    for sentence, value in (mistakes or {}).items():
        wrong = value() if callable(value) else value
        if not same(wrong, expected, tolerance) and same(got, wrong, tolerance):
            raise Wrong(f"{what} is {sentence}." if sentence[:1].islower() else f"{sentence}.")
    raise Wrong(_difference(what, got, expected))


def same(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Equal within tolerance, shapes and lengths included; numbers and 0-d tensors are alike."""
    if isinstance(b, (tuple, list)):
        return (
            isinstance(a, (tuple, list))
            and len(a) == len(b)
            and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    if isinstance(b, Mapping):
        return (
            isinstance(a, Mapping)
            and set(a) == set(b)
            and all(same(a[key], b[key], tolerance) for key in b)
        )
    if isinstance(b, (str, bytes)) or b is None:
        return a == b
    first, second = _tensor(a), _tensor(b)
    if first is None or second is None:
        return a == b if type(a) is type(b) else False
    if first.shape != second.shape:
        return False
    if first.is_floating_point() and first.dtype != torch.float64:
        tolerance = max(tolerance, 1e-5)
    return torch.allclose(
        first.double(), second.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def require(condition: Any, sentence: str) -> None:
    """Raise `Wrong(sentence)` unless the condition holds."""
    if not bool(condition):
        raise Wrong(sentence)


def _difference(what: str, got: Any, expected: Any) -> str:
    if isinstance(expected, tuple | list) and isinstance(got, tuple | list):
        if len(got) != len(expected):
            return f"{what} should hold {len(expected)} items, but it holds {len(got)}."
        pairs = zip(got, expected, strict=True)
        first = next(i for i, (x, y) in enumerate(pairs) if not same(x, y))
        return _difference(f"{what}, item {first},", got[first], expected[first])
    if isinstance(expected, tuple | list):
        return f"{what} should be {_brief(expected)}, but it is {_brief(got)}."
    a, b = _tensor(got), _tensor(expected)
    if b is not None and a is None:
        return f"{what} should be a {_kind(expected)}, but it is a {_kind(got)}."
    if a is None or b is None:
        return f"{what} should be {_brief(expected)}, but it is {_brief(got)}."
    if a.shape != b.shape:
        return f"{what} should have shape {tuple(b.shape)}, but it has shape {tuple(a.shape)}."
    a, b = a.double(), b.double()
    if not torch.isfinite(a).all() and torch.isfinite(b).all():
        bad = "NaN" if torch.isnan(a).any() else "infinite"
        return f"{what} holds {bad} values where all should be finite."
    gap = (a - b).abs()
    if a.dim() == 0:
        return f"{what} should be {b.item():.6g}, but it is {a.item():.6g}."
    worst = int(gap.nan_to_num(math.inf).argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), b.shape))
    return (
        f"{what} is off by up to {gap.flatten()[worst]:.3g}: at {place} it should be "
        f"{b.flatten()[worst]:.6g}, but it is {a.flatten()[worst]:.6g}."
    )


def _in_words(error: Exception, answer: Any) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= 200 else said[:197] + "..."
    code = getattr(answer, "__code__", None)
    own = code.co_filename if code is not None else None
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == own or (own is None and "ipykernel" in frame.filename)
    ]
    if not frames:
        # Raised in the checker, which could not use what it was given.
        return f"Your answer has not the form that is asked for ({type(error).__name__}: {said})."
    text = f"Your code raised {type(error).__name__}: {said or 'no message'}"
    last = frames[-1]
    line = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    text += f" (line {last.lineno}" + (f": {line})" if line else ")")
    return text if text.endswith((".", ")")) else text + "."


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.clone()
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_copy(item) for item in value)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _tensor(value: Any) -> Tensor | None:
    """A number, an array or a list of them as a tensor in its own precision; None: it is none."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, list | tuple):
        items = [item for item in map(_tensor, value) if item is not None]
        if not items or len(items) < len(value) or len({item.shape for item in items}) > 1:
            return None
        kind = reduce(torch.promote_types, (item.dtype for item in items))
        return torch.stack([item.to(kind) for item in items])
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, bool | int):
        return torch.tensor(value)
    if type(value).__module__ == "numpy":
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError):
            return None
    return None


def _kind(value: Any) -> str:
    names = {Tensor: "tensor", float: "number", int: "number", str: "string", tuple: "tuple"}
    return names.get(type(value), type(value).__name__)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _tree(function: Callable) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _has_ellipsis(function: Callable) -> bool:
    tree = _tree(function)
    return tree is not None and any(
        isinstance(node, (ast.Expr, ast.Assign, ast.Return))
        and isinstance(node.value, ast.Constant)
        and node.value.value is Ellipsis
        for node in ast.walk(tree)
    )


def _returns(function: Callable) -> bool:
    tree = _tree(function)
    return tree is not None and any(isinstance(node, ast.Return) for node in ast.walk(tree))

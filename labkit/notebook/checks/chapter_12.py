"""Checkers of chapter 12: sequence labelling."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from labkit.models import LinearChainCRF
from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require
from labkit.text.bio import repaired, spans

Name = tuple[int, int, str]
Scores = dict[str, Tensor]


def _names(answer: Any) -> list[Name]:
    """A learner's list of names, whatever kind of triples it holds."""
    require(
        isinstance(answer, list | tuple), f"Return a list of names, not {type(answer).__name__}."
    )
    found = []
    for item in answer:
        require(
            isinstance(item, list | tuple) and len(item) == 3,
            f"Each name is (start, end, type), not {item!r}.",
        )
        found.append((int(item[0]), int(item[1]), str(item[2])))
    return found


def _right_names(tags: Sequence[str]) -> list[Name]:
    return [(start, end, kind) for start, end, kind in spans(repaired(tags))]


@exercise("12.1", title="Names from tags")
def names_of(attempt: Callable[..., Any], fresh: Fresh) -> str:
    well = [
        ["O", "B-X", "I-X", "O", "B-Y", "O"],
        ["B-X", "B-X", "I-X", "O", "B-Y", "I-Y", "I-Y", "B-Y"],
        ["O", "O", "B-LONG", "I-LONG"],
        ["O", "O"],
    ]
    kinds = ("O", "B-X", "I-X", "B-Y", "I-Y")
    well += [repaired(_some(kinds, fresh, 12)) for _ in range(10)]
    for tags in well:
        right = _right_names(tags)
        _compare_names(
            attempt,
            tags,
            {
                "with the last word as the end: the end is the word after it": [
                    (a, b - 1, kind) for a, b, kind in right
                ],
                "without the name that ends with the row": [s for s in right if s[1] < len(tags)],
                "joining names that touch: a B always begins another one": _joined(tags, right),
            },
        )
    ill = [["I-X", "I-X", "O", "I-Y"], ["B-X", "I-Y", "I-Y", "I-X"], ["O", "I-X", "B-X", "I-Y"]]
    ill += [_some(kinds, fresh, 12) for _ in range(20)]
    for tags in ill:
        _compare_names(
            attempt,
            tags,
            {
                "without the names that an I begins": _right_names(_without_strays(tags)),
                "reading an I of another type as more of the same name": _of_any_type(tags),
            },
        )
    return "Right: every row of tags means one set of names, also what a model says."


def _some(kinds: Sequence[str], fresh: Fresh, count: int) -> list[str]:
    return [kinds[int(i)] for i in fresh.integers(0, len(kinds), count)]


def _compare_names(
    attempt: Callable[..., Any], tags: list[str], mistakes: dict[str, list[Name]]
) -> None:
    right, said = _right_names(tags), _names(attempt(list(tags)))
    if said == right:
        return
    for sentence, wrong in mistakes.items():
        if said == wrong and wrong != right:
            raise Wrong(f"Your names of {tags} are {said}: {sentence}.")
    require(sorted(said) != right, "The right names in another order: keep that of the row.")
    raise Wrong(f"The names of {tags} should be {right}, but they are {said}.")


def _joined(tags: Sequence[str], right: list[Name]) -> list[Name]:
    found: list[Name] = []
    for start, end, kind in right:
        if found and found[-1][1:] == (start, kind):
            start = found.pop()[0]
        found.append((start, end, kind))
    return found


def _without_strays(tags: Sequence[str]) -> list[str]:
    said: list[str] = []
    for tag in tags:
        stray = tag.startswith("I-") and (not said or said[-1][2:] != tag[2:])
        said.append("O" if stray else tag)
    return said


def _of_any_type(tags: Sequence[str]) -> list[Name]:
    found: list[Name] = []
    for t, tag in enumerate(tags):
        if tag.startswith("I-") and found and found[-1][1] == t:
            found[-1] = (found[-1][0], t + 1, found[-1][2])
        elif tag != "O":
            found.append((t, t + 1, tag[2:]))
    return found


@exercise("12.2", title="F1 of names")
def f1_of_names(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        right, said, mistakes = _rows_of_names(fresh)
        value = attempt(right, said)
        compare(value, _f1(right, said), mistakes, what="Your F1", tolerance=1e-6)
    one: list[list[Name]] = [[(0, 2, "X")], []]
    nothing: list[list[Name]] = [[], []]
    compare(attempt(one, nothing), 0.0, what="The F1 of saying nothing")
    compare(attempt(nothing, one), 0.0, what="The F1 where there is nothing")
    compare(attempt(nothing, nothing), 0.0, what="The F1 where there is nothing and none is said")
    return "Right: a name counts once, and only whole."


def _f1(right: Sequence[Sequence[Name]], said: Sequence[Sequence[Name]]) -> float:
    good = sum(len(set(a) & set(b)) for a, b in zip(right, said, strict=True))
    total = sum(map(len, right)) + sum(map(len, said))
    return 2 * good / total if total else 0.0


def _rows_of_names(fresh: Fresh) -> tuple[list[list[Name]], list[list[Name]], dict[str, float]]:
    """Rows in which every usual mistake gives another number."""
    gold: list[Name] = [(0, 2, "X"), (3, 4, "Y"), (6, 9, "X")]
    while True:
        right, said = [], []
        for row in range(6):
            own = gold[: 1 + row % 3]
            mine: list[Name] = []
            for start, end, kind in own:
                change = fresh.integer(0, 6)
                other = "Y" if kind == "X" else "X"
                if change == 0:
                    mine.append((start, end, other))
                elif change == 1:
                    mine.append((start, end + 1, kind))
                elif change > 2:
                    mine.append((start, end, kind))
            if fresh.integer(0, 3) == 0:
                mine.append((11, 12, "Y"))
            right.append(own)
            said.append(mine)
        mistakes = _f1_mistakes(right, said)
        values = sorted([_f1(right, said), *mistakes.values()])
        if all(b - a > 1e-3 for a, b in pairwise(values)):
            return right, said, mistakes


def _f1_mistakes(right: list[list[Name]], said: list[list[Name]]) -> dict[str, float]:
    good = sum(len(set(a) & set(b)) for a, b in zip(right, said, strict=True))
    there, mine = sum(map(len, right)), sum(map(len, said))

    def places(rows: list[list[Name]]) -> list[list[Name]]:
        return [[(a, b, "") for a, b, _ in row] for row in rows]

    overlap = sum(
        any(a < d and c < b and kind == other for c, d, other in own)
        for own, row in zip(right, said, strict=True)
        for a, b, kind in row
    )
    rows = [_f1([a], [b]) for a, b in zip(right, said, strict=True)]
    pooled = [[{s for row in every for s in row}] for every in (right, said)]
    return {
        "that of the places alone: the type must be right, too": _f1(places(right), places(said)),
        "the precision: F1 needs recall, too": good / max(mine, 1),
        "the recall: F1 needs precision, too": good / max(there, 1),
        "the mean of precision and recall: F1 is their harmonic mean": (
            (good / max(mine, 1) + good / max(there, 1)) / 2
        ),
        "the mean of the rows' F1: sum the counts of all rows, then divide once": (
            sum(rows) / len(rows)
        ),
        "of all rows in one set: the same place in two rows is two names": (
            2 * len(pooled[0][0] & pooled[1][0]) / (len(pooled[0][0]) + len(pooled[1][0]))
        ),
        "counting names that only overlap: first and last word must both be right": (
            2 * overlap / (there + mine)
        ),
    }


@exercise("12.3", title="Labels for pieces")
def piece_labels(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for first in (0, 0, 4, 17):
        word_ids: list[int | None] = [None]
        for word in range(first, first + 8):
            word_ids += [word] * fresh.integer(1, 4)
        word_ids += [first + 8, first + 8, first + 9, None]
        tags = fresh.integers(1, 6, first + 10).tolist()
        tags[first + 3] = tags[first + 4] = 2  # neighbours of one tag
        tags[first + 6] = 0
        answer = attempt(list(word_ids), list(tags))
        said = _listed(answer)
        require(
            isinstance(said, list | tuple), f"Return a list of labels, not {type(said).__name__}."
        )
        said = [int(label) for label in said]
        before = [None, *word_ids]
        begins = [w is not None and w != b for b, w in zip(before, word_ids, strict=False)]
        pairs = list(zip(word_ids, begins, strict=True))
        right = [tags[w] if b and w is not None else -100 for w, b in pairs]
        every = [-100 if w is None else tags[w] for w in word_ids]
        compare(
            said,
            right,
            {
                "labelling every piece of a word: only its first one counts": every,
                "labelling the marks: they are no words, so they get -100": [
                    0 if w is None else label for w, label in zip(word_ids, right, strict=True)
                ],
                "counting words from 0: this window begins with a later one": _from_zero(
                    word_ids, tags, first
                ),
                "comparing tags where it should compare words: two words may have one tag": [
                    -100 if i and every[i] == every[i - 1] else label
                    for i, label in enumerate(every)
                ],
                "labelling the last piece of each word: the first one counts": [
                    tags[w] if w is not None and w != after else -100
                    for w, after in zip(word_ids, [*word_ids[1:], None], strict=True)
                ],
            },
            what="Your list",
        )
    return "Right: one label for each word, at its first piece."


def _listed(answer: Any) -> Any:
    """A tensor or an array as a list; anything else as it is."""
    return answer.tolist() if hasattr(answer, "tolist") else answer


def _from_zero(word_ids: list[int | None], tags: list[int], first: int) -> list[int]:
    before = [None, *word_ids]
    return [
        -100 if w is None or w == b else tags[w - first]
        for b, w in zip(before, word_ids, strict=False)
    ]


def _scores(fresh: Fresh, words: int, tags: int, scale: float = 1.0) -> Scores:
    shapes = {
        "e_TK": (words, tags),
        "A_KK": (tags, tags),
        "start_K": (tags,),
        "end_K": (tags,),
    }
    return {name: fresh.normal(*shape, scale=scale) for name, shape in shapes.items()}


def _field(scores: Scores) -> LinearChainCRF:
    crf = LinearChainCRF(len(scores["start_K"])).double()
    crf.load_state_dict(
        {
            "start_K": scores["start_K"],
            "end_K": scores["end_K"],
            "transitions_KK": scores["A_KK"],
        }
    )
    return crf


def _marginals(scores: Scores) -> Tensor:
    return _field(scores).marginals(scores["e_TK"][None])[0].detach()


def _decoded(scores: Scores) -> list[int]:
    return _field(scores).decode(scores["e_TK"][None])[0][0].tolist()


def _given(attempt: Callable[..., Any], scores: Scores) -> Any:
    return attempt(*(scores[name] for name in ("e_TK", "A_KK", "start_K", "end_K")))


@exercise("12.4", title="Forwards times backwards")
def row_marginals(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for words, tags in ((5, 3), (6, 4), (2, 3)):
        s = _scores(fresh, words, tags)
        right = _marginals(s)
        alpha, beta = _both_ways(s)
        other = _both_ways({**s, "A_KK": s["A_KK"].T.contiguous()})
        nothing = torch.zeros(tags, dtype=torch.float64)
        best = torch.zeros(words, tags, dtype=torch.float64)
        best[range(words), _decoded(s)] = 1.0
        compare(
            _tensor(_given(attempt, s)),
            right,
            {
                "the softmax of each word's scores: the row has no say in it": s["e_TK"].softmax(
                    -1
                ),
                "alpha alone: what comes after the word counts, too": alpha.softmax(-1),
                "beta and the word alone: what stands before counts, too": (
                    (beta + s["e_TK"]).softmax(-1)
                ),
                "counting the word's own score twice: beta_t does not hold e_t": (
                    (alpha + beta + s["e_TK"]).softmax(-1)
                ),
                "with A the wrong way round in beta: the row of A is the tag before": (
                    (alpha + other[1]).softmax(-1)
                ),
                "with A the wrong way round in alpha: the row of A is the tag before": (
                    (other[0] + beta).softmax(-1)
                ),
                "with A the wrong way round: its row is the tag before": (
                    (other[0] + other[1]).softmax(-1)
                ),
                "without the scores of the end": _marginals({**s, "end_K": nothing}),
                "without the scores of the start": _marginals({**s, "start_K": nothing}),
                "the log of the probabilities: take exp": right.log(),
                "not divided: the probabilities of a word sum to 1": (alpha + beta).exp(),
                "the best row: marginals sum over all rows": best,
            },
            what="Your marginals",
            tolerance=1e-7,
        )
    compare(_tensor(_given(attempt, s := _scores(fresh, 1, 3))), _marginals(s), what="For one word")
    s = _scores(fresh, 40, 5, scale=30.0)
    said = _tensor(_given(attempt, s))
    require(
        not isinstance(said, Tensor) or bool(said.isfinite().all()),
        "With 40 words and large scores your sums overflow: stay with logs, and logsumexp.",
    )
    compare(said, _marginals(s), what="Of 40 words with large scores", tolerance=1e-6)
    return "Right: the same as autograd through ln Z, without a graph."


def _both_ways(s: Scores) -> tuple[Tensor, Tensor]:
    alpha, beta = [s["start_K"] + s["e_TK"][0]], [s["end_K"]]
    for e_K in s["e_TK"][1:]:
        alpha.append(e_K + torch.logsumexp(alpha[-1].unsqueeze(1) + s["A_KK"], 0))
    for e_K in s["e_TK"][1:].flip(0):
        beta.append(torch.logsumexp(s["A_KK"] + e_K + beta[-1], 1))
    return torch.stack(alpha), torch.stack(beta[::-1])


def _tensor(answer: Any) -> Any:
    """Lists of rows as one tensor; anything else as it is."""
    if isinstance(answer, list | tuple):
        if answer and all(isinstance(row, Tensor) for row in answer):
            return torch.stack([row.detach() for row in answer])
        return torch.tensor(answer, dtype=torch.float64)
    return answer


@exercise("12.5", title="Viterbi")
def viterbi(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for words, tags in ((12, 4), (12, 4), (12, 4)):
        s, right, mistakes = _told_apart(fresh, words, tags)
        compare(_row(_given(attempt, s)), right, mistakes, what="Your row")
    s = _scores(fresh, 1, 3)
    compare(_row(_given(attempt, s)), _decoded(s), what="The row of one word")
    s = _scores(fresh, 60, 5, scale=30.0)
    s["A_KK"] = s["A_KK"].masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
    compare(_row(_given(attempt, s)), _decoded(s), what="The row of 60 words with forbidden steps")
    return "Right: T K^2 steps instead of K^T rows."


def _told_apart(
    fresh: Fresh, words: int, tags: int
) -> tuple[Scores, list[int], dict[str, list[int]]]:
    """Scores under which every usual mistake gives another row."""
    nothing = torch.zeros(tags, dtype=torch.float64)
    while True:
        s = _scores(fresh, words, tags)
        s["start_K"], s["end_K"] = 3 * s["start_K"], 3 * s["end_K"]
        right = _decoded(s)
        mistakes = {
            "the best tag of each word alone: the steps have no say in it": (
                s["e_TK"].argmax(-1).tolist()
            ),
            "backwards: turn the row round at the end": right[::-1],
            "the best next tag at each word, from left to right, without looking back": _greedy(s),
            "without the scores of the end": _decoded({**s, "end_K": nothing}),
            "without the scores of the start": _decoded({**s, "start_K": nothing}),
            "with A the wrong way round: its row is the tag before": _decoded(
                {**s, "A_KK": s["A_KK"].T.contiguous()}
            ),
            "the likeliest tag of each word: the best row need not have them": (
                _marginals(s).argmax(-1).tolist()
            ),
            "where the best score so far stood, word by word: walk back from the end": (
                _best_so_far(s)
            ),
        }
        if len({tuple(row) for row in (right, *mistakes.values())}) == len(mistakes) + 1:
            return s, right, mistakes


def _row(answer: Any) -> list[int]:
    pair = isinstance(answer, tuple) and len(answer) == 2 and hasattr(answer[0], "__len__")
    require(not pair, "Return the row alone, without its score.")
    said: Any = answer if isinstance(answer, list | tuple) else _listed(answer)
    require(isinstance(said, list | tuple), f"Return a list of tags, not {type(said).__name__}.")
    return [int(tag) for tag in said]


def _greedy(s: Scores) -> list[int]:
    row = [int((s["start_K"] + s["e_TK"][0]).argmax())]
    for e_K in s["e_TK"][1:]:
        row.append(int((s["A_KK"][row[-1]] + e_K).argmax()))
    return row


def _best_so_far(s: Scores) -> list[int]:
    best_K = s["start_K"] + s["e_TK"][0]
    row = [int(best_K.argmax())]
    for e_K in s["e_TK"][1:]:
        best_K = (best_K.unsqueeze(1) + s["A_KK"]).amax(0) + e_K
        row.append(int(best_K.argmax()))
    return row

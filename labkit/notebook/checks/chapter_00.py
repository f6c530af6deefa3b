"""Checkers of chapter 00, the tour."""

import math
from collections.abc import Callable, Sequence

import torch

from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require


@exercise("00.1", title="One token apart")
def inputs_and_targets(attempt, fresh: Fresh) -> None:
    for length in (6, 11):
        ids = fresh.permutation(100)[:length]
        got = attempt(ids)
        require(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return two things: the inputs and the targets.",
        )
        compare(
            tuple(got),
            (ids[:-1], ids[1:]),
            {
                "swapped: the model reads the earlier tokens and predicts the later ones": (
                    (ids[1:], ids[:-1])
                ),
                "not shifted: the model would only have to copy what it reads": (
                    (ids[:-1], ids[:-1])
                ),
                "not shifted: with all ids twice, the model would copy what it reads": (ids, ids),
                "shifted twice: the target is the very next token, not the one after it": (
                    (ids[:-2], ids[2:])
                ),
                "one too long: the last token has no token after it to predict": (ids, ids[1:]),
                "rolled around: the first token does not follow the last": (ids, ids.roll(-1)),
            },
            what="The pair",
        )


@exercise("00.2", title="Only the answer counts")
def answer_labels(attempt, fresh: Fresh) -> None:
    for prompt, answer in ((5, 3), (2, 6)):
        ids = fresh.permutation(200)[: prompt + answer]

        def masked(first: int, row: torch.Tensor = ids[1:]) -> torch.Tensor:
            labels = row.clone()
            labels[:first] = -100
            return labels

        whole = ids.clone()
        whole[:prompt] = -100
        compare(
            attempt(ids, prompt),
            masked(prompt - 1),
            {
                "masked one label too many: the last token of the prompt predicts the first token "
                "of the answer": masked(prompt),
                "not masked: the prompt counts as well": ids[1:],
                "not shifted: each label is the token itself, not the one after it": whole,
                "not shifted, and cut at the end: each label is the token itself": whole[:-1],
                "masked at the wrong end: the answer is hidden and the prompt counts": torch.where(
                    torch.arange(prompt + answer - 1) < prompt - 1, ids[1:], -100
                ),
            },
            what="The row of labels",
        )


@exercise("00.3", title="Text comes out")
def write_on(attempt, fresh: Fresh) -> None:
    def chain(length: int) -> tuple[Callable[[Sequence[int]], list[float]], list[int]]:
        """Probabilities that lead along a path of tokens, a step for each token of the context."""
        path = [int(i) for i in fresh.permutation(9)[:length]]

        def probabilities(ids: Sequence[int]) -> list[float]:
            require(
                list(ids[:2]) == [3, 7],
                "Ask with all ids so far, the given ones first: the model sees nothing else.",
            )
            chances = [0.02] * 10
            chances[(*path, 9)[min(len(ids) - 2, length)]] = 0.82
            return chances

        return probabilities, path

    for length, limit in ((5, 20), (6, 4)):
        probabilities, path = chain(length)
        right = path[:limit]
        compare(
            attempt(probabilities, [3, 7], 9, limit),
            right,
            {
                "the same token again and again: put each one at the end before you ask again": (
                    path[:1] * limit
                ),
                "with the prompt in front: return the new ids only": [3, 7, *right],
                "with the end token: it says that the text is over, it is no part of it": (
                    [*path, 9]
                ),
                "one token too long: stop after `limit` tokens": path[: limit + 1],
                "one token short: write `limit` tokens": path[: limit - 1],
                "deaf to the end token: stop when it comes": [*path, *[9] * limit][:limit],
            },
            what="The list",
        )


@exercise("00.4", title="A floor by hand")
def lowest_bits(attempt, fresh: Fresh) -> str:
    compare(
        attempt,
        1.75,
        {
            "what uniform guessing over four texts costs: weight each text by how often it comes": (
                2.0
            ),
            "in nats: the exercise asks for bits, base 2": 1.75 * math.log(2),
            "negative: a cost is -log p": -1.75,
            "a plain mean of 1, 2, 3 and 3 bits: weight each by its probability": 2.25,
            "missing a text: two texts have probability 1/8": 1.375,
            "a sum of the four costs: weight each by its probability": 9.0,
        },
        what="The floor",
    )
    return "1.75 bits: no model can do better, and one that knows the probabilities does as well."


@exercise("00.5", title="A lazy reader")
def last_named(attempt, fresh: Fresh) -> None:
    places = ["kitchen", "barn", "market", "tower"]
    order = [places[int(i)] for i in fresh.permutation(4)]
    text = f"Mei was in the {order[0]}, went to the {order[1]} and saw the {order[0]}. It rained."
    require(
        attempt("The barn was shut, so Mei ran to the tower.", places) == "tower",
        "A word before a full stop was missed: punctuation is not part of the word.",
    )
    got = attempt(text, places)
    if got == order[1] and got != order[0]:
        raise Wrong(
            "The last word to appear for the first time is not the last to appear: a place can be "
            "named twice."
        )
    compare(
        got,
        order[0],
        {"the last word of the list, not of the text": [p for p in places if p in text][-1]},
    )
    got = attempt("Omar left the tower. He found a barnacle.", places)
    require(got != "barn", "It found barn inside barnacle: compare whole words.")
    compare(got, "tower")
    got = attempt_without_place(attempt, places)
    require(got is None, f"Where none of the words occurs it should be None, but it is {got!r}.")


def attempt_without_place(attempt, places: list[str]) -> object:
    """The answer for a text without a place; None is right here, although a stub gives it too."""
    function = getattr(attempt, "function", attempt)
    try:
        return function("Nothing happened.", places)
    except Exception as error:
        raise Wrong(
            f"A text without any of the words raises {type(error).__name__}: return None for it."
        ) from error

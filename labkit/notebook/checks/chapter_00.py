"""Checkers of chapter 00, the tour."""

import math

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


@exercise("00.3", title="Bits per byte")
def bits_per_byte_of(attempt, fresh: Fresh) -> None:
    for text in ("The café was closed. Amara read on.", "它在厨房里。"):
        nats, tokens = fresh.uniform(1, low=0.5, high=3.0).item(), fresh.integer(7, 30)
        size = len(text.encode())
        total = nats * tokens
        compare(
            attempt(nats, tokens, text),
            total / math.log(2) / size,
            {
                "in nats: divide by ln 2, since a bit is ln 2 nats": total / size,
                "per character: é is two bytes, and a Chinese character three": (
                    total / math.log(2) / len(text)
                ),
                "per token: multiply by the tokens for the total, then divide by the bytes": (
                    nats / math.log(2)
                ),
                "the loss of one token: the text has more than one": nats / math.log(2) / size,
                "multiplied by ln 2: nats become bits by dividing": total * math.log(2) / size,
            },
            what="The figure",
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

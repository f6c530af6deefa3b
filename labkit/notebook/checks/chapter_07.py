"""Checkers of chapter 07, pretraining objectives."""

import torch
import torch.nn.functional as F

from labkit.notebook.exercises import Fresh, compare, exercise, require


def _masked(ids, chosen, fate, others, mask_id, low=0.1, high=0.9):
    inputs, labels = ids.clone(), torch.full_like(ids, -100)
    labels[chosen] = ids[chosen]
    hidden = torch.where(fate < low, others, mask_id)
    inputs[chosen] = torch.where(fate < high, hidden, ids[chosen])
    return inputs, labels


@exercise("07.1", title="BERT's masking recipe")
def apply_masks(attempt, fresh: Fresh) -> None:
    for length, count in ((40, 30), (12, 5)):
        ids = fresh.integers(5, 60, length)
        chosen, others = fresh.permutation(length)[:count], fresh.integers(60, 90, count)
        fate = fresh.uniform(count)
        fate[:3] = torch.tensor([0.03, 0.5, 0.95])
        inputs, labels = _masked(ids, chosen, fate, others, 99)
        got = attempt(ids, chosen, fate, others, 99)
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "Return a pair: the masked inputs and the labels.",
        )
        compare(
            got[0],
            inputs,
            {
                "hidden at every chosen place: 10 % become a random token, 10 % stay": _masked(
                    ids, chosen, fate, others, 99, 0.0, 1.1
                )[0],
                "the wrong way round: below 0.1 is a random token, from 0.9 on it stays": (
                    _masked(ids, chosen, 1 - fate, others, 99)[0]
                ),
                "never left as it is: from 0.9 on the token stays": _masked(
                    ids, chosen, fate, others, 99, 0.1, 1.1
                )[0],
            },
            what="The input",
        )
        compare(
            got[1],
            labels,
            {
                "asking for every token: places that were not chosen have label -100": ids,
                "the masked input at the chosen places: the label is the original token": (
                    torch.where(labels >= 0, inputs, -100)
                ),
                "missing the tokens that were left as they are: they are asked, too": torch.where(
                    inputs != ids, labels, -100
                ),
                "0 where nothing is asked: 0 is a token id, use -100": labels.clamp(min=0),
            },
            what="The labels",
        )


def _corrupted(ids, spans, sentinels):
    source, target, at = [], [], 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        source += [*ids[at:start], sentinel]
        target += [sentinel, *ids[start:stop]]
        at = stop
    return source + ids[at:], [*target, sentinels[len(spans)]]


def _text_with_spans(fresh: Fresh):
    ids = fresh.integers(1, 80, 20).tolist()
    first, second = fresh.integer(1, 4), fresh.integer(8, 11)
    spans = [(first, first + fresh.integer(2, 4)), (second, second + 3), (16, 17)]
    return ids, spans, [100, 101, 102, 103, 104]


@exercise("07.2", title="Corrupt spans")
def corrupt(attempt, fresh: Fresh) -> None:
    for _ in range(2):
        ids, spans, sentinels = _text_with_spans(fresh)
        got = attempt(list(ids), list(spans), list(sentinels))
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "Return a pair of lists: the input and the target.",
        )
        source, target = _corrupted(ids, spans, sentinels)
        inside = {i for start, stop in spans for i in range(start, stop)}
        each = [
            next((s for s, (a, b) in zip(sentinels, spans, strict=False) if a <= i < b), t)
            for i, t in enumerate(ids)
        ]
        source_got, target_got = (_as_tensor(part) for part in got)
        compare(
            source_got,
            torch.tensor(source),
            {
                "one sentinel for every token: a whole span leaves one": torch.tensor(each),
                "without sentinels: the model cannot see where something is missing": torch.tensor(
                    [t for i, t in enumerate(ids) if i not in inside]
                ),
                "cut off after the last span: the rest of the text follows": torch.tensor(
                    source[: source.index(102) + 1]
                ),
                "the same sentinel for every span: each span has its own": torch.tensor(
                    [100 if t in sentinels else t for t in source]
                ),
            },
            what="The input",
        )
        compare(
            target_got,
            torch.tensor(target),
            {
                "missing the sentinel at the end: it says that the last span is complete": (
                    torch.tensor(target[:-1])
                ),
                "without sentinels: nobody can tell where one span ends": torch.tensor(
                    [t for t in target if t not in sentinels]
                ),
                "one token too long in each span: stop is not part of the span": torch.tensor(
                    _corrupted(ids, [(a, b + 1) for a, b in spans], sentinels)[1]
                ),
            },
            what="The target",
        )


def _as_tensor(ids) -> torch.Tensor:
    return ids if isinstance(ids, torch.Tensor) else torch.tensor([int(i) for i in ids])


@exercise("07.3", title="Restore the original")
def restore(attempt, fresh: Fresh) -> None:
    ids, spans, sentinels = _text_with_spans(fresh)
    source, target = _corrupted(ids, spans, sentinels)
    got = _as_tensor(attempt(list(source), list(target), list(sentinels)))
    marks = set(sentinels)
    compare(
        got,
        torch.tensor(ids),
        {
            "still holding sentinels: each is replaced by its span": torch.tensor(source),
            "missing the spans: put each one where its sentinel stands": torch.tensor(
                [t for t in source if t not in marks]
            ),
            "holding the spans at the end: each belongs where its sentinel stands": torch.tensor(
                [t for t in source if t not in marks] + [t for t in target if t not in marks]
            ),
        },
    )
    (a, b), (c, d), (e, f) = spans
    turned = [101, *ids[c:d], 100, *ids[a:b], 102, *ids[e:f], 103]
    compare(
        _as_tensor(attempt(list(source), turned, list(sentinels))),
        torch.tensor(ids),
        {
            "filled in the order of the target: look the span up by its sentinel": torch.tensor(
                [*ids[:a], *ids[c:d], *ids[b:c], *ids[a:b], *ids[d:]]
            )
        },
        what="The result for a target in another order",
    )
    silent = [100, *ids[a:b], 102, *ids[e:f], 103]
    compare(
        _as_tensor(attempt(list(source), silent, list(sentinels))),
        torch.tensor([*ids[:c], *ids[d:]]),
        {
            "keeping the sentinel that the target forgot: its span is empty": torch.tensor(
                [*ids[:c], 101, *ids[d:]]
            )
        },
        what="The result for a target that forgets a sentinel",
    )


@exercise("07.4", title="InfoNCE")
def info_nce(attempt, fresh: Fresh) -> None:
    for size, width, temperature in ((5, 7, 0.3), (3, 4, 0.05)):
        a, b = fresh.normal(size, width), fresh.normal(size, width) * 2
        scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T

        def total(s):
            return (s.logsumexp(1) - s.diagonal()).sum()

        got = attempt(a, b, temperature)
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "Return a pair: the sum of the loss and the number of pairs.",
        )
        right = total(scores / temperature)
        alone = scores / temperature - torch.diag(torch.full((size,), torch.inf))
        compare(
            got[0],
            right,
            {
                "a mean: return the sum, whoever sees the whole update divides": right / size,
                "of the opposite sign": -right,
                "of dot products: divide each vector by its length first": total(
                    a @ b.T / temperature
                ),
                "without the temperature: divide the cosines by it": total(scores),
                "multiplied by the temperature: divide by it": total(scores * temperature),
                "over the wrong axis: each first vector chooses among the second ones": total(
                    scores.T / temperature
                ),
                "missing the partner in the sum below: the right answer is one of the G": (
                    alone.logsumexp(1) - scores.diagonal() / temperature
                ).sum(),
            },
            what="The sum",
        )
        compare(got[1], size, {"G squared: each pair is one target": size**2}, what="The count")


@exercise("07.5", title="Lengths of span corruption")
def span_lengths(attempt, fresh: Fresh) -> None:
    for n, d, m in ((512, 0.15, 3.0), (fresh.integer(80, 400), 0.3, 4.0)):
        got = attempt(n, d, m)
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "Return a pair: tokens read and tokens written.",
        )
        cut, spans = n * d, n * d / m
        compare(
            float(got[0]),
            n - cut + spans,
            {
                "without the sentinels: each span leaves one in the input": n - cut,
                "the whole text: the spans are cut out": float(n),
                "one too many: the last sentinel stands in the target only": n - cut + spans + 1,
            },
            what="The number of tokens read",
        )
        compare(
            float(got[1]),
            cut + spans + 1,
            {
                "without the sentinels: each span is announced by one": cut,
                "one too few: the target ends with one more sentinel": cut + spans,
                "the number of sentinels: the spans themselves are written, too": spans + 1,
            },
            what="The number of tokens written",
        )

"""Reference solutions and usual wrong answers of chapter 20."""

import numpy as np
import torch

# 20.1


def solution_1(lengths):
    places = np.array(lengths)
    columns = np.arange(places.max() + 1)
    return places, (columns <= places[:, None]).astype(int)


def with_lists(lengths):
    longest = max(lengths) + 1
    return lengths, [[1] * (n + 1) + [0] * (longest - n - 1) for n in lengths]


def with_torch(lengths):
    places = torch.tensor(lengths, dtype=torch.float32)
    return places, (torch.arange(max(lengths) + 1) <= places[:, None]).float()


def without_itself(lengths):
    places = np.array(lengths)
    return places, (np.arange(places.max() + 1) < places[:, None]).astype(int)


def of_the_last_token(lengths):
    return np.array(lengths) - 1, solution_1(lengths)[1]


def sees_everything(lengths):
    return np.array(lengths), np.ones((len(lengths), max(lengths) + 1), dtype=int)


def as_left_padding(lengths):
    return np.array(lengths), solution_1(lengths)[1][:, ::-1].copy()


# 20.2


def _best(speed, most):
    return max(range(most + 1), key=speed)


def solution_2(a, draft, more, most):
    def speed(G):
        return sum(a**k for k in range(G + 1)) / (1 + G * (draft + more))

    return _best(speed, most)


def by_the_closed_form(a, draft, more, most):
    G = np.arange(most + 1)
    return int(np.argmax((1 - a ** (G + 1)) / (1 - a) / (1 + G * (draft + more))))


def most_tokens(a, draft, more, most):
    return most


def without_the_judges_own(a, draft, more, most):
    return _best(lambda G: sum(a**k for k in range(1, G + 1)) / (1 + G * (draft + more)), most)


def judged_apart(a, draft, more, most):
    return _best(lambda G: (1 + G * a) / (1 + G * (draft + more)), most)


def positions_for_nothing(a, draft, more, most):
    return _best(lambda G: sum(a**k for k in range(G + 1)) / (1 + G * draft), most)


# 20.3


def solution_3(text, stops):
    places = [text.index(stop) for stop in stops if stop in text]
    if places:
        return text[: min(places)]
    held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(held, default=0)]


def holds_nothing_back(text, stops):
    places = [text.index(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def holds_always(text, stops):
    places = [text.index(stop) for stop in stops if stop in text]
    longest = max(map(len, stops), default=0)
    return text[: min(places)] if places else text[: max(0, len(text) - longest + 1)]


def the_first_stop(text, stops):
    for stop in stops:
        if stop in text:
            return text[: text.index(stop)]
    return solution_3(text, stops)


def the_shortest_ending(text, stops):
    places = [text.index(stop) for stop in stops if stop in text]
    if places:
        return text[: min(places)]
    held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - min(held, default=0)]


# 20.4


def _starts(test_words, train_words, n):
    runs = {tuple(train_words[i : i + n]) for i in range(len(train_words) - n + 1)}
    return [tuple(test_words[i : i + n]) in runs for i in range(len(test_words) - n + 1)]


def solution_4(test_words, train_words, n):
    seen = [False] * len(test_words)
    for i, there in enumerate(_starts(test_words, train_words, n)):
        if there:
            seen[i : i + n] = [True] * n
    return sum(seen) / len(test_words)


def by_a_set_of_places(test_words, train_words, n):
    starts = _starts(test_words, train_words, n)
    return len({i + k for i, there in enumerate(starts) if there for k in range(n)}) / len(
        test_words
    )


def share_of_runs(test_words, train_words, n):
    starts = _starts(test_words, train_words, n)
    return sum(starts) / len(starts)


def overlaps_twice(test_words, train_words, n):
    return n * sum(_starts(test_words, train_words, n)) / len(test_words)


def words_anywhere(test_words, train_words, n):
    return sum(word in train_words for word in test_words) / len(test_words)


SOLUTIONS = {
    "20.1": solution_1,
    "20.2": solution_2,
    "20.3": solution_3,
    "20.4": solution_4,
}

WRONG = {
    "20.1": [
        (without_itself, "the new token itself"),
        (of_the_last_token, "one further"),
        (sees_everything, "somebody else's"),
        (as_left_padding, "column 0"),
    ],
    "20.2": [
        (most_tokens, "a guess costs"),
        (without_the_judges_own, "own token"),
        (judged_apart, "ends the round"),
        (positions_for_nothing, "were free"),
    ],
    "20.3": [
        (holds_nothing_back, "may become"),
        (holds_always, "can become"),
        (the_first_stop, "earliest"),
        (the_shortest_ending, "may"),
    ],
    "20.4": [
        (share_of_runs, "share of runs"),
        (overlaps_twice, "counts once"),
        (words_anywhere, "anywhere"),
    ],
}

ALSO_RIGHT = {
    "20.1": [with_lists, with_torch],
    "20.2": [by_the_closed_form],
    "20.4": [by_a_set_of_places],
}

"""Reference and wrong answers of chapter 00, the tour."""

import math
import re

import torch

# --- 00.1 --------------------------------------------------------------------------------------


def inputs_and_targets(ids):
    return ids[:-1], ids[1:]


def swapped(ids):
    return ids[1:], ids[:-1]


def not_shifted(ids):
    return ids, ids


def shifted_twice(ids):
    return ids[:-2], ids[2:]


def rolled(ids):
    return ids, ids.roll(-1)


# --- 00.2 --------------------------------------------------------------------------------------


def answer_labels(ids, prompt_length):
    labels = ids[1:].clone()
    labels[: prompt_length - 1] = -100
    return labels


def one_too_many(ids, prompt_length):
    labels = ids[1:].clone()
    labels[:prompt_length] = -100
    return labels


def prompt_counts(ids, prompt_length):
    return ids[1:].clone()


def labels_not_shifted(ids, prompt_length):
    labels = ids.clone()
    labels[:prompt_length] = -100
    return labels[:-1]


def wrong_end(ids, prompt_length):
    labels = ids[1:].clone()
    labels[prompt_length - 1 :] = -100
    return labels


# --- 00.3 --------------------------------------------------------------------------------------


def write_on(probabilities, ids, end, limit):
    new = []
    while len(new) < limit:
        chances = probabilities([*ids, *new])
        token = max(range(len(chances)), key=lambda i: chances[i])
        if token == end:
            break
        new.append(token)
    return new


def never_appends(probabilities, ids, end, limit):
    chances = probabilities(ids)
    return [max(range(len(chances)), key=lambda i: chances[i])] * limit


def with_the_prompt(probabilities, ids, end, limit):
    return [*ids, *write_on(probabilities, ids, end, limit)]


def with_the_end(probabilities, ids, end, limit):
    new = write_on(probabilities, ids, end, limit)
    return new if len(new) == limit else [*new, end]


def one_too_long(probabilities, ids, end, limit):
    return write_on(probabilities, ids, end, limit + 1)


def deaf(probabilities, ids, end, limit):
    return write_on(probabilities, ids, None, limit)


def forgets_the_prompt(probabilities, ids, end, limit):
    return write_on(lambda all_ids: probabilities(all_ids[len(ids) :]), ids, end, limit)


# --- 00.5 --------------------------------------------------------------------------------------


def last_named(text, words):
    named = [word for word in re.findall(r"\w+", text) if word in set(words)]
    return named[-1] if named else None


def parts_of_words(text, words):
    found = [word for word in words if word in text]
    return max(found, key=text.rfind) if found else None


def last_of_the_list(text, words):
    found = [word for word in words if re.search(rf"\b{word}\b", text)]
    return found[-1] if found else None


def last_new_word(text, words):
    found = [w for w in dict.fromkeys(re.findall(r"\w+", text)) if w in words]
    return found[-1] if found else None


def splits_at_spaces(text, words):
    found = [word for word in text.split() if word in words]
    return found[-1] if found else None


def never_none(text, words):
    return [word for word in re.findall(r"\w+", text) if word in words][-1]


SOLUTIONS = {
    "00.1": inputs_and_targets,
    "00.2": answer_labels,
    "00.3": write_on,
    "00.4": 1.75,
    "00.5": last_named,
}

WRONG = {
    "00.1": [
        (swapped, "swapped"),
        (not_shifted, "not shifted"),
        (shifted_twice, "shifted twice"),
        (rolled, "rolled around"),
    ],
    "00.2": [
        (one_too_many, "one label too many"),
        (prompt_counts, "prompt counts as well"),
        (labels_not_shifted, "not shifted"),
        (wrong_end, "wrong end"),
    ],
    "00.3": [
        (never_appends, "put each one at the end"),
        (with_the_prompt, "prompt in front"),
        (with_the_end, "with the end token"),
        (one_too_long, "one token too long"),
        (deaf, "deaf to the end"),
        (forgets_the_prompt, "all ids so far"),
    ],
    "00.4": [
        (2.0, "uniform guessing"),
        (1.75 * math.log(2), "in nats"),
        (2.25, "plain mean"),
        (torch.tensor(-1.75), "negative"),
    ],
    "00.5": [
        (parts_of_words, "whole words"),
        (splits_at_spaces, "punctuation"),
        (last_new_word, "named twice"),
        (never_none, "return None"),
    ],
}

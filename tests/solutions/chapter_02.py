"""Reference solutions and usual wrong answers of chapter 02."""

import codecs
import math
import re
from itertools import pairwise

# --- 02.1 --------------------------------------------------------------------------------------


def saved(words, left, right):
    total = 0
    for parts, count in words:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                total += count
                i += 1
            i += 1
    return total


def saved_by_pairs(words, left, right):
    return sum(n for parts, n in words for pair in pairwise(parts) if pair == (left, right))


def saved_by_each_word(words, left, right):
    return saved([(parts, 1) for parts, _ in words], left, right)


def saved_once_a_word(words, left, right):
    return sum(n for parts, n in words if (left, right) in pairwise(parts))


def saved_across_words(words, left, right):
    return saved([([part for parts, n in words for part in parts * n], 1)], left, right)


def saved_backwards(words, left, right):
    return saved(words, right, left)


# --- 02.2 --------------------------------------------------------------------------------------


def chat_prompt(question, encode, special):
    return [special["<|user|>"], *encode(question), special["<|assistant|>"]]


def names_as_text(question, encode, special):
    return encode(f"<|user|>{question}<|assistant|>")


def names_recognised(question, encode, special):
    text = f"<|user|>{question}<|assistant|>"
    parts = re.split(r"(<\|user\|>|<\|assistant\|>)", text)
    return [i for p in parts for i in ([special[p]] if p in special else encode(p))]


def question_censored(question, encode, special):
    return chat_prompt(re.sub(r"<\|\w+\|>", "", question), encode, special)


def no_turn_for_the_assistant(question, encode, special):
    return [special["<|user|>"], *encode(question)]


# --- 02.3 --------------------------------------------------------------------------------------


def characters_of(tokens):
    text = b"".join(tokens).decode()
    owner = [i for i, c in enumerate(text) for _ in c.encode()]
    spans, at = [], 0
    for token in tokens:
        end = at + len(token)
        spans.append((owner[at], owner[end - 1] + 1))
        at = end
    return spans


def bytes_of(tokens):
    spans, at = [], 0
    for token in tokens:
        spans.append((at, at + len(token)))
        at += len(token)
    return spans


def first_and_last(tokens):
    return [(a, b - 1) for a, b in characters_of(tokens)]


def first_and_length(tokens):
    return [(a, b - a) for a, b in characters_of(tokens)]


def characters_that_begin(tokens):
    spans, at = [], 0
    for token in tokens:
        begun = sum(not 0x80 <= byte < 0xC0 for byte in token)
        spans.append((at, at + begun))
        at += begun
    return spans


def each_token_decoded(tokens):
    spans, at = [], 0
    for token in tokens:
        width = len(token.decode("utf-8", "replace"))
        spans.append((at, at + width))
        at += width
    return spans


# --- 02.4 --------------------------------------------------------------------------------------


def stream_text(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(token) for token in tokens] + [decoder.decode(b"", final=True)]


def each_alone(tokens):
    return [token.decode("utf-8", "replace") for token in tokens]


def each_alone_ignoring(tokens):
    return [token.decode("utf-8", "ignore") for token in tokens]


def never_flushed(tokens):
    return stream_text(tokens)[:-1]


def ignoring(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    return [decoder.decode(token) for token in tokens] + [decoder.decode(b"", final=True)]


def all_at_the_end(tokens):
    return [b"".join(tokens).decode("utf-8", "replace")]


# --- 02.5 --------------------------------------------------------------------------------------


def best_cut(word, score, longest):
    best, began = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - longest), end):
            total = best[start] + score(word[start:end])
            if total > best[end]:
                best[end], began[end] = total, start
    if best[-1] == -math.inf:
        return []
    pieces, end = [], len(word)
    while end:
        pieces.append(word[began[end] : end])
        end = began[end]
    return pieces[::-1]


def listed(word, score, longest):
    if not word:
        return [[]]
    return [
        [word[:n], *rest]
        for n in range(1, min(longest, len(word)) + 1)
        if score(word[:n]) > -math.inf
        for rest in listed(word[n:], score, longest)
    ]


def chosen(word, score, longest, value):
    return max(listed(word, score, longest), key=value, default=[])


def best_of_all(word, score, longest):
    return chosen(word, score, longest, lambda cut: sum(map(score, cut)))


def best_mean(word, score, longest):
    return chosen(word, score, longest, lambda cut: sum(map(score, cut)) / len(cut))


def least_probable(word, score, longest):
    return chosen(word, score, longest, lambda cut: -sum(map(score, cut)))


def fewest_pieces(word, score, longest):
    return chosen(word, score, longest, lambda cut: (-len(cut), sum(map(score, cut))))


def from_the_left(word, score, longest, value):
    pieces = []
    while word:
        fits = [word[:n] for n in range(1, longest + 1) if score(word[:n]) > -math.inf]
        pieces.append(max(fits, key=value))
        word = word[len(pieces[-1]) :]
    return pieces


def longest_piece(word, score, longest):
    return from_the_left(word, score, longest, len)


def likeliest_piece(word, score, longest):
    return from_the_left(word, score, longest, score)


SOLUTIONS = {
    "02.1": saved,
    "02.2": chat_prompt,
    "02.3": characters_of,
    "02.4": stream_text,
    "02.5": best_cut,
}
WRONG = {
    "02.1": [
        (saved_by_pairs, "counts pairs, not joins"),
        (saved_by_each_word, "each different word once"),
        (saved_once_a_word, "at most one join in a word"),
        (saved_across_words, "across the end of a word"),
        (saved_backwards, "backwards"),
    ],
    "02.2": [
        (names_as_text, "the spelling"),
        (names_recognised, "speaks for the assistant"),
        (question_censored, "keep every character"),
        (no_turn_for_the_assistant, "tells the model to answer"),
    ],
    "02.3": [
        (bytes_of, "places of bytes"),
        (first_and_last, "one past the last"),
        (first_and_length, "first, length"),
        (characters_that_begin, "began in an earlier token"),
        (each_token_decoded, "counted twice"),
    ],
    "02.4": [
        (each_alone, "inside a character"),
        (each_alone_ignoring, "cut between two tokens"),
        (never_flushed, "waiting at the end"),
        (ignoring, "not UTF-8"),
        (all_at_the_end, "one piece for each token"),
    ],
    "02.5": [
        (longest_piece, "longest piece from the left"),
        (likeliest_piece, "most probable piece from the left"),
        (best_mean, "mean of a piece"),
        (least_probable, "least probable cut"),
        (fewest_pieces, "fewest pieces"),
        (best_of_all, "lists all cuts"),
    ],
}

"""Reference solutions and usual wrong answers of chapter 02."""

import codecs
import re
from collections import Counter
from itertools import pairwise

# --- 02.1 --------------------------------------------------------------------------------------


def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        for i in range(len(word) - 1):
            counts[word[i], word[i + 1]] += count
    return counts


def each_word_once(word_counts):
    return Counter((w[i], w[i + 1]) for w in word_counts for i in range(len(w) - 1))


def once_in_a_word(word_counts):
    counts = Counter()
    for w, n in word_counts.items():
        for pair in {(w[i], w[i + 1]) for i in range(len(w) - 1)}:
            counts[pair] += n
    return counts


def across_words(word_counts):
    stream = [part for w, n in word_counts.items() for _ in range(n) for part in w]
    return Counter(pairwise(stream))


def backwards(word_counts):
    return {(b, a): n for (a, b), n in count_pairs(word_counts).items()}


# --- 02.2 --------------------------------------------------------------------------------------


def apply_merges(word, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(word)
    while len(parts) > 1:
        ranked = [(rank.get(pair, len(rank)), i) for i, pair in enumerate(pairwise(parts))]
        lowest, i = min(ranked)
        if lowest == len(rank):
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def longest_token(word, merges):
    tokens = {a + b for a, b in merges} | set(word)
    out = []
    while word:
        best = max((t for t in tokens if word.startswith(t)), key=len)
        out.append(best)
        word = word[len(best) :]
    return out


def left_to_right(word, merges):
    parts, i = list(word), 0
    while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) in merges:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i = 0
        else:
            i += 1
    return parts


def last_merge_first(word, merges):
    return apply_in(word, merges[::-1])


def apply_in(word, merges):
    parts = list(word)
    for a, b in merges:
        i = 0
        while i < len(parts) - 1:
            if parts[i] == a and parts[i + 1] == b:
                parts[i : i + 2] = [a + b]
            i += 1
    return parts


def one_place_only(word, merges):
    parts = list(word)
    for a, b in merges:
        for i in range(len(parts) - 1):
            if parts[i] == a and parts[i + 1] == b:
                parts[i : i + 2] = [a + b]
                break
    return parts


# --- 02.3 --------------------------------------------------------------------------------------


def longest_match(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        end = len(word)
        mark = "##" if start > 0 else ""
        while end > start and mark + word[start:end] not in vocabulary:
            end -= 1
        if end == start:
            return ["[UNK]"]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


def without_marks(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        ends = [e for e in range(start + 1, len(word) + 1) if word[start:e] in vocabulary]
        if not ends:
            return ["[UNK]"]
        pieces.append(word[start : ends[-1]])
        start = ends[-1]
    return pieces


def matched(word, vocabulary, pick, unknown):
    pieces, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = [e for e in range(start + 1, len(word) + 1) if mark + word[start:e] in vocabulary]
        if not ends:
            return unknown(pieces)
        pieces.append(mark + word[start : ends[pick]])
        start = ends[pick]
    return pieces


def shortest_match(word, vocabulary):
    return matched(word, vocabulary, 0, lambda _: ["[UNK]"])


def half_a_word(word, vocabulary):
    return matched(word, vocabulary, -1, lambda pieces: [*pieces, "[UNK]"])


# --- 02.4 --------------------------------------------------------------------------------------


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


# --- 02.5 --------------------------------------------------------------------------------------


def fertility(texts, encode):
    return sum(len(encode(t)) for t in texts) / sum(len(t.split()) for t in texts)


def mean_of_ratios(texts, encode):
    return sum(len(encode(t)) / len(t.split()) for t in texts) / len(texts)


def upside_down(texts, encode):
    return 1 / fertility(texts, encode)


def per_character(texts, encode):
    return sum(len(encode(t)) for t in texts) / sum(len(t) for t in texts)


def empty_words(texts, encode):
    return sum(len(encode(t)) for t in texts) / sum(len(t.split(" ")) for t in texts)


# --- 02.6 --------------------------------------------------------------------------------------


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


SOLUTIONS = {
    "02.1": count_pairs,
    "02.2": apply_merges,
    "02.3": longest_match,
    "02.4": chat_prompt,
    "02.5": fertility,
    "02.6": stream_text,
}
WRONG = {
    "02.1": [
        (each_word_once, "each different word once"),
        (once_in_a_word, "at most once in a word"),
        (across_words, "across the end of a word"),
        (backwards, "backwards"),
    ],
    "02.2": [
        (longest_token, "longest tokens"),
        (left_to_right, "from left to right"),
        (last_merge_first, "from the last merge"),
        (one_place_only, "wherever it stands"),
    ],
    "02.3": [
        (without_marks, "without ##"),
        (shortest_match, "shortest match"),
        (half_a_word, "half a word"),
    ],
    "02.4": [
        (names_as_text, "the spelling"),
        (names_recognised, "speaks for the assistant"),
        (question_censored, "keep every character"),
        (no_turn_for_the_assistant, "tells the model to answer"),
    ],
    "02.5": [
        (mean_of_ratios, "mean of the texts' ratios"),
        (upside_down, "words per token"),
        (per_character, "tokens per character"),
        (empty_words, "empty words"),
    ],
    "02.6": [
        (each_alone, "inside a character"),
        (each_alone_ignoring, "cut between two tokens"),
        (never_flushed, "waiting at the end"),
        (ignoring, "not UTF-8"),
        (all_at_the_end, "one piece for each token"),
    ],
}

"""What tags words without a net: the word alone, the word before, a window of words.

    MostFrequentTag   the tag that a word has most often; one that is new: that of all new words
    HiddenMarkov      p(word | tag) p(tag | tag before), the best row by Viterbi
    WordWindow        logistic regression on five words, their endings and shapes

Each answers with BIO tags in which every span has its beginning.

Sources: Rabiner 1989 (hidden Markov models); Ratnaparkhi 1996, "A Maximum Entropy Model for
Part-Of-Speech Tagging" (windows, endings and shapes).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from labkit.errors import LabError
from labkit.text.bio import Tagged, may_follow, repaired

#: A tag, an ending or a word that was never seen counts as if it had been so often.
ADDED = 0.1


class WordBaseline(Protocol):
    """Anything that tags rows of words."""

    def tag(self, rows: Sequence[Sequence[str]]) -> list[list[str]]: ...


def _words(rows: Sequence[Tagged]) -> Iterator[tuple[str, str]]:
    if not rows:
        raise LabError("0 rows were given: a baseline needs at least one to count")
    for row in rows:
        yield from zip(row.words, row.tags, strict=True)


class MostFrequentTag:
    """The tag that each word has most often in the training rows.

    Args:
        rows: to count; a word that stands once in them speaks for those that are new.

    Raises:
        LabError: no row.
    """

    def __init__(self, rows: Sequence[Tagged]):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for word, tag in _words(rows):
            counts[word][tag] += 1
        self.best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        rare = Counter(tag for tags in counts.values() if tags.total() == 1 for tag in tags)
        everything = Counter(self.best.values())
        self.new = (rare or everything).most_common(1)[0][0]

    def tag(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """Tags of each word of each row."""
        return [repaired([self.best.get(word, self.new) for word in words]) for words in rows]


class HiddenMarkov:
    """A hidden Markov model, counted: each tag from the one before, each word from its tag.

    A word that is new is as likely under each tag as words that stand once there are.

    Args:
        rows: to count.

    Raises:
        LabError: no row.
    """

    def __init__(self, rows: Sequence[Tagged]):
        words = Counter(word for word, _ in _words(rows))
        self.tags = sorted({tag for row in rows for tag in row.tags})
        K, place = len(self.tags), {tag: i for i, tag in enumerate(self.tags)}
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(K))
        once_K = np.full(K, ADDED)
        start_K, step_KK = np.full(K, ADDED), np.full((K, K), ADDED)
        for row in rows:
            numbers = [place[tag] for tag in row.tags]
            start_K[numbers[0]] += 1
            np.add.at(step_KK, (numbers[:-1], numbers[1:]), 1)
            for word, k in zip(row.words, numbers, strict=True):
                counts[word][k] += 1
                once_K[k] += words[word] == 1
        total_K = sum(counts.values(), np.zeros(K)) + ADDED * len(counts)
        self.emission = {
            w: np.log((n + ADDED * (n > 0) + 1e-9) / total_K) for w, n in counts.items()
        }
        self.new_K = (
            np.log(once_K / once_K.sum())
            - np.log(total_K / total_K.sum())
            - math.log(total_K.sum())
        )
        may_KK = np.array([[may_follow(a, b) for b in self.tags] for a in self.tags])
        may_K = np.array([may_follow(None, tag) for tag in self.tags])
        with np.errstate(divide="ignore"):
            self.start_K = np.log(start_K / start_K.sum() * may_K)
            self.step_KK = np.log(step_KK / step_KK.sum(1, keepdims=True) * may_KK)

    def tag(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """The likeliest tags of each row."""
        return [[self.tags[k] for k in self._best(words)] if words else [] for words in rows]

    def _best(self, words: Sequence[str]) -> list[int]:
        score_K = self.start_K + self.emission.get(words[0], self.new_K)
        came_from = []
        for word in words[1:]:
            reached_KK = score_K[:, None] + self.step_KK
            came_from.append(reached_KK.argmax(0))
            score_K = reached_KK.max(0) + self.emission.get(word, self.new_K)
        path = [int(score_K.argmax())]
        for from_K in reversed(came_from):
            path.append(int(from_K[path[-1]]))
        return path[::-1]


def window_features(words: Sequence[str], place: int) -> dict[str, float]:
    """What `WordWindow` reads of a word: five words, their endings and shapes.

    >>> sorted(window_features(["a", "Key"], 1))[:4]
    ['-1:suffix=a', '-1:word=a', '-2:none', '0:shape=Xx']
    """
    found = {}
    for offset in range(-2, 3):
        at = place + offset
        if not 0 <= at < len(words):
            found[f"{offset}:none"] = 1.0
            continue
        word = words[at]
        found[f"{offset}:word={word.lower()}"] = 1.0
        found[f"{offset}:suffix={word[-3:].lower()}"] = 1.0
        if offset == 0:
            found[f"0:shape={_shape(word)}"] = 1.0
    return found


def _shape(word: str) -> str:
    """Letters as X and x, digits as 9, the same only once in a row."""
    kinds = [
        "X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c for c in word
    ]
    return "".join(c for i, c in enumerate(kinds) if i == 0 or kinds[i - 1] != c)


class WordWindow:
    """Averaged logistic regression on a window of five words, fitted word by word.

    Args:
        rows: to fit on, with at least two different tags.
        seed: of the order of the examples.
        passes: over the words, at least 1.

    Raises:
        LabError: no row, or all tags are alike.
    """

    def __init__(self, rows: Sequence[Tagged], seed: int = 0, passes: int = 5):
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import SGDClassifier

        tags = [tag for _, tag in _words(rows)]
        if len(set(tags)) < 2:
            raise LabError(
                f"all words have the tag {tags[0]}: a classifier needs two different ones"
            )
        self.hasher = FeatureHasher(2**18)
        whole: Any = None  # every pass, whether or not the loss still falls
        self.head = SGDClassifier(
            loss="log_loss", alpha=1e-6, average=True, max_iter=passes, tol=whole, random_state=seed
        )
        self.head.fit(self._features([row.words for row in rows]), np.array(tags))

    def _features(self, rows: Sequence[Sequence[str]]) -> Any:
        every = (window_features(words, i) for words in rows for i in range(len(words)))
        return self.hasher.transform(every)

    def tag(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """The likeliest tag of each word."""
        if not any(rows):
            return [[] for _ in rows]
        said = iter(np.asarray(self.head.predict(self._features(rows))).tolist())
        return [repaired([next(said) for _ in words]) for words in rows]


#: Baselines by the name under which tables show them.
BASELINES = {
    "word windows, logistic regression": WordWindow,
    "hidden Markov model": HiddenMarkov,
    "most frequent tag of the word": MostFrequentTag,
}

"""Written out as the book has it: small letters without marks in, the line in its own form out.

    a line of the text ── spoken ──> small letters, no marks ──> prompt ─┐
           └───────────────────────────────────────────────── answer ────┴──> a chat of two turns

Any text gives such pairs for nothing, and each has one right answer: the line itself. A dictated
note asks for this. What a text writes large and where it pauses is a habit of its own.

`CountedForm` understands nothing: each word in its most frequent form, between two words the mark
that stood there most often.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from labkit.errors import LabError
from labkit.text.chat_template import Message
from labkit.text.cleaning import content_hash

ASK = "Write this with capitals and punctuation: "
SHORTEST, LONGEST = 30, 90
"""Characters of a line that is of use."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def spoken(text: str) -> str:
    """The words in small letters, one space between them, no marks.

    >>> spoken("Then Samuel answered, Speak; for thy servant heareth.")
    'then samuel answered speak for thy servant heareth'
    """
    return " ".join(_WORD.findall(text.lower()))


def written_lines(texts: Sequence[str], seed: int = 0, without: Sequence[str] = ()) -> list[str]:
    """Lines of 30 to 90 characters, each once, in random order.

    Args:
        texts: documents, a sentence or two a line.
        seed: of the order.
        without: texts whose lines are left out: what is to be tested must not be trained.
    """
    gone = {content_hash(line) for text in without for line in text.split("\n")}
    lines = []
    for text in texts:
        for line in map(str.strip, text.split("\n")):
            if SHORTEST <= len(line) <= LONGEST and (key := content_hash(line)) not in gone:
                lines.append(line)
                gone.add(key)
    random.Random(seed).shuffle(lines)
    return lines


def messages(line: str, answered: bool = True) -> list[Message]:
    """A chat of two turns: the words, and the line; or the first turn alone."""
    asked: Message = {"role": "user", "content": ASK + spoken(line)}
    return [asked, {"role": "assistant", "content": line}] if answered else [asked]


def form_f1(said: str, truth: str) -> float:
    """F1 of words as they are written: `LORD,` is another one than `lord`; 0 to 1.

    >>> form_f1("And the lord said", "And the LORD said")
    0.75
    """
    ours, theirs = Counter(said.split()), Counter(truth.split())
    common = sum((ours & theirs).values())
    return 2 * common / max(1, sum(ours.values()) + sum(theirs.values()))


class CountedForm:
    """Writes words out by counting how a text wrote them."""

    def __init__(self, texts: Sequence[str]):
        """
        Args:
            texts: at least one with a word.

        Raises:
            LabError: there is no word.
        """
        self.forms: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """A word in small letters -> its forms."""
        self.marks: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        """A word and the next -> the marks between them."""
        for text in texts:
            found = list(_WORD.finditer(text))
            for one, two in zip(found, [*found, None][1:], strict=True):
                word = one[0]
                self.forms[word.lower()][word] += 1
                between = text[one.end() : two.start() if two else len(text)]
                following = two[0].lower() if two else ""
                self.marks[word.lower(), following][re.sub(r"\s.*", "", between, flags=re.S)] += 1
        if not self.forms:
            raise LabError("the texts have 0 words: give at least 1")

    def __call__(self, words: str) -> str:
        """The line that words of `spoken` most likely stood for."""
        given = words.split()
        written, large = [], True
        for one, two in zip(given, [*given, ""][1:], strict=True):
            form = self.forms[one].most_common(1)[0][0] if one in self.forms else one
            seen = self.marks.get((one, two))
            mark = seen.most_common(1)[0][0] if seen else "" if two else "."
            written.append((form[:1].upper() + form[1:] if large else form) + mark)
            large = mark.endswith((".", "?", "!"))
        return " ".join(written)

"""From tokens to text that may be sent: whole letters, and nothing of a text that ends the answer.

    ids so far ──> decode ──> hold back half a letter, and what may become a stop ──> the new part

A token may be half a letter (bytes of UTF-8) or half of a stop text; what has been sent cannot be
called back.
"""

from collections.abc import Sequence

from labkit.text.tokenizers import Tokenizer

HALF = "�"
"""What decoding writes for bytes that are no letter yet."""


class TextPieces:
    """The text of an answer, piece by piece; the pieces together are `text`.

    Args:
        tokenizer: of the model.
        stops: texts before which the answer ends.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, list(stops)
        self.ids: list[int] = []
        self.text = ""
        """What may be sent so far; after `finish` the whole answer."""
        self.stopped = False
        """Whether a stop was found: nothing follows."""

    def add(self, token: int) -> str:
        """What a new token adds to what may be sent; often a word, at times nothing yet."""
        self.ids.append(token)
        whole = self._before_stops(self.tokenizer.decode(self.ids))
        return self._send(whole if self.stopped else self._certain(whole))

    def finish(self) -> str:
        """What was held back."""
        return self._send(self._before_stops(self.tokenizer.decode(self.ids)))

    def _send(self, upto: str) -> str:
        new = upto[len(self.text) :]
        self.text += new
        return new

    def _before_stops(self, whole: str) -> str:
        places = [place for stop in self.stops if (place := whole.find(stop)) >= 0]
        self.stopped = bool(places)
        return whole[: min(places)] if places else whole

    def _certain(self, whole: str) -> str:
        whole = whole.rstrip(HALF)
        held = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(whole)), held, -1):
                if whole.endswith(stop[:length]):
                    held = length
                    break
        return whole[: len(whole) - held]

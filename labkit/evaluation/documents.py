"""Bits per byte of held-out documents, with the interval that other documents would move it in.

    model, documents ── document_nats ──> DocumentBits ──┬─ .bits          documents drawn anew
    base,  documents ── document_nats ──> DocumentBits ──┴─ .gain_over()   the same ones, paired

A token of a document is no independent sample, a document is taken for one.

Legend: D documents.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from labkit.evaluation.intervals import Interval, bootstrap_interval
from labkit.evaluation.paired import Paired, paired_test


class DocumentBits(NamedTuple):
    """What a language model says of held-out documents."""

    nats_D: np.ndarray
    """Summed over each document, as `language.document_nats` gives them."""
    bytes_D: np.ndarray
    """UTF-8 bytes of each."""

    @property
    def bits(self) -> Interval:
        """Bits per byte of all of them together."""

        def of(nats_D: np.ndarray, bytes_D: np.ndarray) -> float:
            return float(nats_D.sum() / math.log(2) / bytes_D.sum())

        return bootstrap_interval(of, self.nats_D, self.bytes_D)

    def gain_over(self, other: "DocumentBits") -> Paired:
        """Bits per byte that this model saves against another on the same documents.

        Raises:
            LabError: the two are not of equally many documents.
        """
        each = math.log(2) * float(self.bytes_D.mean())
        return paired_test((other.nats_D / each).tolist(), (self.nats_D / each).tolist())

    def facts(self) -> dict[str, Any]:
        """`bits_per_byte`, `low`, `high`, `documents`, `bytes`, fit for JSON."""
        bits = self.bits
        return {
            "bits_per_byte": bits.estimate,
            "low": bits.low,
            "high": bits.high,
            "documents": len(self.bytes_D),
            "bytes": int(self.bytes_D.sum()),
        }


def compared(ours: DocumentBits, theirs: DocumentBits, name: str) -> dict[str, Any]:
    """The facts of a model, and under "against" those of another and the gain, fit for JSON."""
    gain = ours.gain_over(theirs)
    lead = {"gain": gain.lead.estimate, "gain_low": gain.lead.low, "gain_high": gain.lead.high}
    return {**ours.facts(), "against": {"model": name, **theirs.facts(), **lead, "p": gain.p}}

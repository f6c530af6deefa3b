"""What the service counts, in the form that Prometheus reads.

Source: Prometheus, "Exposition formats"; Beyer et al. 2016, "Site Reliability Engineering",
chapter 6 (latency, traffic, errors, saturation).
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from labkit.generation.batching import Written

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        what = "Requests by path and status"
        self.requests = Counter("labkit_requests", what, ["path", "status"], registry=r)
        self.prompt_tokens = Counter("labkit_prompt_tokens", "Tokens of prompts", registry=r)
        self.written_tokens = Counter("labkit_written_tokens", "Tokens written", registry=r)
        self.left = Counter("labkit_left", "Requests whose client hung up", registry=r)
        self.expired = Counter("labkit_expired", "Requests that took too long", registry=r)
        self.running = Gauge("labkit_running", "Requests in the batch", registry=r)
        self.waiting = Gauge("labkit_waiting", "Requests that wait for a slot", registry=r)
        self.batch = Histogram(
            "labkit_step_requests",
            "Requests that a step of the model served",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=r,
        )
        self.first = Histogram(
            "labkit_first_token_seconds", "Until the first token", buckets=SECONDS, registry=r
        )
        self.whole = Histogram(
            "labkit_answer_seconds", "Until the last token", buckets=SECONDS, registry=r
        )

    def seen(self, written: Sequence[Written]) -> None:
        """Count what a step has written."""
        self.written_tokens.inc(len(written))
        self.batch.observe(len({it.ticket for it in written}))

    def text(self) -> bytes:
        """All of it, a line each."""
        return generate_latest(self.registry)

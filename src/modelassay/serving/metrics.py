"""What Prometheus is told: counts and times, and nothing of what was said."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        """Starts at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "modelassay_requests",
            "Requests that were answered, by place and status.",
            ["place", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "modelassay_request_seconds",
            "Time until a chat completion was sent whole.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_text = Histogram(
            "modelassay_first_text_seconds",
            "Time until the first text of a response was shown.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "modelassay_tokens",
            "Tokens that were read as prompts and made as responses.",
            ["of"],
            registry=self.registry,
        )
        self.responses = Counter(
            "modelassay_responses",
            "Responses that ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.verdicts = Counter(
            "modelassay_classifier_verdicts",
            "Responses by the classifier's last verdict.",
            ["verdict"],
            registry=self.registry,
        )
        self.alerts = Counter(
            "modelassay_monitor_alerts",
            "Responses with an alert of the monitor.",
            registry=self.registry,
        )
        self.pass_seconds = Histogram(
            "modelassay_pass_seconds",
            "Time of a pass that reads one token of each running response.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.pass_rows = Histogram(
            "modelassay_pass_responses",
            "Responses that shared a pass.",
            buckets=ROWS,
            registry=self.registry,
        )

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Adds a number that is read when it is asked for."""
        Gauge(f"modelassay_{name}", what, registry=self.registry).set_function(read)

    def on_pass(self, rows: int, seconds: float) -> None:
        """Counts one pass."""
        self.pass_rows.observe(rows)
        self.pass_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)

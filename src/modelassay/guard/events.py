"""What a guard tells of a response while it is made, one event a token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from modelassay.guard.policy import Action, Verdict

Kind = Literal["prompt", "token", "end"]
Reason = Literal["end", "length", "stop string", "prompt refused", "answer refused", "cancelled"]


@dataclass(frozen=True)
class GuardEvent:
    """One step of a guarded response.

    First comes `prompt` with the prompt's risk, then a `token` for each token that was scored, at
    last `end`. Texts joined are what may be shown: an event's text is empty while text is held
    back, and no event ever carries text that no verdict covers.
    """

    kind: Kind
    index: int
    """Tokens of the response that were scored so far."""
    text: str
    """What can be shown now; of `end`, the rest, or the refusal."""
    risk: float | None
    """The prompt's or the newest token's own; None at the end, and of a prompt that the probe does
    not judge."""
    smoothed: float | None
    """Moving average over the response."""
    action: Action
    reason: Reason | None = None
    """Of `end`: why."""
    detail: str | None = None
    """One line about a classifier that failed, or what it said."""
    monitor: float | None = None
    """What a monitor reads in the prompt, or the newest token: the distance from the middle of the
    ordinary range, which ends at 1."""
    alert: str | None = None
    """One line about what the monitor finds out of the ordinary. It changes no action."""
    verdict: Verdict | None = None
    """What the classifier said, where it was asked here. An `end` that stops with the verdict
    "uncertain" shows a response that the classifier could not clear."""
    unsafe: float | None = None
    """P(unsafe compliance) that it said it by."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: value for key, value in asdict(self).items() if value is not None}

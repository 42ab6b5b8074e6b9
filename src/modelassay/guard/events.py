"""What a guarded answer consists of, one event after the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from modelassay.guard.policy import Action

Kind = Literal["prompt", "token", "end"]
Reason = Literal["end", "length", "stop string", "prompt refused", "answer refused", "cancelled"]


@dataclass(frozen=True)
class GuardEvent:
    """One step of a guarded answer.

    First comes `prompt` with the prompt's risk, then a `token` for each token that was scored, at
    last `end`. Texts joined are what may be shown: an event's text is empty while text is held
    back, and no event ever carries text that no verdict covers.
    """

    kind: Kind
    index: int
    """Tokens of the answer that were scored so far."""
    text: str
    """What can be shown now; of `end`, the rest, or the refusal."""
    risk: float | None
    """The prompt's or the newest token's own; None at the end."""
    smoothed: float | None
    """Moving average over the answer."""
    action: Action
    reason: Reason | None = None
    """Of `end`: why."""
    detail: str | None = None
    """One line about a classifier that failed, or what it said."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: value for key, value in asdict(self).items() if value is not None}

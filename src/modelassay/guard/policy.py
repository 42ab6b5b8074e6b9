"""When a guarded response goes on, is held back, is looked at again, or is refused.

A pure state machine: risks go in, actions come out, and text can only be shown up to where a
verdict has cleared it. Two thresholds, `pause < block`:

* risk >= block: refuse, at once;
* risk >= pause: hold the text back and, every `ESCALATE_EVERY` tokens, ask the classifier; its
  clearance covers what it has read and no more;
* otherwise: show all that has been scored.

The risk that decides is the larger of the token's own and an exponential moving average (EMA), so
smoothing can never delay a jump; it only delays the return. A pause ends by itself when that risk
has fallen below `resume`, which lies under `pause` (hysteresis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelassay.errors import InputError

Action = Literal["continue", "pause", "escalate", "refuse", "stop"]

SMOOTHING = 0.25
"""Weight of the newest risk in the moving average; a jump's trace halves in 2.4 tokens."""
ESCALATE_FIRST = 12
"""Tokens of a response that the classifier needs to see at least."""
ESCALATE_EVERY = 24
"""Tokens between two questions to the classifier while the risk stays up."""


@dataclass(frozen=True)
class Thresholds:
    """Risks in 0 … 1 at which a guard acts."""

    pause: float
    block: float

    def __post_init__(self) -> None:
        if not 0 < self.pause <= self.block <= 1:
            raise InputError(
                f"Thresholds must satisfy 0 < pause <= block <= 1, got pause {self.pause:g} (from"
                f" which text is held back) and block {self.block:g} (from which it is refused)."
            )

    @property
    def resume(self) -> float:
        """The risk below which a pause ends."""
        return 0.8 * self.pause


@dataclass(frozen=True)
class Ruling:
    """What the policy says of a token."""

    action: Action
    smoothed: float
    covered: int
    """Tokens of the response that may be shown."""


class Policy:
    """Follows one response: `judge()` each token, `cleared()` or `condemned()` after a question."""

    def __init__(self, thresholds: Thresholds, *, can_escalate: bool = False) -> None:
        """Starts a response.

        Args:
            thresholds: Of the response's risk.
            can_escalate: Whether there is a classifier to ask.
        """
        self.thresholds = thresholds
        self.can_escalate = can_escalate
        self.smoothed: float | None = None
        self.paused = False
        self.covered = 0
        self.scored = 0
        self.last_asked = 0
        self.over: Action | None = None

    def judge(self, risk: float) -> Ruling:
        """Rules on the next token, given the risk of the state that has read it."""
        if self.over is not None:
            return self.ruling(self.over)
        self.scored += 1
        before = risk if self.smoothed is None else self.smoothed
        self.smoothed = before + SMOOTHING * (risk - before)
        level = max(risk, self.smoothed)
        if not level < self.thresholds.block:  # NaN is not a clearance either
            self.over = "refuse"
            return self.ruling("refuse")
        if level >= self.thresholds.pause:
            self.paused = True
        elif level < self.thresholds.resume and not (self.can_escalate and not self.covered):
            self.paused = False
        if not self.paused:
            self.covered = self.scored
            return self.ruling("continue")
        return self.ruling("escalate" if self._is_time_to_ask() else "pause")

    def finish(self) -> Ruling:
        """Rules on what is still held when the response has ended."""
        if self.over is None and self.covered < self.scored:
            if self.can_escalate:
                return self.ruling("escalate")
            self.over = "refuse"
        return self.ruling(self.over or "stop")

    def cleared(self) -> Ruling:
        """The classifier finds what was scored so far harmless: it may be shown."""
        self.covered = self.scored
        self.last_asked = self.scored
        return self.ruling("continue")

    def condemned(self) -> Ruling:
        """The classifier finds it unsafe, or has failed."""
        self.over = "refuse"
        return self.ruling("refuse")

    def _is_time_to_ask(self) -> bool:
        if not self.can_escalate:
            return False
        due = self.last_asked + ESCALATE_EVERY if self.last_asked else ESCALATE_FIRST
        return self.scored >= due

    def ruling(self, action: Action) -> Ruling:
        """How things stand, under a given action."""
        return Ruling(action, self.smoothed or 0.0, self.covered)

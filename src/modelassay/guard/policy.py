"""When a guarded response goes on, is held back, is looked at again, or is refused.

A pure state machine: risks go in, actions come out, and text can only be shown up to where a
verdict has cleared it. Two thresholds, `pause < block`:

* risk >= block: refuse, at once;
* risk >= pause: hold the text back and, every `ESCALATE_EVERY` tokens, ask the classifier; its
  clearance covers what it has read and no more. While it is uncertain the text stays held, however
  low the risk falls, and it reads again every `REREAD_EVERY` tokens;
* otherwise: show all that has been scored.

With a final check the newest tokens wait for those that follow them, whatever their risk, so that
the end of a response is shown only when the classifier has read all of it.

The risk that decides is the larger of the token's own and an exponential moving average (EMA), so
smoothing can never delay a jump; it only delays the return. A pause ends by itself when that risk
has fallen below `resume`, which lies under `pause` (hysteresis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from modelassay.errors import InputError

Action = Literal["continue", "pause", "escalate", "refuse", "stop"]
Verdict = Literal["cleared", "uncertain", "condemned"]
"""What a classifier says of a response."""
WhenUncertain = Literal["show", "refuse"]
WHEN_UNCERTAIN: tuple[WhenUncertain, ...] = get_args(WhenUncertain)

SMOOTHING = 0.25
"""Weight of the newest risk in the moving average; a jump's trace halves in 2.4 tokens."""
ESCALATE_FIRST = 12
"""Tokens of a response that the classifier needs to see at least."""
ESCALATE_EVERY = 24
"""Tokens between two questions to the classifier while the risk stays up."""
REREAD_EVERY = 8
"""Tokens between two questions to a classifier that was uncertain."""
KEPT_BACK = 24
"""Newest tokens that wait for a final check, unless told otherwise."""
SECOND_OPINION = 0.9
"""P(unsafe compliance) from which the classifier condemns a held response. Only what the probe
holds reaches it, a few harmless responses in a hundred, so it may be stricter than where it decides
alone.
"""


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
class SecondOpinion:
    """How a guard uses its classifier; as it stands, P(unsafe) alone decides, at one threshold."""

    block: float | None = None
    """P(unsafe) from which a response is condemned; None for the classifier's own, at most
    `SECOND_OPINION`."""
    uncertain: float | None = None
    """P(unsafe) from which the classifier is uncertain; None for the classifier's own, if any."""
    when_uncertain: WhenUncertain = "show"
    """What is done with a response that ends in doubt: it is shown and marked, or refused."""
    final_check: bool = False
    """Whether a response that was never held is read before its end is shown."""
    keep_back: int = KEPT_BACK
    """Newest tokens that wait for the final check; a response that has no more is shown after it
    alone."""

    def __post_init__(self) -> None:
        """Refuses what no classifier could make right."""
        block = SECOND_OPINION if self.block is None else self.block
        for name, level in (("uncertain", self.uncertain), ("block", self.block)):
            if level is not None and not 0 < level <= 1:
                raise InputError(
                    f"The classifier's threshold `{name}` must lie above 0 and not above 1, got"
                    f" {level:g}."
                )
        if self.uncertain is not None and not self.uncertain <= block:
            raise InputError(
                f"The classifier cannot be uncertain from {self.uncertain:g} on and refuse from"
                f" {block:g} on; give a lower threshold for uncertain, or a higher one to refuse."
            )
        if self.when_uncertain not in WHEN_UNCERTAIN:
            raise InputError(
                f"A response in doubt is dealt with by {' or '.join(WHEN_UNCERTAIN)}, not"
                f" {str(self.when_uncertain)[:40]!r}."
            )
        if self.keep_back < 1:
            raise InputError(f"A final check keeps back 1 token at least, not {self.keep_back}.")

    def levels(self, classifier: Any) -> tuple[float, float]:
        """From where on a classifier is uncertain, and from where on it condemns.

        Args:
            classifier: Has a `threshold`, and may have one to be `uncertain` from.

        Raises:
            InputError: it condemns from a lower P(unsafe) than it was to be uncertain from.
        """
        block = min(classifier.threshold, SECOND_OPINION) if self.block is None else self.block
        if self.uncertain is None:
            own = getattr(classifier, "uncertain", None)
            return min(block if own is None else own, block), block
        if self.uncertain > block:
            raise InputError(
                f"This classifier refuses from {block:.4g} on and cannot be uncertain from"
                f" {self.uncertain:g} on; give the threshold to refuse from as well."
            )
        return self.uncertain, block


@dataclass(frozen=True)
class Ruling:
    """What the policy says of a token."""

    action: Action
    smoothed: float
    covered: int
    """Tokens of the response that may be shown."""


class Policy:
    """Follows one response: `judge()` each token, then say what the classifier answered.

    A question is answered by `cleared()`, `condemned()` or `doubted()`.
    """

    def __init__(
        self, thresholds: Thresholds, *, can_escalate: bool = False, keep_back: int = 0
    ) -> None:
        """Starts a response.

        Args:
            thresholds: Of the response's risk.
            can_escalate: Whether there is a classifier to ask.
            keep_back: Newest tokens that wait for a final check; 0 for none.

        Raises:
            InputError: there is nobody to make a final check.
        """
        if keep_back and not can_escalate:
            raise InputError("A final check needs a classifier.")
        self.thresholds = thresholds
        self.can_escalate = can_escalate
        self.keep_back = keep_back
        self.smoothed: float | None = None
        self.paused = False
        self.in_doubt = False
        self.passed = 0
        """Tokens up to which a low risk or the classifier has let the response through."""
        self.covered = 0
        """Those of them that do not wait for a final check."""
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
        elif level < self.thresholds.resume and not self._waits_for_the_classifier():
            self.paused = False
        if not self.paused:
            self.passed = self.scored
            self.covered = max(self.covered, self.passed - self.keep_back)
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
        self.in_doubt = False
        self.passed = self.covered = self.last_asked = self.scored
        return self.ruling("continue")

    def condemned(self) -> Ruling:
        """The classifier finds it unsafe, or has failed."""
        self.over = "refuse"
        return self.ruling("refuse")

    def doubted(self) -> Ruling:
        """The classifier is uncertain: what is held stays held until it is sure, or the end."""
        self.paused = self.in_doubt = True
        self.last_asked = self.scored
        return self.ruling("pause")

    def _waits_for_the_classifier(self) -> bool:
        """Whether a falling risk does not end a pause: nothing was let through yet, or in doubt."""
        return self.in_doubt or (self.can_escalate and not self.passed)

    def _is_time_to_ask(self) -> bool:
        if not self.can_escalate:
            return False
        every = REREAD_EVERY if self.in_doubt else ESCALATE_EVERY
        due = self.last_asked + every if self.last_asked else ESCALATE_FIRST
        return self.scored >= due

    def ruling(self, action: Action) -> Ruling:
        """How things stand, under a given action."""
        return Ruling(action, self.smoothed or 0.0, self.covered)

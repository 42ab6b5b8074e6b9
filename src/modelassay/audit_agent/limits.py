"""How much an agent may use: turns, tokens and time of a run, and what all runs may cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

from modelassay.errors import InputError
from modelassay.hub.prices import Prices

Stop = Literal["reported", "turns", "tokens", "time", "cost", "context", "nonsense", "no report"]
"""Why a run ended."""
TOLD: dict[Stop, str] = {
    "reported": "it reported",
    "turns": "the limit of turns was reached",
    "tokens": "the limit of tokens was reached",
    "time": "the limit of time was reached",
    "cost": "the limit of cost was reached",
    "context": "the conversation grew longer than the agent's model reads",
    "nonsense": "nothing but calls that could not be run, several times in a row",
    "no report": "it stopped calling tools and gave no report",
}
NEARLY = 0.8
"""Share of a limit from which the agent is asked to come to an end."""


@dataclass(frozen=True)
class RunLimits:
    """What one run may use."""

    turns: int = 40
    tokens: int = 2_000_000
    """Sent and received together, over all turns."""
    seconds: float = 7200.0

    def __post_init__(self) -> None:
        """Refuses limits that nothing fits in."""
        if self.turns < 2:
            raise InputError("--max-turns must be 2 or more: one to look, one to report.")
        if self.tokens < 1:
            raise InputError("--max-tokens must be 1 or more.")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError("--max-seconds must be above 0.")


@dataclass
class Budget:
    """What a run has used so far."""

    limits: RunLimits
    prices: Prices
    cost_before: float = 0.0
    """Of other runs."""
    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    started: float = field(default_factory=time.monotonic)

    def used(self, prompt_tokens: int, completion_tokens: int, *, estimated: bool) -> None:
        """Counts a turn."""
        self.turns += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.estimated |= estimated

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    @property
    def cost(self) -> float | None:
        """Of this run."""
        return self.prices.cost(self.prompt_tokens, self.completion_tokens)

    def reached(self) -> Stop | None:
        """The limit that is reached, if one is."""
        return next((stop for stop, share in self._shares().items() if share >= 1), None)

    def nearly(self) -> bool:
        """Whether the agent ought to come to an end."""
        return max(self._shares().values()) >= NEARLY

    @property
    def last_turn(self) -> bool:
        """Whether there is one turn left."""
        return self.turns == self.limits.turns - 1

    def _shares(self) -> dict[Stop, float]:
        tokens = self.prompt_tokens + self.completion_tokens
        found: dict[Stop, float] = {
            "turns": self.turns / self.limits.turns,
            "tokens": tokens / self.limits.tokens,
            "time": self.seconds / self.limits.seconds,
        }
        if self.prices.most is not None:
            spent = self.cost_before + (self.cost or 0.0)
            found["cost"] = spent / self.prices.most
        return found

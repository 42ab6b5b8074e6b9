"""A monitor over one response, in the passes of whoever generates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from modelassay.monitors.reading import prompt_spans
from modelassay.monitors.record import Look, Monitor


class Readings(Protocol):
    """What was read in the last pass over one response, as a `Reader` of its own has it."""

    def projections(self) -> np.ndarray:
        """float64 [token, reading]."""
        ...


@dataclass(frozen=True)
class Watch:
    """What a guard asks after each pass that was read for the monitor."""

    monitor: Monitor
    reader: Readings

    def of_prompt(self, start: int, *, harmful: bool) -> dict[str, Any]:
        """Fields of an event after the prompt was read.

        Args:
            start: Index of the first token of the user's last message.
            harmful: Whether it reads as harmful.
        """
        spans = prompt_spans(self.reader.projections(), start)
        return _fields(self.monitor.look(spans, harmful=harmful))

    def of_token(self, number: int) -> dict[str, Any]:
        """The same after a token of the response was read.

        Args:
            number: Which token it is, from 1. What follows those that ranges are of is shown and
                raises no alert, as nothing is known of its rate.
        """
        if not self.monitor.reads("response"):
            return {}
        fields = _fields(self.monitor.look({"response": self.reader.projections()}))
        if number > self.monitor.record.calibrated_on.response_tokens:
            fields["alert"] = None
        return fields


def _fields(look: Look) -> dict[str, Any]:
    return {"monitor": look.value, "alert": look.alert}

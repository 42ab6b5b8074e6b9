"""What a client is sent of guarded responses: a chat completion, or the chunks of a stream.

Each choice has `guard` beside what the protocol has: what the probe, the classifier and the monitor
found. Text is passed on as the guard shows it, and never before.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from modelassay.guard.events import GuardEvent, Reason

Finish = Literal["stop", "length", "content_filter"]
FINISH: dict[Reason, Finish] = {
    "end": "stop",
    "stop string": "stop",
    "length": "length",
    "prompt refused": "content_filter",
    "answer refused": "content_filter",
}
DONE = b"data: [DONE]\n\n"
ALIVE = b": waiting\n\n"
"""A comment, so that nothing on the way takes a silent stream for a dead one."""


@dataclass
class Choice:
    """One response, as far as its events have come."""

    index: int
    text: str = ""
    tokens: int = 0
    prompt_risk: float | None = None
    highest_risk: float | None = None
    held: bool = False
    end: GuardEvent | None = None
    verdict: str | None = None
    unsafe: float | None = None
    alert: str | None = None
    monitor: float | None = None
    _told: str | None = None

    def add(self, event: GuardEvent) -> None:
        """Takes an event in."""
        self.text += event.text
        self.tokens = event.index
        self.held |= event.action in ("pause", "escalate")
        self.verdict = event.verdict or self.verdict
        self.unsafe = self.unsafe if event.unsafe is None else event.unsafe
        self.alert = self.alert or event.alert
        if event.monitor is not None:
            self.monitor = max(event.monitor, self.monitor or event.monitor)
        if event.kind == "prompt":
            self.prompt_risk = event.risk
        elif event.risk is not None:
            self.highest_risk = max(event.risk, self.highest_risk or 0.0)
        if event.kind == "end":
            self.end = event

    @property
    def finish(self) -> Finish:
        """Why it ended, in the protocol's words."""
        assert self.end is not None  # noqa: S101 (asked of what has ended)
        assert self.end.reason is not None  # noqa: S101
        return FINISH[self.end.reason]

    def guard(self) -> dict[str, Any]:
        """What the guard found in the whole response."""
        assert self.end is not None  # noqa: S101
        found = {
            "action": self.end.action,
            "reason": self.end.reason,
            "prompt_risk": self.prompt_risk,
            "highest_risk": self.highest_risk,
            "held": self.held,
        }
        beside = {
            "verdict": self.verdict,
            "unsafe": self.unsafe,
            "detail": self.end.detail,
            "monitor": self.monitor,
            "alert": self.alert,
        }
        return found | {name: value for name, value in beside.items() if value is not None}

    def chunks(self, event: GuardEvent) -> list[dict[str, Any]]:
        """The choices of the chunks that pass an event on; none where there is nothing new to tell.

        A chunk comes where there is text, where the guard does something else than before, and at
        the end, whose own has no text.
        """
        made: list[dict[str, Any]] = []
        told = self._told
        self._told = event.action
        if event.kind == "prompt":
            made.append(self._chunk({"role": "assistant", "content": ""}, None, _told(event)))
        elif event.text or (event.kind == "token" and event.action != told) or event.alert:
            made.append(self._chunk({"content": event.text}, None, _told(event)))
        if event.kind == "end":
            made.append(self._chunk({}, self.finish, self.guard()))
        return made

    def _chunk(
        self, delta: dict[str, Any], finish: Finish | None, guard: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "index": self.index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish,
            "guard": guard,
        }


def _told(event: GuardEvent) -> dict[str, Any]:
    """What the guard finds here, for a chunk."""
    names = ("risk", "smoothed", "action", "verdict", "unsafe", "monitor", "alert")
    found = {name: getattr(event, name) for name in names}
    told = {name: value for name, value in found.items() if value is not None}
    return {"of": event.kind, "tokens": event.index, **told}


@dataclass
class Reply:
    """All choices of one request."""

    model: str
    fingerprint: str
    prompt_tokens: int
    choices: list[Choice]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.end is not None for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model made, those that were never shown too."""
        return sum(choice.tokens for choice in self.choices)

    def usage(self) -> dict[str, int]:
        """Tokens of the prompt and of all choices."""
        made = self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish,
                "guard": choice.guard(),
            }
            for choice in self.choices
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage()}

    def chunk(self, choice: dict[str, Any], *, counted: bool) -> dict[str, Any]:
        """One chunk of a stream.

        Args:
            choice: What is new.
            counted: Whether the last chunk will count tokens, which the others then say.
        """
        found = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**found, "usage": None} if counted else found

    def count(self) -> dict[str, Any]:
        """The chunk that counts tokens and has no choice."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def sent(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"

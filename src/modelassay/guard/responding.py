"""One guarded response, step by step, whoever makes the passes.

`Responding.steps()` says what it needs next and is sent it: a pass over the prompt, a pass over the
token that came of the last one, or what the classifier says. A stream makes them for itself, a
batch for many responses at once; what is shown, and when, is decided here for both.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from modelassay.guard.decoding import DecodingStep, IncrementalText, StopStrings
from modelassay.guard.events import GuardEvent, Kind, Reason
from modelassay.guard.policy import (
    ESCALATE_EVERY,
    Policy,
    Ruling,
    SecondOpinion,
    Thresholds,
    Verdict,
)
from modelassay.models import LoadedModel
from modelassay.monitors.watch import Watch
from modelassay.probes.head import Head, HeadReader
from modelassay.reading.generation import end_tokens
from modelassay.reading.prompts import last_message_start
from modelassay.reading.thoughts import is_mark

log = logging.getLogger(__name__)

CLASSIFIER_SECONDS = 20.0
"""A classifier that takes longer has failed, and what it was to clear is refused."""


class Classifier(Protocol):
    """What a guard asks when a probe is in doubt."""

    @property
    def threshold(self) -> float:
        """P(unsafe compliance) from which a response is refused."""
        ...

    def predict(self, exchanges: Sequence[tuple[str, str]]) -> np.ndarray:
        """P of each class, [exchange, class]; unsafe compliance is the last of two or three."""
        ...


@dataclass(frozen=True)
class Asked:
    """A conversation that has been checked and encoded."""

    turns: list[dict[str, str]]
    ids: tuple[int, ...]
    limit: int
    """Tokens that the response may have."""


@dataclass(frozen=True)
class Said:
    """What the classifier said, as events hold it."""

    verdict: Verdict | None
    """None where it failed, which clears nothing."""
    unsafe: float | None
    detail: str


@dataclass(frozen=True)
class Read:
    """Needs a pass: over the prompt at first, then over the token that the last pass gave."""


@dataclass(frozen=True)
class Question:
    """Needs what the classifier says; that may take seconds."""

    ask: Callable[[], Said]
    """Never raises."""


Need = Read | Question
Steps = Generator[GuardEvent | Need, DecodingStep | Said | None, None]
"""Events as they come. After a `Read`, a `DecodingStep` is sent; after a `Question`, a `Said`."""


@dataclass
class Responding:
    """One guarded response in the making."""

    model: LoadedModel
    asked: Asked
    prompt_head: Head | None
    """What judges the prompt; None where nothing does."""
    head: Head
    """What judges the response."""
    thresholds: Thresholds
    prompt_thresholds: Thresholds | None
    """None where no prompt is judged."""
    classifier: Classifier | None
    opinion: SecondOpinion
    refusal: str
    stops: StopStrings
    watch: Watch | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    """For each token, the text that is complete with it and lies before a stop string."""
    given_out: int = 0
    """Tokens whose text was shown."""
    has_shown: bool = False

    def __post_init__(self) -> None:
        self.text = text_of(self.model)

    def steps(self, cancelled: Callable[[], bool]) -> Steps:
        """Events of the response, and what it needs between them.

        Args:
            cancelled: Asked before each token.
        """
        watch = self.watch
        ends = end_tokens(self.model)
        step = yield from _pass()
        policy = Policy(
            self.thresholds,
            can_escalate=self.classifier is not None,
            keep_back=self.opinion.keep_back if self.opinion.final_check else 0,
        )
        start = last_message_start(self.model, self.asked.turns, self.asked.ids)
        risk, harmful, refused = None, False, False
        if (head := self.prompt_head) is not None and (limits := self.prompt_thresholds):
            risk = risk_of(head, step.activations, start, None)
            harmful, refused = not risk < limits.pause, not risk < limits.block
        seen = {} if watch is None else watch.of_prompt(start, harmful=harmful)
        if refused:
            yield GuardEvent("prompt", 0, "", risk, None, "refuse", **seen)
            yield GuardEvent("end", 0, self.refusal, None, None, "refuse", "prompt refused")
            return
        policy.paused = harmful
        yield GuardEvent(
            "prompt", 0, "", risk, None, "pause" if policy.paused else "continue", **seen
        )
        reader = HeadReader(self.head)
        reason: Reason = "length"
        while len(self.tokens) < self.asked.limit:
            if cancelled():
                yield self._event("end", "", None, policy.ruling("stop"), "cancelled")
                return
            if step.token in ends:
                reason = "end"
                break
            self.tokens.append(step.token)
            # Decoded as it comes, so that a stop string ends a response that is held back too.
            self.pieces.append(self.stops.push(self.text.push(step.token)))
            step = yield from _pass()  # reads the token, and so covers it
            risk = reader.read(step.activations)
            seen = {} if watch is None else watch.of_token(len(self.tokens))
            ruling, said = policy.judge(risk), None
            if ruling.action == "escalate":
                said = yield from self._answer()
                ruling = _act_on(said, policy)
                if ruling.action != "refuse":
                    # A clearance shows in the text; that it took the classifier, in the action.
                    ruling = replace(ruling, action="escalate")
            event = self._event("token", self._release(ruling.covered), risk, ruling, None, said)
            yield replace(event, **seen) if seen else event
            if ruling.action == "refuse":
                yield self._refused(ruling, said)
                return
            if self.stops.found:
                reason = "stop string"
                break
        yield (yield from self._end(policy, reason))

    def _answer(self) -> Generator[Need, Any, Said]:
        """What the classifier says of the response so far."""
        said = yield Question(self._ask)
        assert isinstance(said, Said)  # noqa: S101 (what is sent after a question)
        return said

    def _ask(self) -> Said:
        """Asks the classifier; whatever goes wrong, nothing is cleared."""
        classifier = self.classifier
        assert classifier is not None  # noqa: S101 (only then does the policy escalate)
        response = "".join(self.pieces)
        if not self.stops.found:  # else nothing after it counts
            response = self.model.tokenizer.decode(self.tokens, skip_special_tokens=True)
        prompt = self.asked.turns[-1]["content"]

        def ask() -> np.ndarray:
            begun = self._unread(classifier, prompt)
            return classifier.predict([(prompt, text) for text in (*begun, response)])

        try:
            scores = np.asarray(_within(CLASSIFIER_SECONDS, ask), dtype=float)
            unsafe = float(scores[:, -1].max())  # NaN if one of them is
            doubt, limit = self.opinion.levels(classifier)
        except futures.TimeoutError:  # before Python 3.11 it is not the builtin
            log.warning("The classifier took longer than %.0f s.", CLASSIFIER_SECONDS)
            return Said(None, None, "the classifier did not answer in time")
        except Exception as error:  # a classifier may be anybody's code
            log.warning("The classifier failed (%s).", type(error).__name__)
            return Said(None, None, f"the classifier failed ({type(error).__name__})")
        if not 0 <= unsafe <= 1:
            return Said(None, None, "the classifier failed (it gave no probability)")
        if unsafe < doubt:
            return Said("cleared", unsafe, f"released by the classifier ({unsafe:.0%} unsafe)")
        if unsafe < limit:
            return Said("uncertain", unsafe, f"the classifier is uncertain ({unsafe:.0%} unsafe)")
        return Said("condemned", unsafe, f"condemned by the classifier ({unsafe:.0%} unsafe)")

    def _unread(self, classifier: Classifier, prompt: str) -> list[str]:
        """Beginnings of the response that have to be read too, so that all that is held is read.

        A classifier reads the newest part of a long response. While it was in doubt, or waits for a
        final check, more may be held than that.
        """
        reads_all = getattr(classifier, "reads_all", None)
        begun: list[str] = []
        if reads_all is None:  # it takes all that it is given
            return begun
        start = self.given_out
        for end in range(start + ESCALATE_EVERY + 1, len(self.pieces) + 1):
            is_step = (end - start) % ESCALATE_EVERY == 0 or end == len(self.pieces)
            if is_step and not reads_all(prompt, "".join(self.pieces[start:end])):
                start = end - ESCALATE_EVERY
                begun.append("".join(self.pieces[:start]))
        return begun

    def _release(self, covered: int) -> str:
        """Text of the tokens that are covered now, up to a stop string."""
        text = "".join(self.pieces[self.given_out : covered])
        self.given_out = max(self.given_out, covered)
        self.has_shown |= bool(text)
        return text

    def _end(self, policy: Policy, reason: Reason) -> Generator[Need, Any, GuardEvent]:
        ruling, said = policy.finish(), None
        if ruling.action == "escalate":
            said = yield from self._answer()
            ruling = _act_on(said, policy)
            if said.verdict == "uncertain":
                show = self.opinion.when_uncertain == "show"
                what = "shown" if show else "refused"
                said = replace(said, detail=f"{said.detail} and the response is {what} as such")
                ruling = policy.cleared() if show else policy.condemned()
        if ruling.action == "refuse":
            return self._refused(ruling, said)
        text = self._release(len(self.tokens))
        text += self.stops.push(self.text.flush()) + self.stops.flush()
        return self._event("end", text, None, replace(ruling, action="stop"), reason, said)

    def _refused(self, ruling: Ruling, said: Said | None) -> GuardEvent:
        text = f"\n\n{self.refusal}" if self.has_shown else self.refusal
        return self._event("end", text, None, ruling, "answer refused", said)

    def _event(
        self,
        kind: Kind,
        text: str,
        risk: float | None,
        ruling: Ruling,
        reason: Reason | None,
        said: Said | None = None,
    ) -> GuardEvent:
        n, smoothed = len(self.tokens), ruling.smoothed
        event = GuardEvent(kind, n, text, risk, smoothed, ruling.action, reason)
        return replace(event, **vars(said)) if said else event


def _pass() -> Generator[Need, Any, DecodingStep]:
    step = yield Read()
    assert isinstance(step, DecodingStep)  # noqa: S101 (what is sent after a `Read`)
    return step


def _act_on(said: Said, policy: Policy) -> Ruling:
    if said.verdict == "cleared":
        return policy.cleared()
    return policy.doubted() if said.verdict == "uncertain" else policy.condemned()


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns or raises, or TimeoutError; one that hangs cannot keep the process."""
    future: futures.Future[Any] = futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)


def risk_of(head: Head, activations: Mapping[int, Tensor], start: int, end: int | None) -> float:
    """What a head reads in a span of the tokens of one pass."""
    return HeadReader(head).read({layer: activations[layer][start:end] for layer in head.layers})


def text_of(model: LoadedModel) -> IncrementalText:
    """An empty response; marks of a thought stay in it, for a reader to tell it from the answer."""
    added = model.tokenizer.added_tokens_decoder
    return IncrementalText(
        model.tokenizer, {i: str(t) for i, t in added.items() if t.special and is_mark(str(t))}
    )

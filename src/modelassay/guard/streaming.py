"""`Guard.stream()`: a response that is scored as it is generated, and shown no faster than that.

The prompt is judged before the first token. Each token's state is scored by the pass that makes the
next token; until then its text is held, so the first text is shown one token later than it could
be, and never before a verdict covers it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol
from unicodedata import category

import numpy as np

from modelassay.errors import InputError
from modelassay.guard.decoding import (
    DecodingStep,
    IncrementalText,
    Sampling,
    StopStrings,
    decode,
)
from modelassay.guard.policy import (
    ESCALATE_EVERY,
    Action,
    Policy,
    Ruling,
    SecondOpinion,
    Thresholds,
    Verdict,
)
from modelassay.models import LoadedModel
from modelassay.models.components import Site
from modelassay.monitors import Monitor
from modelassay.monitors.watch import Watch
from modelassay.probes.head import Head, HeadReader
from modelassay.probes.record import Probe
from modelassay.reading.generation import end_tokens
from modelassay.reading.prompts import encode_chat, encode_response, last_message_start
from modelassay.reading.thoughts import is_mark

Kind = Literal["prompt", "token", "end"]
Reason = Literal["end", "length", "stop string", "prompt refused", "answer refused", "cancelled"]
log = logging.getLogger(__name__)

REFUSAL = "I can't help with that."
CLASSIFIER_SECONDS = 20.0
"""A classifier that takes longer has failed, and what it was to clear is refused."""
ROLES = ("system", "user", "assistant")


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
class Guard:
    """A model with a probe that watches it, and a classifier to ask in doubt."""

    model: LoadedModel
    probe: Probe
    classifier: Classifier | None = None
    monitor: Monitor | None = None
    """Watches besides, in the same passes; its alerts are told and change no action."""

    def __post_init__(self) -> None:
        """Refuses a probe or a monitor that was made for another model."""
        object.__setattr__(self, "model", self.probe.reading(self.model))
        if self.monitor is not None:
            self.monitor.check_belongs_to(self.model)

    def stream(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        thresholds: Thresholds | None = None,
        prompt_thresholds: Thresholds | None = None,
        refusal: str = REFUSAL,
        second_opinion: SecondOpinion | None = None,
        cancelled: Callable[[], bool] | None = None,
        guarded: bool = True,
    ) -> Iterator[GuardEvent]:
        """Answers a conversation; everything is checked before the first event is asked for.

        Closing the iterator, or `cancelled`, stops generation within a token.

        Args:
            messages: What the user says, or turns `{"role", "content"}` ending with the user's.
            sampling: How tokens are chosen; greedy by default.
            max_new_tokens: Length at which the response is cut.
            stop: Strings that end the response and are not shown.
            thresholds: For the response's risk, in place of the probe's.
            prompt_thresholds: For the prompt's risk, in place of the probe's.
            refusal: What is shown in place of what was refused.
            second_opinion: How the classifier is used; None goes by its own threshold.
            cancelled: Asked before each token.
            guarded: False shows everything and scores nothing, as `stream_unguarded`.

        Raises:
            InputError: an empty, too long or malformed conversation, options out of range, a probe
                that lacks a head, or a final check without a classifier.
        """
        stopped = cancelled or (lambda: False)
        chosen = sampling or Sampling()
        asked = _ask(self.model, messages, max_new_tokens)
        if not guarded:
            return _unguarded_events(self.model, asked, chosen, stop, stopped)
        opinion = second_opinion or SecondOpinion()
        if opinion.final_check and self.classifier is None:
            raise InputError("A final check needs a classifier; this guard has none.")
        if opinion.uncertain is not None and self.classifier is not None:
            opinion.levels(self.classifier)
        of_response, of_prompt = self.probe.head("answer"), self.prompt_head
        response = _Response(
            guard=self,
            asked=asked,
            thresholds=thresholds or of_head(of_response),
            prompt_thresholds=prompt_thresholds or (of_prompt and of_head(of_prompt)),
            refusal=refusal,
            opinion=opinion,
            text=_text_of(self.model),
            stops=StopStrings(stop),
            watch=self.watch(),
        )
        return response.events(chosen, stopped)

    def score(self, prompt: str, response: str = "") -> dict[str, float | None]:
        """Risks of a finished exchange: of the prompt, and of the response read to its end.

        Raises:
            InputError: the prompt is empty, the two are longer than the model's context, or the
                probe has no head for what is asked.
        """
        turns = check_messages(prompt)
        ids = encode_chat(self.model, turns)
        response_ids = encode_response(self.model, _printable(response))
        if len(ids) + len(response_ids) > self.model.context_length:
            raise InputError("The exchange is longer than the model's context; shorten it.")
        of_prompt = self.prompt_head
        of_response = self.probe.head("answer") if response_ids else None
        step = next(decode(self.model, [*ids, *response_ids], self.layers, Sampling()))
        start = last_message_start(self.model, turns, ids)
        return {
            "prompt": _risk(of_prompt, step, start, len(ids)) if of_prompt else None,
            "answer": _risk(of_response, step, len(ids), None) if of_response else None,
        }

    @cached_property
    def _sites(self) -> Mapping[str, Site]:
        """Where the monitor reads."""
        return {} if self.monitor is None else self.monitor.sites(self.model)

    def watch(self) -> Watch | None:
        """What watches one response beside the probe, if anything does."""
        if self.monitor is None:
            return None
        return Watch(self.monitor, self.monitor.reader(self._sites))

    @property
    def prompt_head(self) -> Head | None:
        """What judges prompts; None where the probe comes from a tool that does not.

        Raises:
            InputError: a probe of this tool lacks it.
        """
        return self.probe.head("prompt") if self.probe.judges_prompts else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks that are read."""
        heads = self.probe.heads.values()
        return tuple(sorted({layer for head in heads for layer in head.layers}))


def stream_unguarded(
    model: LoadedModel,
    messages: str | Sequence[Mapping[str, str]],
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 256,
    stop: Sequence[str] = (),
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[GuardEvent]:
    """Answers with nobody watching: the same events without risks, text shown as it comes.

    Raises:
        InputError: as `Guard.stream`.
    """
    asked = _ask(model, messages, max_new_tokens)
    stopped = cancelled or (lambda: False)
    return _unguarded_events(model, asked, sampling or Sampling(), stop, stopped)


@dataclass(frozen=True)
class _Asked:
    """A conversation that has been checked and encoded."""

    turns: list[dict[str, str]]
    ids: tuple[int, ...]
    limit: int
    """Tokens that the response may have."""


def _ask(
    model: LoadedModel, messages: str | Sequence[Mapping[str, str]], max_new_tokens: int
) -> _Asked:
    turns = check_messages(messages)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    ids = encode_chat(model, turns)
    room = model.context_length - len(ids)
    if room < 1:
        raise InputError("The conversation fills the model's context; start a new one.")
    return _Asked(turns, ids, min(max_new_tokens, room))


def _unguarded_events(
    model: LoadedModel,
    asked: _Asked,
    sampling: Sampling,
    stop: Sequence[str],
    cancelled: Callable[[], bool],
) -> Iterator[GuardEvent]:
    ends = end_tokens(model)
    pieces, stops = _text_of(model), StopStrings(stop)
    reason: Reason = "length"
    tokens = 0
    for step in decode(model, asked.ids, (), sampling):
        if cancelled():
            reason = "cancelled"
            break
        if step.token in ends:
            reason = "end"
            break
        tokens += 1
        text = stops.push(pieces.push(step.token))
        yield GuardEvent("token", tokens, text, None, None, "continue")
        if stops.found:
            reason = "stop string"
            break
        if tokens >= asked.limit:
            break
    rest = stops.push(pieces.flush()) + stops.flush()
    yield GuardEvent("end", tokens, rest, None, None, "stop", reason)


@dataclass
class _Response:
    """One guarded response in the making."""

    guard: Guard
    asked: _Asked
    thresholds: Thresholds
    prompt_thresholds: Thresholds | None
    """None where no prompt is judged."""
    refusal: str
    opinion: SecondOpinion
    text: IncrementalText
    stops: StopStrings
    watch: Watch | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    """For each token, the text that is complete with it and lies before a stop string."""
    given_out: int = 0
    """Tokens whose text was shown."""
    has_shown: bool = False

    def events(
        self, sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Generator[GuardEvent, None, None]:
        guard, watch = self.guard, self.watch
        during = nullcontext if watch is None else watch.reader.reading
        steps = decode(guard.model, self.asked.ids, guard.layers, sampling, during)
        ends = end_tokens(guard.model)
        step = next(steps)
        policy = Policy(
            self.thresholds,
            can_escalate=guard.classifier is not None,
            keep_back=self.opinion.keep_back if self.opinion.final_check else 0,
        )
        start = last_message_start(guard.model, self.asked.turns, self.asked.ids)
        risk, harmful, refused = None, False, False
        if (head := guard.prompt_head) is not None and (limits := self.prompt_thresholds):
            risk = _risk(head, step, start, None)
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
        reader = HeadReader(guard.probe.head("answer"))
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
            step = next(steps)  # reads the token, and so covers it
            risk = reader.read(step.activations)
            seen = {} if watch is None else watch.of_token(len(self.tokens))
            ruling, said = policy.judge(risk), None
            if ruling.action == "escalate":
                said = self._ask(self.guard.classifier)
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
        yield self._end(policy, reason)

    def _ask(self, classifier: Classifier | None) -> _Said:
        """Asks the classifier; whatever goes wrong, nothing is cleared."""
        assert classifier is not None  # noqa: S101 (only then does the policy escalate)
        response = "".join(self.pieces)
        if not self.stops.found:  # else nothing after it counts
            response = self.guard.model.tokenizer.decode(self.tokens, skip_special_tokens=True)
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
            return _Said(None, None, "the classifier did not answer in time")
        except Exception as error:  # a classifier may be anybody's code
            log.warning("The classifier failed (%s).", type(error).__name__)
            return _Said(None, None, f"the classifier failed ({type(error).__name__})")
        if not 0 <= unsafe <= 1:
            return _Said(None, None, "the classifier failed (it gave no probability)")
        if unsafe < doubt:
            return _Said("cleared", unsafe, f"released by the classifier ({unsafe:.0%} unsafe)")
        if unsafe < limit:
            return _Said("uncertain", unsafe, f"the classifier is uncertain ({unsafe:.0%} unsafe)")
        return _Said("condemned", unsafe, f"condemned by the classifier ({unsafe:.0%} unsafe)")

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

    def _end(self, policy: Policy, reason: Reason) -> GuardEvent:
        ruling, said = policy.finish(), None
        if ruling.action == "escalate":
            said = self._ask(self.guard.classifier)
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

    def _refused(self, ruling: Ruling, said: _Said | None) -> GuardEvent:
        text = f"\n\n{self.refusal}" if self.has_shown else self.refusal
        return self._event("end", text, None, ruling, "answer refused", said)

    def _event(
        self,
        kind: Kind,
        text: str,
        risk: float | None,
        ruling: Ruling,
        reason: Reason | None,
        said: _Said | None = None,
    ) -> GuardEvent:
        n, smoothed = len(self.tokens), ruling.smoothed
        event = GuardEvent(kind, n, text, risk, smoothed, ruling.action, reason)
        return replace(event, **vars(said)) if said else event


@dataclass(frozen=True)
class _Said:
    """What the classifier said, as events hold it."""

    verdict: Verdict | None
    """None where it failed, which clears nothing."""
    unsafe: float | None
    detail: str


def _act_on(said: _Said, policy: Policy) -> Ruling:
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


def _risk(head: Head, step: DecodingStep, start: int, end: int | None) -> float:
    return HeadReader(head).read(
        {layer: step.activations[layer][start:end] for layer in head.layers}
    )


def _text_of(model: LoadedModel) -> IncrementalText:
    """An empty response; marks of a thought stay in it, for a reader to tell it from the answer."""
    added = model.tokenizer.added_tokens_decoder
    return IncrementalText(
        model.tokenizer, {i: str(t) for i, t in added.items() if t.special and is_mark(str(t))}
    )


def of_head(head: Head) -> Thresholds:
    """The thresholds that a head was given."""
    return Thresholds(head.pause, head.block)


def check_messages(messages: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A conversation that can be answered.

    Raises:
        InputError: says what is wrong with it.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise InputError("A conversation is a text, or a list of messages {role, content}.")
    turns = []
    for number, turn in enumerate(messages, 1):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise InputError(f"Message {number} needs a role ({', '.join(ROLES)}) and a text.")
        turns.append({"role": role, "content": _printable(content)})
    if not turns or turns[-1]["role"] != "user":
        raise InputError("A conversation must end with a message of the user.")
    if not turns[-1]["content"].strip():
        raise InputError("There is nothing to answer: the message is empty.")
    return turns


def _printable(text: str) -> str:
    """Text without what a model cannot read.

    Control characters say nothing to it and can upset a terminal; halves of characters (surrogates)
    are what a terminal makes of bytes that are not text.
    """
    return "".join(c for c in text if c in "\n\t" or category(c) not in ("Cc", "Cs"))

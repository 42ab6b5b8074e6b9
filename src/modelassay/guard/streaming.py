"""`Guard.stream()`: a response that is scored as it is generated, and shown no faster than that.

The prompt is judged before the first token. Each token's state is scored by the pass that makes the
next token; until then its text is held, so the first text is shown one token later than it could
be, and never before a verdict covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from unicodedata import category

from modelassay.errors import InputError
from modelassay.guard.decoding import DecodingStep, Sampling, StopStrings, decode
from modelassay.guard.events import GuardEvent, Reason
from modelassay.guard.policy import SecondOpinion, Thresholds
from modelassay.guard.responding import (
    Asked,
    Classifier,
    Question,
    Read,
    Responding,
    Said,
    Steps,
    risk_of,
    text_of,
)
from modelassay.models import LoadedModel
from modelassay.models.components import Site
from modelassay.monitors import Monitor
from modelassay.monitors.reading import Reader
from modelassay.monitors.watch import Readings, Watch
from modelassay.probes.head import Head
from modelassay.probes.record import Probe
from modelassay.reading.generation import end_tokens
from modelassay.reading.prompts import (
    TooLongError,
    encode_chat,
    encode_response,
    last_message_start,
)

REFUSAL = "I can't help with that."
ROLES = ("system", "user", "assistant")


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
        if not guarded:
            asked = _ask(self.model, messages, max_new_tokens)
            return _unguarded_events(self.model, asked, chosen, stop, stopped)
        reader = self.monitor_reader()
        response = self.respond(
            messages,
            max_new_tokens=max_new_tokens,
            stop=stop,
            thresholds=thresholds,
            prompt_thresholds=prompt_thresholds,
            refusal=refusal,
            second_opinion=second_opinion,
            readings=reader,
        )
        during = nullcontext if reader is None else reader.reading
        passes = decode(self.model, response.asked.ids, self.layers, chosen, during)
        return _driven(response.steps(stopped), passes)

    def respond(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        thresholds: Thresholds | None = None,
        prompt_thresholds: Thresholds | None = None,
        refusal: str = REFUSAL,
        second_opinion: SecondOpinion | None = None,
        readings: Readings | None = None,
    ) -> Responding:
        """A response for whoever makes the passes over `layers`; options are those of `stream`.

        Args:
            messages: As `stream` takes them.
            max_new_tokens: Length at which the response is cut.
            stop: Strings that end the response and are not shown.
            thresholds: For the response's risk, in place of the probe's.
            prompt_thresholds: For the prompt's risk, in place of the probe's.
            refusal: What is shown in place of what was refused.
            second_opinion: How the classifier is used; None goes by its own threshold.
            readings: What the monitor reads in each pass over this response.

        Raises:
            InputError: as `stream`.
        """
        asked = _ask(self.model, messages, max_new_tokens)
        opinion = second_opinion or SecondOpinion()
        if opinion.final_check and self.classifier is None:
            raise InputError("A final check needs a classifier; this guard has none.")
        if opinion.uncertain is not None and self.classifier is not None:
            opinion.levels(self.classifier)
        of_response, of_prompt = self.probe.head("answer"), self.prompt_head
        watch = None
        if self.monitor is not None and readings is not None:
            watch = Watch(self.monitor, readings)
        return Responding(
            model=self.model,
            asked=asked,
            prompt_head=of_prompt,
            head=of_response,
            thresholds=thresholds or of_head(of_response),
            prompt_thresholds=prompt_thresholds or (of_prompt and of_head(of_prompt)),
            classifier=self.classifier,
            opinion=opinion,
            refusal=refusal,
            stops=StopStrings(stop),
            watch=watch,
        )

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
        read = next(decode(self.model, [*ids, *response_ids], self.layers, Sampling())).activations
        start = last_message_start(self.model, turns, ids)
        return {
            "prompt": risk_of(of_prompt, read, start, len(ids)) if of_prompt else None,
            "answer": risk_of(of_response, read, len(ids), None) if of_response else None,
        }

    @cached_property
    def _sites(self) -> Mapping[str, Site]:
        """Where the monitor reads."""
        return {} if self.monitor is None else self.monitor.sites(self.model)

    def monitor_reader(self) -> Reader | None:
        """What reads for the monitor in the passes that run within it, if there is one."""
        return None if self.monitor is None else self.monitor.reader(self._sites)

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


def _driven(steps: Steps, passes: Iterator[DecodingStep]) -> Iterator[GuardEvent]:
    """The events of a response that makes its own passes and asks for itself."""
    answer: DecodingStep | Said | None = None
    while True:
        try:
            found = steps.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(found, Read):
            answer = next(passes)
        elif isinstance(found, Question):
            answer = found.ask()
        else:
            yield found


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


def _ask(
    model: LoadedModel, messages: str | Sequence[Mapping[str, str]], max_new_tokens: int
) -> Asked:
    turns = check_messages(messages)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    ids = encode_chat(model, turns)
    room = model.context_length - len(ids)
    if room < 1:
        raise TooLongError("The conversation fills the model's context; start a new one.")
    return Asked(turns, ids, min(max_new_tokens, room))


def _unguarded_events(
    model: LoadedModel,
    asked: Asked,
    sampling: Sampling,
    stop: Sequence[str],
    cancelled: Callable[[], bool],
) -> Iterator[GuardEvent]:
    ends = end_tokens(model)
    pieces, stops = text_of(model), StopStrings(stop)
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

"""Guarded chats for visitors: checks what they send, and answers where a GPU is, if any.

The server keeps nothing of a conversation: it comes with each message and is gone with the
response, and no log holds a word of it. What visitors share is a loaded model, which remembers
nothing: of those that a shipped probe belongs to few are kept, because each is a model in memory.
They are loaded on the CPU of the page's own process; a process that is given a GPU is a fork of it,
finds them there and moves its copy.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from typing import Any

from modelassay.data.labelled import At
from modelassay.data.labels import LABELS
from modelassay.errors import AssayError, InputError
from modelassay.guard import Guard, GuardEvent, Sampling, SecondOpinion, Thresholds, load_guard
from modelassay.guard.responding import Classifier
from modelassay.hub import trim_cache
from modelassay.models.loading import has_gpu
from modelassay.monitors import monitor_of
from modelassay.probes import PROBES, ProbeRecord
from modelassay.threads import Worker, stay_alone
from modelassay.ui.estimates import SMALL_BYTES
from modelassay.ui.permitted import check_model_id, visible
from modelassay.ui.service import MAX_CACHE_BYTES
from modelassay.ui.targets import GUESS_BYTES, MAX_MODEL_BYTES, size_of
from modelassay.ui.zero import LENT, NoGpuError, explained, on_gpu

log = logging.getLogger(__name__)

MODEL = "organism:safe"
MAX_MESSAGE = 8_000
MAX_SYSTEM = 2_000
MAX_HISTORY = 24_000  # characters in all
MAX_TURNS = 20
MAX_NEW_TOKENS = 512
MAX_TEMPERATURE = 2.0

CHATS = 4
CONCURRENCY_ID = "chat"
"""Not the one of scans: those fill the machine for minutes and so run one at a time. A chat makes
one token at a time with a model that is loaded already, so a few may share it, and beside a scan
they are slow rather than stuck."""
GPU_START, GPU_PER_TOKEN, GPU_MOST = 4.0, 0.04, 60
"""Seconds of GPU that a response asks for: before its first token, for each token, and at most. A
model's depth is what a token takes its time for, and those with a guard are of one depth."""

UNSAFE = "unsafe_compliance"
KEPT = 2
CLASSIFIER = "embedded"


class GuardShelf:
    """The guards used last; safe to use from several threads, and in forks of the process."""

    def __init__(self, kept: int = KEPT) -> None:
        """Starts empty.

        Args:
            kept: Most guards that are kept loaded.
        """
        self.kept = kept
        self.guards: OrderedDict[str, Guard] = OrderedDict()
        self._renew_lock()
        if hasattr(os, "register_at_fork"):
            # Another thread may have held it at the moment of the fork, and is not there to let go.
            os.register_at_fork(after_in_child=self._renew_lock)

    def get(self, model_id: str, *, to_gpu: bool = False) -> Guard:
        """The guard of a model, loaded if need be.

        Args:
            model_id: One of `guarded_models()`.
            to_gpu: Move it to the GPU if there is one.

        Raises:
            AssayError: it cannot be loaded.
        """
        # Loading holds the lock: two at once would need the memory of both.
        with self.lock:
            guard = self.guards.pop(model_id, None)
            if guard is None:
                while len(self.guards) >= self.kept:
                    self.guards.popitem(last=False)
                guard = _load_guard(model_id)
            self.guards[model_id] = guard
            if to_gpu and has_gpu() and guard.model.device.type == "cpu":
                guard.model.network.to("cuda")
            return guard

    def _renew_lock(self) -> None:
        self.lock = threading.Lock()


SHELF = GuardShelf()


def run_chat(
    message: str,
    history: Sequence[Any] | None = None,
    model_id: str = MODEL,
    *,
    system: str = "",
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    thresholds: Thresholds | None = None,
    prompt_thresholds: Thresholds | None = None,
    second_opinion: SecondOpinion | None = None,
) -> Iterator[GuardEvent]:
    """Answers a visitor's message; closing the iterator stops the response within a token.

    Args:
        message: What the visitor says.
        history: Earlier turns, `{"role", "content"}` of user and assistant.
        model_id: One of `guarded_models()`.
        system: A system prompt; empty for the model's own.
        max_new_tokens: Length at which the response is cut.
        temperature: 0 is greedy.
        thresholds: For the response's risk (see `check_thresholds`), in place of the probe's.
        prompt_thresholds: For the prompt's risk, in place of the probe's.
        second_opinion: How the classifier is used (see `check_opinion`).

    Raises:
        AssayError: one line for the visitor.
    """
    model_id = check_model_id(model_id)
    turns = [{"role": "system", "content": text}] if (text := _check_system(system)) else []
    turns += check_history(history)
    turns.append({"role": "user", "content": _check_text(message, "message", MAX_MESSAGE)})
    options = {
        "sampling": Sampling(temperature=_number(temperature, "temperature", 0, MAX_TEMPERATURE)),
        "max_new_tokens": int(_number(max_new_tokens, "max_new_tokens", 1, MAX_NEW_TOKENS)),
        "thresholds": thresholds,
        "prompt_thresholds": prompt_thresholds,
        "second_opinion": second_opinion,
    }
    # Outside the GPU call, whose seconds are counted.
    SHELF.get(model_id)
    with closing(_lent(_chat_on_gpu, _chat, model_id, turns, options)) as results:
        yield from unless_failed(results)


def score_exchange(prompt: str, response: str, model_id: str = MODEL) -> dict[str, Any]:
    """What probe and classifier say of a finished exchange.

    Raises:
        AssayError: one line for the visitor.
    """
    model_id = check_model_id(model_id)
    exchange = (
        _check_text(prompt, "prompt", MAX_MESSAGE),
        _check_text(response, "response", MAX_MESSAGE),
    )
    classifier = shared_classifier()
    probed = model_id in guarded_models()
    if probed:
        SHELF.get(model_id)
    given = (model_id if probed else None, exchange)
    with closing(_lent(_score_on_gpu, _score, *given)) as results:
        risks, row = next(unless_failed(results))
    shares = {str(label): share for label, share in zip(LABELS, row, strict=True)}
    safe = max(shares.keys() - {UNSAFE}, key=lambda label: shares[label])
    return {
        "risk": risks["prompt"],
        "answer_risk": risks["answer"],
        "classifier": shares,
        "threshold": classifier.threshold,
        "label": UNSAFE if shares[UNSAFE] >= classifier.threshold else safe,
    }


def check_thresholds(model_id: str, at: At, pause: float | None, block: float | None) -> Thresholds:
    """Thresholds as a visitor gave them, the probe's where they gave none.

    Raises:
        InputError: the model is none that a visitor may name or has no probe, or these are no
            numbers or out of order.
    """
    head = probe_record(check_model_id(model_id)).heads[at]
    if pause is None and block is None:
        return Thresholds(head.pause, head.block)
    # One that was given stands: the probe's other one gives way rather than contradict it.
    low = min(head.pause, 1.0 if block is None else block) if pause is None else pause
    high = max(head.block, low) if block is None else block
    name = f"{at} threshold"
    return Thresholds(_number(low, name, 0, 1), _number(high, name, 0, 1))


def check_opinion(
    block_at: float | None, uncertain_at: float | None, *, final_check: Any, refuse_uncertain: Any
) -> SecondOpinion:
    """How the classifier is used, as a visitor wants it.

    Raises:
        InputError: thresholds that are no numbers or out of order, or a choice that is none.
    """
    levels = {"block": block_at, "uncertain": uncertain_at}
    for name, level in levels.items():
        if level is not None:
            _number(level, f"classifier's threshold `{name}`", 0, 1)
    for name, choice in (("final_check", final_check), ("refuse_uncertain", refuse_uncertain)):
        if not isinstance(choice, bool):
            raise InputError(f"{name} must be true or false.")
    shown = "refuse" if refuse_uncertain else "show"
    return SecondOpinion(block_at, uncertain_at, shown, final_check=final_check)


def _check_system(system: Any) -> str:
    if not isinstance(system, str) or len(system) > MAX_SYSTEM:
        raise InputError(f"The system prompt must be text of at most {MAX_SYSTEM} characters.")
    return system.strip()


def _check_text(text: Any, what: str, most: int) -> str:
    if not isinstance(text, str):
        raise InputError(f"The {what} must be text.")
    if not text.strip():
        raise InputError(f"The {what} is empty.")
    if len(text) > most:
        raise InputError(f"The {what} has {len(text)} characters and may have {most}; shorten it.")
    return text


def check_history(history: Any) -> list[dict[str, str]]:
    """Earlier turns as `{"role", "content"}` of plain text, without empty ones.

    Raises:
        InputError: it is not a conversation, or too long.
    """
    if history is None:
        return []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise InputError('The history must be a list of {"role", "content"}.')
    if len(history) > MAX_TURNS:
        raise InputError(
            f"The conversation has {len(history)} messages and may have {MAX_TURNS}; start again."
        )
    turns = []
    for number, turn in enumerate(history, 1):
        role = turn.get("role") if isinstance(turn, Mapping) else None
        text = _plain_content(turn.get("content")) if isinstance(turn, Mapping) else None
        if role not in ("user", "assistant") or text is None:
            raise InputError(
                f"Message {number} of the history needs a role (user, assistant) and a text."
            )
        if text.strip():  # a response that was stopped before its first word
            turns.append({"role": role, "content": text})
    size = sum(len(turn["content"]) for turn in turns)
    if size > MAX_HISTORY:
        raise InputError(
            f"The conversation has {size} characters and may have {MAX_HISTORY}; start again."
        )
    return turns


def _plain_content(content: Any) -> str | None:
    """A message's text, also of the lists of parts that the page sends; None if it is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else None


def _number(value: Any, name: str, low: float, high: float) -> float:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"The {name} must be a number from {low:g} to {high:g}.")
    return value


def guarded_models() -> dict[str, ProbeRecord]:
    """For each model that a visitor may chat with, its probe's record.

    The host's own probes are for those who may name paths too.
    """
    found: dict[str, ProbeRecord] = {}
    for probe in visible(PROBES):
        if probe.record.heads.keys() >= {"prompt", "answer"}:
            found.setdefault(probe.model_id, probe.record)
    return found


def probe_record(model_id: str) -> ProbeRecord:
    """The record of the probe that belongs to a model.

    Raises:
        InputError: there is none, so nothing is fetched.
    """
    models = guarded_models()
    if model_id not in models:
        raise InputError(
            f"There is no probe for {model_id[:100]}; choose {', '.join(models) or 'nothing yet'}."
        )
    return models[model_id]


@lru_cache(maxsize=1)
def shared_classifier() -> Classifier:
    """The exchange classifier, one for all guards; it is small enough for the CPU.

    Raises:
        AssayError: it cannot be loaded.
    """
    from modelassay.classifier import load_classifier

    return load_classifier(CLASSIFIER, device="cpu")


def _load_guard(model_id: str) -> Guard:
    record = probe_record(model_id)
    trim_cache(MAX_CACHE_BYTES)
    guard = load_guard(
        model_id,
        classifier=None,
        revision=record.model.revision if "/" in model_id else None,  # the probe's very weights
        device="cpu",
        token=False,
        max_bytes=MAX_MODEL_BYTES,
    )
    return replace(guard, classifier=shared_classifier(), monitor=monitor_of(guard.model))


def _failure(error: Exception) -> str:
    if isinstance(error, AssayError):
        return str(error)
    # The type alone: a message or a traceback may quote the conversation.
    log.error("A chat failed (%s).", type(error).__name__)
    return "It failed unexpectedly; please report the model and the settings."


def unless_failed(results: Iterator[Any]) -> Iterator[Any]:
    """Results of work on a GPU, whose errors cross ZeroGPU's process border as text only.

    Raises:
        InputError: one of them is such a text.
    """
    for result in results:
        if isinstance(result, str):
            raise InputError(result)
        yield result


def _lent(call: Any, plain: Any, *given: Any) -> Generator[Any, None, None]:
    """What a call on a GPU gives; what the same gives here where no GPU is lent to this visitor.

    Raises:
        UnavailableError: the GPU was taken away, or the model is too large for the CPU.
    """
    import gradio as gr

    try:
        with closing(call(*given)) as results:
            yield from results
        return
    except gr.Error as error:
        problem = explained(error)
    large = given[0] is not None and (size_of(given[0]) or GUESS_BYTES) > SMALL_BYTES
    if large or not isinstance(problem, NoGpuError):
        raise problem
    with closing(plain(*given)) as results:
        yield from results


def chat_seconds(_model_id: str, _turns: Any, options: Mapping[str, Any]) -> int:
    """Seconds of GPU that a response asks for."""
    wanted = GPU_START + GPU_PER_TOKEN * options["max_new_tokens"]
    return min(math.ceil(wanted), GPU_MOST)


def _chat(
    model_id: str, turns: list[dict[str, str]], options: dict[str, Any]
) -> Generator[Any, None, None]:
    try:
        with Worker() as worker:
            for event in SHELF.get(model_id, to_gpu=True).stream(turns, **options):
                yield event
                worker.share()  # of the thread that asks for more, which is not always the same
    except Exception as error:
        yield _failure(error)


def _score(model_id: str | None, exchange: tuple[str, str]) -> Generator[Any, None, None]:
    try:
        risks: dict[str, float | None] = {"prompt": None, "answer": None}
        with Worker():
            if model_id is not None:
                risks = SHELF.get(model_id, to_gpu=True).score(*exchange)
            # Here and not in the page's own process: a fork must not inherit a lock that it has
            # taken.
            shares = [float(share) for share in shared_classifier().predict([exchange])[0]]
        yield risks, shares
    except Exception as error:
        yield _failure(error)


def _chat_in_fork(*given: Any) -> Generator[Any, None, None]:
    if LENT:
        stay_alone()
    yield from _chat(*given)


def _score_in_fork(*given: Any) -> Generator[Any, None, None]:
    if LENT:
        stay_alone()
    yield from _score(*given)


_seconds: Any = chat_seconds
_chat_on_gpu: Any = on_gpu(duration=_seconds)(_chat_in_fork)
_score_on_gpu: Any = on_gpu(duration=math.ceil(GPU_START))(_score_in_fork)

"""One served model: from a checked request to conversations that run, and their events back.

Knows no HTTP. Events come from the engine's thread into a queue of the loop that asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelassay.errors import InputError
from modelassay.guard.batching import Row
from modelassay.guard.events import GuardEvent
from modelassay.guard.streaming import Guard
from modelassay.reading.prompts import TooLongError
from modelassay.serving import errors
from modelassay.serving.engine import Broken, Conversation, Engine, QueueFullError, Room
from modelassay.serving.metrics import Metrics
from modelassay.serving.replies import Choice, Reply
from modelassay.serving.requests import ChatRequest

HUB_OR_OWN = re.compile(r"[\w.:-]+(/[\w.:-]+)?")
"""Ids of models that say nothing of this machine."""


@dataclass(frozen=True)
class Settings:
    """How a model is served."""

    name: str
    """What clients call the model."""
    key: str | None = field(default=None, repr=False)
    """What requests have to bear; None lets everybody in who can connect."""
    room: Room = field(default_factory=Room)
    most_tokens: int = 1024
    """Of a response, and how many one has that asks for no number."""
    most_prompt_tokens: int | None = None
    """Of a conversation; None for what the model reads."""
    most_bytes: int = 1_000_000
    """Of a request's body."""
    seconds: float = 300.0
    """That an answer may take, waiting included."""
    seconds_to_send: float = 30.0
    """That a client may take to send a request."""
    guarding: Mapping[str, Any] = field(default_factory=dict)
    """Thresholds and the like, as `Guard.respond` takes them."""
    local_hosts_only: bool = True
    """Whether requests have to name this machine as their host, so that no web page that a browser
    shows can be made to reach it under another name."""


class Service:
    """A guarded model that answers chat requests."""

    def __init__(self, guard: Guard, settings: Settings) -> None:
        """Tries out how the model can be batched, and starts its thread.

        Raises:
            InputError: the guard's settings contradict each other.
        """
        self.guard, self.settings = guard, settings
        guard.respond("Hello.", **settings.guarding)
        self.metrics = Metrics()
        self.engine = Engine(guard, settings.room, on_pass=self.metrics.on_pass)
        self.metrics.watch("running_responses", "Responses that run.", lambda: self.engine.n_live)
        self.metrics.watch("waiting_responses", "Responses that wait.", self._n_waiting)
        self.created = int(time.time())
        weights = guard.model.info.weights_sha256 or guard.model.info.id
        self.fingerprint = f"fp_{hashlib.sha256(weights.encode()).hexdigest()[:12]}"
        self._in_hand = 0
        self._encoding = threading.Lock()  # tokenizers are not made for several threads
        self.engine.start()

    def _n_waiting(self) -> float:
        return self.engine.n_waiting

    def close(self) -> None:
        """Ends all conversations."""
        self.engine.close()

    @property
    def most_prompt_tokens(self) -> int:
        """Tokens that a conversation may have, its response left out."""
        context = self.guard.model.context_length
        return min(self.settings.most_prompt_tokens or context, context)

    @contextmanager
    def handling(self) -> Iterator[None]:
        """While a request is received and made ready to wait.

        Raises:
            RequestError: as many are in hand as could ever wait and run.
        """
        if self._in_hand >= self.settings.room.waiting + self.settings.room.rows:
            raise errors.busy(1)
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def begin(self, request: ChatRequest) -> Talk:
        """Puts a request's conversations into the queue.

        Raises:
            RequestError: there is no such model, the conversation cannot be answered, or as many
                wait as may.
        """
        settings = self.settings
        if request.model != settings.name:
            raise errors.no_such_model(request.model)
        if request.max_tokens is not None and request.max_tokens > settings.most_tokens:
            raise errors.bad_request(
                f"'max_tokens' is at most {settings.most_tokens} here, not {request.max_tokens}.",
                "max_tokens",
                "invalid_value",
            )
        self._check_open(request.n)
        talk = Talk(self, asyncio.get_running_loop())
        # In a thread: a long text takes a while to be cut into tokens.
        conversations = await asyncio.to_thread(self._prepare, request, talk)
        talk.conversations = conversations
        prompt_tokens = len(conversations[0].response.asked.ids)
        choices = [Choice(i) for i in range(request.n)]
        talk.reply = Reply(settings.name, self.fingerprint, prompt_tokens, choices)
        self._check_open(0)
        try:
            self.engine.submit(conversations)
        except QueueFullError as error:
            raise errors.busy(error.retry_after) from error
        return talk

    def _check_open(self, n: int) -> None:
        """Refuses what could not run, before any work is done for it."""
        if not self.engine.is_alive:
            raise errors.closing()
        if n > self.settings.room.waiting + self.settings.room.rows:
            raise errors.bad_request("'n' is more than this server holds.", "n", "invalid_value")
        try:
            self.engine.check_room(n)
        except QueueFullError as error:
            raise errors.busy(error.retry_after) from error

    def _prepare(self, request: ChatRequest, talk: Talk) -> list[Conversation]:
        with self._encoding:
            made = []
            for choice in range(request.n):
                row = Row(request.sampling_of(choice))
                try:
                    response = self.guard.respond(
                        request.messages,
                        max_new_tokens=request.max_tokens or self.settings.most_tokens,
                        stop=request.stop,
                        readings=row.readings,
                        **self.settings.guarding,
                    )
                except TooLongError as error:
                    raise errors.too_long(None, self.most_prompt_tokens) from error
                except InputError as error:
                    # It may name the model by a path of this machine.
                    text = str(error).replace(self.guard.model.info.id, self.settings.name)
                    raise errors.bad_request(text, "messages") from error
                n_tokens = len(response.asked.ids)
                if n_tokens > self.most_prompt_tokens:
                    raise errors.too_long(n_tokens, self.most_prompt_tokens)
                made.append(Conversation(response, row, talk.listener(choice)))
            return made


class Talk:
    """The conversations of one request while they run."""

    reply: Reply

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        """Starts without events."""
        self.service = service
        self.conversations: list[Conversation] = []
        self.begun = time.monotonic()
        self.first_text: float | None = None
        self._loop = loop
        self._events: asyncio.Queue[tuple[int, GuardEvent | Broken]] = asyncio.Queue()

    def listener(self, choice: int) -> Any:
        """What the engine tells a choice's events."""

        def tell(event: GuardEvent | Broken) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

        return tell

    async def events(self, alive_every: float) -> AsyncIterator[tuple[Choice, GuardEvent] | None]:
        """Events of all choices until they have ended; None after so many seconds without one.

        Raises:
            RequestError: a conversation failed.
        """
        while not self.reply.is_over:
            try:
                found = await asyncio.wait_for(self._events.get(), alive_every)
            except (TimeoutError, asyncio.TimeoutError):
                yield None
                continue
            number, event = found
            if isinstance(event, Broken):
                raise errors.closing() if event.kind == "closed" else errors.failed()
            choice = self.reply.choices[number]
            choice.add(event)
            if event.text and self.first_text is None:
                self.first_text = time.monotonic() - self.begun
                self.service.metrics.first_text.observe(self.first_text)
            if event.kind == "end":
                self._count(choice)
            yield choice, event

    def cancel(self) -> None:
        """Ends what still runs."""
        for conversation in self.conversations:
            conversation.cancel()

    def _count(self, choice: Choice) -> None:
        metrics = self.service.metrics
        if choice.end is not None and choice.end.reason is not None:
            metrics.responses.labels(choice.end.reason).inc()
        if choice.verdict is not None:
            metrics.verdicts.labels(choice.verdict).inc()
        if choice.alert is not None:
            metrics.alerts.inc()


def served_name(model_id: str) -> str:
    """What clients call a model unless told otherwise: its id, of a path the last part."""
    if HUB_OR_OWN.fullmatch(model_id) and not Path(model_id).exists():
        return model_id
    return re.sub(r"[^\w.:-]+", "-", Path(model_id).name) or "model"

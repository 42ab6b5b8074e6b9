"""Many guarded conversations at once, in passes that they share, on one thread that owns the model.

A conversation waits, is prefilled, and then takes part in every pass until it ends. While the
classifier is asked about it, it stands aside and the others go on. What goes wrong in one
conversation ends that one; a pass that fails ends those that were in it, and the next one works.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modelassay.guard.batching import OwnPasses, Passes, Row, SharedPasses, why_not_shared
from modelassay.guard.decoding import DecodingStep
from modelassay.guard.events import GuardEvent
from modelassay.guard.responding import Question, Read, Responding, Said, Steps
from modelassay.guard.streaming import Guard
from modelassay.reading.batching import batch_budget

log = logging.getLogger(__name__)

SHORTEST_WAIT, LONGEST_WAIT = 1, 60
"""Seconds that a client is told to wait when the queue is full."""

LOOK_AGAIN = 0.05
"""Seconds until a conversation that waits while nothing runs is looked at again."""


class QueueFullError(Exception):
    """No more conversations may wait now."""

    def __init__(self, retry_after: int) -> None:
        """Says in how many seconds there may be room."""
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Broken:
    """Ends a conversation that failed."""

    kind: str
    """Type of the error; its text may quote the conversation."""


@dataclass(frozen=True)
class Room:
    """How much is done at once."""

    rows: int = 32
    """Conversations in a pass."""
    waiting: int = 64
    """Conversations that may wait for a place."""
    cells: int = 32_768
    """Rows times columns of the cache: conversations times tokens of the longest. One conversation
    alone may have more."""


@dataclass(eq=False)
class Conversation:
    """One response that was asked for."""

    response: Responding
    row: Row
    tell: Callable[[GuardEvent | Broken], None]
    """Called on the engine's thread; must not block."""
    steps: Steps = field(init=False)
    asked_at: float = field(default_factory=time.monotonic)
    begun_at: float | None = None
    """When it got a place."""
    first: DecodingStep | None = None
    """The pass over its prompt, until its response has had it."""
    in_passes: bool = False
    """Whether its next token is read in the next pass."""
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.steps = self.response.steps(self._cancelled.is_set)

    def cancel(self) -> None:
        """Ends it before its next token; it is told of that end like of any other."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was."""
        return self._cancelled.is_set()

    @property
    def size(self) -> int:
        """Tokens that it may come to."""
        return len(self.response.asked.ids) + self.response.asked.limit


class Engine:
    """Runs conversations of one guard."""

    def __init__(
        self,
        guard: Guard,
        room: Room | None = None,
        *,
        on_pass: Callable[[int, float], None] = lambda _rows, _seconds: None,
    ) -> None:
        """Tries out whether the model's responses can share passes; nothing runs yet.

        Args:
            guard: Whose conversations.
            room: How much is done at once.
            on_pass: Told how many rows a pass had and what it took, in seconds.
        """
        self.guard, self.room = guard, room or Room()
        self.alone_because = why_not_shared(guard)
        """Why every conversation has passes of its own; None where they are shared."""
        self._on_pass = on_pass
        self._passes = self._new_passes()
        self._changed = threading.Condition()
        self._waiting: deque[Conversation] = deque()
        self._answers: deque[tuple[Conversation, Said]] = deque()
        self._live: set[Conversation] = set()
        self._asking = ThreadPoolExecutor(1, "modelassay-classifier")
        self._thread: threading.Thread | None = None
        self._closed = False
        self._seconds = 1.0  # that a conversation takes, a moving average

    def start(self) -> None:
        """Starts the thread that runs the model."""
        self._thread = threading.Thread(target=self._run, name="modelassay-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all conversations, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._asking.shutdown(wait=False, cancel_futures=True)

    @property
    def is_alive(self) -> bool:
        """Whether conversations are run."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    @property
    def n_waiting(self) -> int:
        """Conversations that wait for a place."""
        return len(self._waiting)

    @property
    def n_live(self) -> int:
        """Conversations that have one."""
        return len(self._live)

    def submit(self, conversations: Sequence[Conversation]) -> None:
        """Adds conversations to those that wait: all of them, or none.

        Raises:
            QueueFullError: too many wait.
        """
        with self._changed:
            self.check_room(len(conversations))
            self._waiting.extend(conversations)
            self._changed.notify()

    def check_room(self, n: int) -> None:
        """Refuses so many more conversations where too many wait.

        Raises:
            QueueFullError: says when to try again.
        """
        if len(self._live) + len(self._waiting) + n > self.room.rows + self.room.waiting:
            raise QueueFullError(self._retry_after())

    def _retry_after(self) -> int:
        seconds = self._seconds * (1 + len(self._waiting) / self.room.rows)
        return min(max(math.ceil(seconds), SHORTEST_WAIT), LONGEST_WAIT)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._is_due()):
                    self._changed.wait(LOOK_AGAIN if self._waiting else None)
                if self._closed:
                    break
            try:
                self.turn()
            except Exception as error:
                log.error("The engine failed and goes on (%s).", type(error).__name__)
                self._passes = self._new_passes()
                self._fail_all(type(error).__name__)
        self._fail_all("closed")

    def _fail_all(self, kind: str) -> None:
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for conversation in [*self._live, *waiting]:
            self._fail(conversation, kind)

    def _is_due(self) -> bool:
        """Whether a turn would do anything."""
        if self._answers or any(each.in_passes for each in self._live):
            return True
        return any(
            each.is_cancelled or (i == 0 and self._has_room_for(each))
            for i, each in enumerate(self._waiting)
        )

    def turn(self) -> None:
        """Does what is due: answers of the classifier, prompts that have waited, and one pass."""
        while self._answers:
            conversation, said = self._answers.popleft()
            if conversation in self._live:
                self._drive(conversation, said)
        self._admit()
        rows = sum(each.in_passes for each in self._live)
        if not rows:
            return
        start = time.monotonic()
        try:
            steps = self._passes.read()
        except Exception as error:
            log.error("A pass over %d conversations failed (%s).", rows, type(error).__name__)
            failed = [each for each in self._live if each.in_passes]
            self._passes = self._new_passes()
            for conversation in failed:
                conversation.in_passes = False
                self._fail(conversation, type(error).__name__)
            return
        self._on_pass(rows, time.monotonic() - start)
        by_row = {id(each.row): each for each in self._live}
        for row, step in steps:
            self._drive(by_row[id(row)], step)

    def _admit(self) -> None:
        """Reads prompts that have waited, but not so many that the others have to wait for long."""
        with self._changed:
            gone = [each for each in self._waiting if each.is_cancelled]
            for conversation in gone:
                self._waiting.remove(conversation)
        for conversation in gone:
            self._tell(conversation, _cancelled())
        entering: list[Conversation] = []
        longest, budget = 0, batch_budget(self.guard.model)
        while self._waiting and self._has_room_for(self._waiting[0]):
            longest = max(longest, len(self._waiting[0].response.asked.ids))
            if entering and longest * (len(entering) + 1) > budget:
                break
            with self._changed:
                conversation = self._waiting.popleft()
            conversation.begun_at = time.monotonic()
            self._live.add(conversation)
            entering.append(conversation)
        if entering:
            self._begin(entering)

    def _begin(self, entering: Sequence[Conversation]) -> None:
        """Reads prompts; those that fail together are read one by one."""
        try:
            asked = [(each.response.asked.ids, each.row) for each in entering]
            steps = self._passes.begin(asked)
        except Exception as error:
            log.warning("Reading %d prompts failed (%s).", len(entering), type(error).__name__)
            if len(entering) == 1:
                self._fail(entering[0], type(error).__name__)
            else:
                for conversation in entering:
                    self._begin([conversation])
            return
        for conversation, step in zip(entering, steps, strict=True):
            conversation.first = step
            self._drive(conversation, None)

    def _has_room_for(self, conversation: Conversation) -> bool:
        if not self._live:
            return True
        if len(self._live) >= self.room.rows:
            return False
        longest = max(each.size for each in (*self._live, conversation))
        return (len(self._live) + 1) * longest <= self.room.cells

    def _drive(self, conversation: Conversation, answer: DecodingStep | Said | None) -> None:
        """Sends a response what it needed; goes on until it needs something that has to wait."""
        try:
            while True:
                found = conversation.steps.send(answer)
                answer = None
                if isinstance(found, Read):
                    if conversation.in_passes:
                        return
                    if conversation.first is None:
                        self._passes.put(conversation.row)
                        conversation.in_passes = True
                        return
                    answer, conversation.first = conversation.first, None
                elif isinstance(found, Question):
                    if conversation.in_passes:
                        self._passes.take(conversation.row)
                        conversation.in_passes = False
                    self._asking.submit(self._ask, conversation, found)
                    return
                else:
                    conversation.tell(found)
        except StopIteration:
            self._leave(conversation)
        except Exception as error:
            log.error("A conversation failed (%s).", type(error).__name__)
            self._fail(conversation, type(error).__name__)

    def _ask(self, conversation: Conversation, question: Question) -> None:
        said = question.ask()
        with self._changed:
            self._answers.append((conversation, said))
            self._changed.notify()

    def _leave(self, conversation: Conversation) -> None:
        self._live.discard(conversation)
        conversation.in_passes = False
        self._passes.drop(conversation.row)
        if conversation.begun_at is not None:
            took = time.monotonic() - conversation.begun_at
            self._seconds += 0.2 * (took - self._seconds)

    def _fail(self, conversation: Conversation, kind: str) -> None:
        self._leave(conversation)
        self._tell(conversation, Broken(kind))

    def _tell(self, conversation: Conversation, event: GuardEvent | Broken) -> None:
        try:
            conversation.tell(event)
        except Exception as error:  # nobody listens any more
            log.info("Nobody takes the end of a conversation (%s).", type(error).__name__)

    def _new_passes(self) -> Passes:
        return SharedPasses(self.guard) if self.alone_because is None else OwnPasses(self.guard)


def _cancelled() -> GuardEvent:
    return GuardEvent("end", 0, "", None, None, "stop", "cancelled")

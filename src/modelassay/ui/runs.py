"""Runs that visitors share: one line for the machine, one run for all who ask for the same.

Whoever asks for what is running joins it and sees its progress; whoever asks for what is known gets
it at once. A run whose last visitor has gone stops. Nothing here knows what is run.
"""

from __future__ import annotations

import contextvars
import errno
import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from modelassay.errors import AssayError, UnavailableError

log = logging.getLogger(__name__)

TOLD_EVERY = 1.0
"""Seconds after which a visitor is told again, so that the time left moves."""
MOST_KEPT = 64
"""Results that are kept in memory."""
FAILED = "It failed unexpectedly; please report the model and what you asked for."


@dataclass(frozen=True)
class Step:
    """Progress of what is running."""

    phase: str
    done: int
    total: int
    percent: int | None = None
    """Of the whole run."""
    left: float | None = None
    """Seconds until its end, as far as that can be told."""
    ahead: int = 0
    """Runs that come first, while this one waits for the machine."""
    note: str = ""
    """What the visitor has to know besides."""


class Cancelled(Exception):  # noqa: N818 (control flow, not an error)
    """The last visitor has gone."""


class Clock(Protocol):
    """Turns progress into percent and time left."""

    def tell(self, step: Step) -> Step:
        """The step, with both."""
        ...


class Cache(Protocol):
    """Where results outlast the page."""

    def get(self, key: str) -> Any | None:
        """What was kept under a key."""
        ...

    def put(self, key: str, result: Any) -> None:
        """Keeps it, if it can be kept."""
        ...


@dataclass(eq=False)
class Run:
    """One run and who follows it."""

    visitor: str
    clock: Clock
    gone: threading.Event = field(default_factory=threading.Event)
    followers: int = 0
    step: Step = field(default_factory=lambda: Step("waiting", 0, 1))
    ended: bool = False
    result: Any = None
    error: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, phase: str, done: int, total: int, note: str | None = None) -> None:
        """Progress; to be called by the work itself, which this ends when nobody follows.

        Raises:
            Cancelled: nobody does.
        """
        self.check()
        step = Step(phase, done, total, note=self.step.note if note is None else note)
        with self.changed:
            self.step = self.clock.tell(step)
            self.changed.notify_all()

    def check(self) -> None:
        """Ends the work when nobody follows any more.

        Raises:
            Cancelled: nobody does.
        """
        if self.gone.is_set():
            raise Cancelled

    def end(self, result: Any = None, error: str | None = None) -> None:
        """The last that is told."""
        with self.changed:
            self.result, self.error, self.ended = result, error, True
            self.changed.notify_all()


class Runs:
    """All runs of a page."""

    def __init__(
        self, at_once: int, most: int, per_visitor: int, cache: Cache | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            at_once: Runs that have the machine at a time.
            most: Runs in all, those in line included.
            per_visitor: Of them, those of one visitor.
            cache: Where results outlast the page.
        """
        self.at_once, self.most, self.per_visitor, self.cache = at_once, most, per_visitor, cache
        self._lock = threading.Lock()
        self._by_key: dict[str, Run] = {}
        self._runs: list[Run] = []
        self._line: list[Run] = []
        self._moved = threading.Condition()
        self._known: OrderedDict[str, Any] = OrderedDict()

    def known(self, key: str | None) -> Any | None:
        """The result of an earlier run, if it is kept."""
        if key is None:
            return None
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = None if self.cache is None else self.cache.get(key)
        if found is not None:
            self._keep(key, found)
        return found

    def follow(
        self,
        key: str | None,
        visitor: str,
        clock: Clock,
        prepare: Callable[[Run], Any],
        work: Callable[[Run, Any], Any],
    ) -> Iterator[Any]:
        """Starts or joins a run; yields steps, and at last the result.

        Args:
            key: Of the result, the same for all who may share it; None for one that nobody may.
            visitor: Who asks.
            clock: Of this run.
            prepare: What does not need the machine for itself (fetching).
            work: The rest, given what that gave.

        Raises:
            UnavailableError: too many wait, or too many of this visitor's.
            AssayError: what the run ended with.
        """
        if (found := self.known(key)) is not None:
            yield found
            return
        run = self._join(key, visitor, clock, prepare, work)
        try:
            while True:
                with run.changed:
                    step = run.step
                    if run.ended:
                        break
                yield replace(run.clock.tell(step), ahead=self.ahead(run))
                with run.changed:
                    run.changed.wait_for(
                        lambda before=step: run.ended or run.step is not before, TOLD_EVERY
                    )
        finally:
            with self._lock:
                run.followers -= 1
                if run.followers == 0 and not run.ended:
                    run.gone.set()
                    self._forget(key, run)  # nobody may join what is ending
            with self._moved:
                self._moved.notify_all()
        if run.error is not None:
            raise UnavailableError(run.error)
        yield run.result

    def ahead(self, run: Run) -> int:
        """Runs that come before one: 0 when it has the machine, or does not wait for it."""
        with self._moved:
            if run not in self._line:
                return 0
            return max(0, self._line.index(run) - self.at_once + 1)

    def waiting(self) -> int:
        """Runs in all, those that have the machine included."""
        with self._lock:
            return len(self._runs)

    def _join(
        self,
        key: str | None,
        visitor: str,
        clock: Clock,
        prepare: Callable[[Run], Any],
        work: Callable[[Run, Any], Any],
    ) -> Run:
        with self._lock:
            run = None if key is None else self._by_key.get(key)
            if run is None:
                mine = sum(each.visitor == visitor for each in self._runs)
                if mine >= self.per_visitor:
                    raise UnavailableError(
                        f"You have {mine} runs here already; wait until one ends, or stop one."
                    )
                if len(self._runs) >= self.most:
                    raise UnavailableError(
                        "Too many people are waiting; please try again in a few minutes."
                    )
                run = Run(visitor, clock)
                self._runs.append(run)
                if key is not None:
                    self._by_key[key] = run
                # With the visitor's request about it, which says whose GPU quota is asked.
                context = contextvars.copy_context()
                thread = threading.Thread(
                    target=context.run, args=(self._work, key, run, prepare, work), daemon=True
                )
                thread.name = f"{thread.name} (work)"
                thread.start()
            run.followers += 1
            return run

    def _work(
        self,
        key: str | None,
        run: Run,
        prepare: Callable[[Run], Any],
        work: Callable[[Run, Any], Any],
    ) -> None:
        result, error = None, FAILED
        try:
            ready = prepare(run)
            with self._moved:
                self._line.append(run)
                self._moved.wait_for(
                    lambda: run.gone.is_set() or self._line.index(run) < self.at_once
                )
            run.check()
            result, error = work(run, ready), None
            if key is not None:
                self._keep(key, result)
                if self.cache is not None:
                    self.cache.put(key, result)
        except Cancelled:
            error = "It was stopped."
        except Exception as problem:
            error = sentence(problem)
            if isinstance(problem, AssayError):
                return
            # Without the message, which may quote what a visitor sent.
            frames = "".join(traceback.format_tb(problem.__traceback__))
            log.error("A run failed (%s):\n%s", type(problem).__name__, frames)
        finally:
            with self._moved:
                if run in self._line:
                    self._line.remove(run)
                self._moved.notify_all()
            with self._lock:
                self._forget(key, run)
                self._runs.remove(run)
            run.end(result, error)

    def _keep(self, key: str, result: Any) -> None:
        with self._lock:
            self._known[key] = result
            self._known.move_to_end(key)
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)

    def _forget(self, key: str | None, run: Run) -> None:
        if key is not None and self._by_key.get(key) is run:
            del self._by_key[key]


def sentence(problem: Exception) -> str:
    """What went wrong, for a visitor: nothing of the server's paths."""
    text = str(problem)
    code = problem.errno if isinstance(problem, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "disk is full" in text:
        return "This page's disk is full: try again later, or choose a smaller model."
    if isinstance(problem, MemoryError):
        return "This page ran out of memory: choose a smaller model, or try again later."
    return text if isinstance(problem, AssayError) else FAILED


class Plain:
    """A clock that knows nothing of what is run."""

    def __init__(self) -> None:
        """Starts now."""
        self.started = time.monotonic()

    def tell(self, step: Step) -> Step:
        """The step as it is."""
        return step

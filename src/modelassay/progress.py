"""How long work tells what it is doing: a callable, which a terminal, a page or a test gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[int, int], None]
"""Progress of one phase: called with (done, total)."""
OnPhase = Callable[[str, int, int], None]
"""Progress: called with (phase, done, total)."""


def silent(*_progress: object) -> None:
    """Progress nobody listens to."""


def phase_of(on_phase: OnPhase, phase: str) -> OnProgress:
    """The progress of one phase, as part of the whole."""
    return lambda done, total: on_phase(phase, done, total)


def told(items: Sequence[T], on_progress: OnProgress | None) -> Iterator[T]:
    """The items; before each, and after the last, how many are done is told."""
    for done, item in enumerate(items):
        if on_progress:
            on_progress(done, len(items))
        yield item
    if on_progress:
        on_progress(len(items), len(items))

"""How long work tells what it is doing: a callable, which a terminal, a page or a test gives."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Progress of one phase: called with (done, total)."""
OnPhase = Callable[[str, int, int], None]
"""Progress: called with (phase, done, total)."""


def silent(_phase: str, _done: int, _total: int) -> None:
    """Progress nobody listens to."""


def phase_of(on_phase: OnPhase, phase: str) -> OnProgress:
    """The progress of one phase, as part of the whole."""
    return lambda done, total: on_phase(phase, done, total)

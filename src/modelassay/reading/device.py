"""Where a model runs: where it is, or on a GPU that somebody lends for as long as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from modelassay.models import LoadedModel
from modelassay.progress import OnPhase

T = TypeVar("T")


class OnDevice(Protocol):
    """Runs what needs the model to run, and nothing else, where it is fast.

    `work`, what it is given and what it gives are to be pickled: another process may do it.
    """

    def __call__(
        self, work: Callable[..., T], model: LoadedModel, *given: Any, on_progress: OnPhase
    ) -> T:
        """What `work(model, *given, on_progress=on_progress)` gives."""
        ...


def here(work: Callable[..., T], model: LoadedModel, *given: Any, on_progress: OnPhase) -> T:
    """Where the model is."""
    return work(model, *given, on_progress=on_progress)

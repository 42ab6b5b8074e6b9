"""Loaded models that the page keeps: the ones used last, within a share of the memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from modelassay.models import LoadedModel

MOST = 3
"""Models that are kept."""
SHARE = 0.25
"""Of the machine's memory that they may fill; one that is larger is let go after its run."""


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: LoadedModel | None = None
        self.n_bytes = 0


class Shelf:
    """Models by key; one that is lent is lent to one run at a time, which may hang hooks on it."""

    def __init__(self, most: int = MOST, most_bytes: float | None = None) -> None:
        """Starts empty.

        Args:
            most: Models that are kept.
            most_bytes: Of memory that they may fill; None for a share of the machine's.
        """
        self.most = most
        self.most_bytes = most_bytes or SHARE * psutil.virtual_memory().total
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._renew_lock()
        if hasattr(os, "register_at_fork"):
            # Another thread may have held it at the moment of the fork, and is not there to let go.
            os.register_at_fork(after_in_child=self._renew_lock)

    @contextmanager
    def lend(
        self, key: str, load: Callable[[], LoadedModel], *, keep: bool = True
    ) -> Iterator[LoadedModel]:
        """Lends a model for as long as the `with` block runs.

        Args:
            key: Which one: the same for the same weights.
            load: Loads it where it is not here.
            keep: Whether others may have it afterwards. One whose run failed, or was stopped in the
                middle of a pass, is let go in any case.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        ended = False
        with entry.lock:
            try:
                if entry.model is None:
                    self._make_room(for_more=1)
                    entry.model = load()
                    entry.n_bytes = _bytes_of(entry.model)
                yield entry.model
                ended = True
            finally:
                packed = entry.model is not None and entry.model.info.quantization is not None
                if not (ended and keep) or packed:
                    self._drop(key, entry)
        self._make_room()

    def at_hand(self, key: str) -> LoadedModel | None:
        """A model that is here, without waiting; for a fork of the process that lends it."""
        entry = self._entries.get(key)
        return None if entry is None else entry.model

    def names(self) -> list[str]:
        """Of the models that are here, the one used last at the end."""
        with self._lock:
            return [key for key, entry in self._entries.items() if entry.model is not None]

    def _make_room(self, for_more: int = 0) -> None:
        """Lets models go, the one used longest ago first, except those that are lent."""
        with self._lock:
            kept = [e for e in self._entries.values() if e.model is not None]
            n, size = len(kept), sum(e.n_bytes for e in kept)
            for key, entry in list(self._entries.items()):
                if n + for_more <= self.most and size <= self.most_bytes:
                    return
                if entry.model is not None and entry.lock.acquire(blocking=False):
                    entry.lock.release()
                    n, size = n - 1, size - entry.n_bytes
                    del self._entries[key]

    def _drop(self, key: str, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]
        entry.model = None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def _bytes_of(model: LoadedModel) -> int:
    network: Any = model.network
    return sum(each.numel() * each.element_size() for each in network.parameters())

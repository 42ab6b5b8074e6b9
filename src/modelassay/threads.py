"""Threads are shared by all that computes on this machine, so that two runs do not fight for them.

Two runs with a thread for each core each are far slower than twice one of them: threads that wait
for one another spin. So whoever computes is a `Worker`, which holds a lock on a file in the cache
folder for as long; each takes its share of the cores, and takes it again as others come and go.
Where programs of others keep the machine busy, shares are smaller.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from modelassay.files.atomic import cache_dir
from modelassay.progress import silent

P = ParamSpec("P")
T = TypeVar("T")

COUNTED_FOR = 0.5
"""Seconds for which a count of workers stands."""
PROGRESS = ("on_progress", "on_phase")
"""Parameters that are told progress, between one batch and the next."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")

_here = threading.local()
"""`worker` of the call that this thread is in."""


class Worker:
    """Something that computes, from `with` to its end, in one thread or in several by turns."""

    def __init__(self) -> None:
        """Counts for nothing yet."""
        self._lock: Any = None
        self._local = False

    def __enter__(self) -> Worker:
        """Counts from here on."""
        self._lock = _hold_lock()
        if self._lock is None:
            self._local = True
            _COUNT.add(1)
        _COUNT.forget()
        self.share()
        return self

    def __exit__(self, *_error: object) -> None:
        """Counts no longer; the thread that leaves may use all cores again."""
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
        if self._local:
            _COUNT.add(-1)
        self._lock, self._local = None, False
        _COUNT.forget()
        if (most := _COUNT.ceiling()) is not None:
            _set_threads(most)

    def share(self) -> None:
        """Gives the calling thread its share of the cores; cheap enough for every token."""
        if (most := _COUNT.ceiling()) is not None:
            _set_threads(max(1, min(most, fair_share(max(_COUNT.now(), 1)))))


def sharing(function: Callable[P, T]) -> Callable[P, T]:
    """Makes calls of a function workers, which take their share again whenever they tell progress.

    One call within another is the same worker.
    """
    told = [name for name in PROGRESS if name in inspect.signature(function).parameters]

    def run(worker: Worker, args: Any, named: dict[str, Any]) -> T:
        for name in told:
            tell: Any = named.get(name, silent)
            named[name] = _also_shared(worker, tell)
        return function(*args, **named)

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> T:
        if (within := getattr(_here, "worker", None)) is not None:
            return run(within, args, named)
        with Worker() as worker:
            _here.worker = worker
            try:
                return run(worker, args, named)
            finally:
                _here.worker = None

    return call


def cores() -> int:
    """Cores that this process may use, at least one: of the machine, or of its container."""
    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        n = os.cpu_count() or 1
    try:
        quota, _, period = QUOTA.read_text(encoding="ascii").partition(" ")
        n = min(n, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return n


def fair_share(workers: int) -> int:
    """Threads for each of some workers; fewer where other programs keep the machine busy."""
    share = max(1, cores() // workers)
    others = load() - workers * share
    spare = (os.cpu_count() or 1) - max(0.0, others)
    return max(1, min(share, round(spare / workers)))


def load() -> float:
    """How many threads ran or wanted to over the last minute, of all programs; 0 if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on every system
        return 0.0


def active_workers() -> int:
    """How many workers there are on this machine now, this process's own included."""
    return _COUNT.now()


def stay_alone() -> None:
    """Has this process compute in one thread for good, whatever else runs.

    For a fork: OpenMP's other threads stayed behind in its parent, and waiting for them never ends.
    """
    import torch

    _COUNT.limit(1)
    torch.set_num_threads(1)


class _Count:
    """How many workers there are, as last counted; one for each process."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._without_files = 0
        self._renew()
        if hasattr(os, "register_at_fork"):
            # Another thread may have held the lock at the moment of the fork.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._guard = threading.Lock()
        self._n, self._until = 0, 0.0

    def add(self, n: int) -> None:
        """Counts workers that could have no file."""
        with self._guard:
            self._without_files += n

    def forget(self) -> None:
        """Has them counted at the next question."""
        with self._guard:
            self._until = 0.0

    def now(self) -> int:
        """The count."""
        with self._guard:
            if time.monotonic() >= self._until:
                self._n = self._without_files + _count_locks()
                self._until = time.monotonic() + COUNTED_FOR
            return self._n

    def limit(self, most: int) -> None:
        """Sets what `ceiling` gives."""
        self._most = most

    def ceiling(self) -> int | None:
        """Most threads that one may have: what torch began with; None while it is not in use."""
        torch: Any = sys.modules.get("torch")
        if self._most is None and hasattr(torch, "get_num_threads"):
            self._most = torch.get_num_threads()
        return self._most


_COUNT = _Count()


def _also_shared(worker: Worker, told: Callable[..., Any]) -> Callable[..., Any]:
    def tell(*progress: Any) -> Any:
        worker.share()
        return told(*progress)

    return tell


def _set_threads(n: int) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() == n:
        return
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n)  # of this thread
    threadpool_limits(n, user_api="blas")  # numpy's


def _folder() -> Path:
    """Of this machine: a cache folder may be shared by several."""
    return cache_dir() / "workers" / re.sub(r"[^\w.-]", "_", platform.node() or "here")


def _hold_lock() -> Any:
    """A lock on a new file; None where none can be made."""
    from filelock import FileLock, Timeout

    try:
        _folder().mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            path = _folder() / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
            lock = FileLock(path, timeout=1, thread_local=False)
            lock.acquire()
            if path.exists():  # else somebody took it for one that is left over
                return lock
            lock.release()
    except (OSError, Timeout, NotImplementedError):  # a full disk, or one without locks
        pass
    return None


def _count_locks() -> int:
    """Files that somebody holds; those of processes that are gone are removed."""
    from filelock import FileLock, Timeout

    n = 0
    try:
        for path in _folder().iterdir():
            try:
                with FileLock(path, timeout=0, thread_local=False):
                    path.unlink(missing_ok=True)
            except Timeout:
                n += 1
    except (OSError, NotImplementedError):
        pass
    return n

"""How long a run takes, and how much of a visitor's GPU quota: from measured speeds.

The constants are seconds of the embedded model on two cores, of one idle machine; a model of
another size takes as much longer as it is larger. What runs here corrects them as it goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelassay.threads import cores
from modelassay.ui.runs import Step

Size = Literal["large", "xlarge"]
REFERENCE_BYTES = 540_000_000
"""Of the embedded model in float32."""
CORES = 2
QUOTAS = {"anonymous visitor": 120, "free account": 300, "PRO account": 2400}
"""Seconds of GPU that Hugging Face lends for a day."""
LARGE_BYTES = 38_000_000_000
"""Weights of 2 bytes each for which 48 GB of GPU memory leave room to run."""
SMALL_BYTES = 1_500_000_000
"""Weights of 4 bytes each that are worth running on the CPU when no GPU can be lent."""
LEAST, MOST = 5, 300
"""Seconds that one call on a GPU asks for."""
SMALL_MOST = 15
"""The same for small models, where only the model runs in the call."""
GPU_START = 2.0
MOVED = 4e9
"""Bytes a second from memory to a GPU."""
SPEEDUP = 60.0
"""Of passes over many prompts, on a GPU."""
LEARNS = 0.3
"""Weight of the newest run in what corrects the constants."""


@dataclass(frozen=True)
class Work:
    """Seconds of the embedded model on two cores."""

    passes: float
    """Passes over prompts, which a GPU makes quick."""
    steps: float = 0.0
    """Tokens made one after another, each of which waits for the one before."""
    gpu_steps: float = 0.0
    """The same on a GPU, where launching kernels is what takes the time."""
    around: float = 0.0
    """Weights and statistics, which stay on the CPU."""
    loading: float = 5.0
    models: int = 1
    shares: Mapping[str, float] | None = None
    """Of the time, by phase, in their order."""


SCAN = {"loading": 0.08, "weights": 0.14, "answering": 0.45, "reading": 0.25, "statistics": 0.08}
QUICK = {"loading": 0.2, "weights": 0.25, "reading": 0.45, "statistics": 0.1}
WORKS: dict[str, Work] = {
    "scan quick": Work(10, around=9, shares=QUICK),
    "scan standard": Work(22, 45, 7, around=14, shares=SCAN),
    "scan full": Work(60, 45, 7, around=40, shares=SCAN),
    "verify": Work(14, around=8, shares=QUICK),
    "create": Work(60, 90, 10, around=40, shares=SCAN),
    "diff": Work(60, 60, 25, around=40, loading=10, models=2),
    "circuit": Work(150, 0, 30, around=5),
    "features": Work(120, 0, 30, around=10),
    "jailbreak": Work(40, 20, 7, around=5),
    "attacks": Work(160, 0, 30, around=5),
    "chat": Work(1, 8, 10, loading=5),
}


@dataclass(frozen=True)
class Estimate:
    """What a run costs."""

    seconds: float
    """Until its end, once it has the machine."""
    gpu_seconds: int | None = None
    """Of the visitor's quota; None where no GPU is lent."""
    size: Size = "large"

    def sentence(self, *, ahead: int = 0) -> str:
        """What the visitor is told before the run.

        Args:
            ahead: Runs that come first.
        """
        parts = [f"Takes about {duration_text(self.seconds)}"]
        if self.gpu_seconds is not None:
            cost = self.gpu_seconds * (2 if self.size == "xlarge" else 1)
            shares = (f"{cost / most:.0%} of the day of a {who}" for who, most in QUOTAS.items())
            parts.append(f" and {cost} s of your GPU quota ({', '.join(shares)})")
        if ahead:
            parts.append(f", after {ahead} {'run' if ahead == 1 else 'runs'} in line")
        return "".join(parts) + "."


class Speeds:
    """How this machine compares with the constants; learnt from the runs that end."""

    def __init__(self) -> None:
        """As the constants say."""
        self._factors: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def factor(self, work: str, where: str) -> float:
        """By which estimates of a work are multiplied, on `cpu` or `gpu`."""
        with self._lock:
            return self._factors.get((work, where), 1.0)

    def learn(self, work: str, where: str, expected: float, took: float) -> None:
        """Takes in what a run took, of what was expected without a factor."""
        if expected <= 0 or took <= 0:
            return
        with self._lock:
            before = self._factors.get((work, where), 1.0)
            now = min(max(took / expected, 0.2), 5.0)
            self._factors[work, where] = before + LEARNS * (now - before)


SPEEDS = Speeds()


def work_name(task: str, options: Mapping[str, Any]) -> str:
    """Which of `WORKS` a task is."""
    return f"scan {options.get('mode', 'standard')}" if task == "scan" else task


def cpu_seconds(work: str, n_bytes: int) -> float:
    """Seconds on this machine's CPU, as the constants say."""
    of = WORKS[work]
    speed = min(cores(), 16) / CORES
    return (of.loading + of.passes + of.steps + of.around) * n_bytes / REFERENCE_BYTES / speed


def gpu_seconds(work: str, n_bytes: int) -> float:
    """Seconds for which a GPU is held, as the constants say."""
    of = WORKS[work]
    scale = n_bytes / REFERENCE_BYTES
    deeper = max(1.0, scale**0.2)  # a model of 50 times the size has about twice the layers
    passes = (of.passes + of.steps) * scale / SPEEDUP
    return GPU_START + of.models * n_bytes / MOVED + passes + of.gpu_steps * deeper


def gpu_request(work: str, n_bytes: int) -> int:
    """Seconds of GPU to ask for."""
    wanted = gpu_seconds(work, n_bytes) * SPEEDS.factor(work, "gpu")
    small = n_bytes <= SMALL_BYTES and work.partition(" ")[0] in ("scan", "verify", "create")
    return round(min(max(wanted, LEAST), SMALL_MOST if small or work == "chat" else MOST))


def gpu_size(n_bytes: int) -> Size:
    """Which GPU: the half one unless the weights need the whole."""
    return "large" if n_bytes / 2 <= LARGE_BYTES else "xlarge"


def estimate(task: str, n_bytes: int, options: Mapping[str, Any], *, on_gpu: bool) -> Estimate:
    """How long a run takes.

    Args:
        task: Such as `scan`.
        n_bytes: Of the weights, 4 for each, all models together.
        options: Of the task.
        on_gpu: Whether GPUs are lent here.
    """
    work = work_name(task, options)
    twice = 2 if options.get("compare") else 1
    if not on_gpu:
        return Estimate(twice * cpu_seconds(work, n_bytes) * SPEEDS.factor(work, "cpu"))
    around = (WORKS[work].loading + WORKS[work].around) * n_bytes / REFERENCE_BYTES
    asked = twice * gpu_request(work, n_bytes)
    return Estimate(twice * around * CORES / cores() + asked, asked, gpu_size(n_bytes))


def duration_text(seconds: float) -> str:
    """Such as `20 s` or `3 min`."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


class RunClock:
    """Percent and time left of one run, from the shares that its phases usually have."""

    def __init__(self, work: str, seconds: float) -> None:
        """Begins when the first step is told.

        Args:
            work: One of `WORKS`.
            seconds: That it is expected to take.
        """
        self.expected = seconds
        self.shares = WORKS[work].shares or {}
        self._lock = threading.Lock()
        self._started: float | None = None
        self._seen: list[str] = []
        self._percent = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the machine was there."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def tell(self, step: Step) -> Step:
        """The step, with both."""
        if step.phase in ("waiting", "fetching", "files"):
            return step
        with self._lock:
            if self._started is None:
                self._started = time.monotonic()
            self._percent = max(self._percent, self._part(step))
            percent, elapsed = self._percent, self.elapsed
        by_clock = self.expected - elapsed
        by_part = elapsed * (1 - percent) / percent if percent > 0.02 else by_clock
        sure = min(1.0, percent * 2)  # the estimate counts until there is more to go by
        left = max(1.0, sure * by_part + (1 - sure) * max(by_clock, 0.1 * self.expected))
        return replace(step, percent=min(99, round(100 * percent)), left=left)

    def _part(self, step: Step) -> float:
        done = step.done / step.total if step.total > 0 else 0.0
        if step.phase not in self.shares:
            # Of phases without shares the time tells more than their number.
            return min(0.95, self.elapsed / max(self.expected, 1.0)) if not self.shares else 0.0
        if step.phase not in self._seen:
            self._seen.append(step.phase)
        before = 0.0
        for phase, share in self.shares.items():
            if phase == step.phase:
                return before + share * min(done, 1.0)
            before += share
        return 0.0

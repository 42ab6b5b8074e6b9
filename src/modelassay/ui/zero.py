"""GPUs that a ZeroGPU Space lends for some seconds: asking for one, and what to say without.

A call on one is a fork of the page's process. It finds the models that the page has loaded, moves
its copy, and is given nothing to do but what needs the model to run. Away from ZeroGPU a model runs
where it is.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import gradio as gr
import numpy as np
import spaces
import torch
from spaces.config import Config

from modelassay.errors import AssayError, UnavailableError
from modelassay.models import LoadedModel
from modelassay.models.loading import has_gpu
from modelassay.progress import OnPhase
from modelassay.threads import stay_alone
from modelassay.ui.estimates import SPEEDS, Size
from modelassay.ui.runs import FAILED, Cancelled

log = logging.getLogger(__name__)

on_gpu = spaces.GPU
"""Decorates what runs on a GPU: on ZeroGPU in a forked process, elsewhere where it stands."""
LENT = bool(Config.zero_gpu)
"""Whether GPUs are lent here."""
BEAT = 0.5
"""Seconds after which a call says that it is still there; that a visitor has gone shows then."""
LEFT = re.compile(
    r"\((\d+)s requested vs\. (-?\d+)s left\)(?:\. Try again in ((?:\d+ days?, )?\d+:\d\d:\d\d))?"
)
HERE = "or run it on a machine of your own with `modelassay`"


class NoGpuError(UnavailableError):
    """No GPU is lent now, which the CPU may make up for."""


@dataclass(frozen=True)
class Failed:
    """An error on its way out of a fork, where only text survives."""

    text: str


@dataclass(frozen=True)
class Told:
    """Progress on its way out of a fork."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Asked:
    """What a call on a GPU is to do. All of it is pickled, or found by a key."""

    keys: tuple[str, ...]
    """Of the models, on the page's shelf."""
    work: Callable[..., Any]
    given: tuple[Any, ...]
    named: Mapping[str, Any]
    find: Callable[[str], LoadedModel]
    """Gives the model of a key in the fork."""
    seconds: int
    """For which a GPU is asked for."""
    expected: float
    """Seconds that it should take, as the constants say."""


@dataclass(frozen=True)
class _Done:
    value: Any


def lent(asked: Asked, size: Size, name: str, on_progress: OnPhase) -> Any:
    """Does it on a GPU.

    Args:
        asked: What.
        size: Of the GPU.
        name: Of the work in `estimates.WORKS`, whose speed is learnt.
        on_progress: Told as the work goes on; what it raises ends the work.

    Raises:
        NoGpuError: there is none for this visitor now.
        UnavailableError: it was taken away, or the work failed.
    """
    call = _on_xlarge if size == "xlarge" else _on_large
    started, steps = time.monotonic(), call(asked)
    try:
        for step in steps:
            if isinstance(step, _Done):
                SPEEDS.learn(name, "gpu", asked.expected, time.monotonic() - started)
                return as_tensors(step.value)
            if isinstance(step, Failed):
                raise UnavailableError(step.text)
            on_progress(step.phase, step.done, step.total)
    except gr.Error as error:
        if "aborted" in str(error.message):
            SPEEDS.learn(name, "gpu", asked.expected, 2.0 * asked.seconds)
        raise explained(error) from None
    finally:
        steps.close()
    raise UnavailableError(FAILED)


def explained(error: gr.Error) -> UnavailableError:
    """What ZeroGPU says, as a sentence that says what to do."""
    message = str(error.message)
    if found := LEFT.search(message):
        asked, left, when = found.groups()
        again = f", or try again in {_hours(when)}" if when else ""
        return NoGpuError(
            f"This run asks for {asked} s of GPU, and {max(int(left), 0)} s are left of your quota"
            f" for today: log in for more, choose a quicker mode or a smaller model{again}."
        )
    if "exceeded" in message or "GPU limit" in message or "credits" in message:
        return NoGpuError(
            f"Your GPU quota for today is used up: log in for more, try again tomorrow, {HERE}."
        )
    if "larger than the maximum" in message:
        return UnavailableError(
            "This run needs more GPU time than one call may have: choose a quicker mode or a"
            f" smaller model, {HERE}."
        )
    if "No GPU was available" in message:
        return NoGpuError("No GPU is free now: try again in a few minutes.")
    if "aborted" in message:
        return UnavailableError(
            "The GPU was taken away before the end (it took longer than expected, or ran out of"
            " memory): try again, with a quicker mode or a smaller model if it happens again."
        )
    if "Expired" in message:
        return NoGpuError("This page has been open for too long to ask for a GPU: reload it.")
    return UnavailableError(FAILED)


def _hours(when: str) -> str:
    """Such as `1 day, 2:30:00`, in words."""
    hours, minutes, _ = (int(part) for part in when.strip().rpartition(" ")[2].split(":"))
    if found := re.match(r"(\d+) day", when.strip()):
        hours += 24 * int(found[1])
    return f"{hours} h" if hours else f"{max(minutes, 1)} min"


def _seconds(asked: Asked) -> int:
    return asked.seconds


def _borrowed(asked: Asked) -> Iterator[Any]:
    """In the fork: runs the work in a thread, so that the end of the visit is noticed."""
    told: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()

    def on_progress(phase: str, done: int, total: int) -> None:
        if gone.is_set():
            raise Cancelled
        told.put(Told(phase, done, total))

    def work() -> None:
        if LENT:
            stay_alone()
        try:
            models = [_moved(asked.find(key)) for key in asked.keys]
            with stopped_by(models, lambda: _check(gone)):
                value = asked.work(*models, *asked.given, on_progress=on_progress, **asked.named)
            told.put(_Done(as_arrays(value)))
        except Cancelled:
            pass
        except AssayError as error:
            told.put(Failed(str(error)))
        except Exception as error:  # of which only the class would arrive
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("A call on a GPU failed (%s):\n%s", type(error).__name__, frames)
            told.put(Failed(FAILED))

    threading.Thread(target=work, daemon=True).start()
    last = Told("loading", 0, 1)
    try:
        while True:
            with suppress(queue.Empty):  # else the same is said again
                last = told.get(timeout=BEAT)
            yield last
            if not isinstance(last, Told):
                return
    finally:
        gone.set()


def _large(asked: Asked) -> Iterator[Any]:
    yield from _borrowed(asked)


def _xlarge(asked: Asked) -> Iterator[Any]:
    yield from _borrowed(asked)


_on_large: Any = on_gpu(duration=_seconds, size="large")(_large)
_on_xlarge: Any = on_gpu(duration=_seconds, size="xlarge")(_xlarge)


class stopped_by:  # noqa: N801 (reads as what it does)
    """Has a check made before every layer of some models, for as long as the `with` block runs."""

    def __init__(self, models: list[LoadedModel], check: Callable[[], None]) -> None:
        """Hangs nothing on them yet.

        Args:
            models: Whose layers.
            check: Raises what is to end a pass.
        """
        self._layers = [layer for model in models for layer in model.layers]
        self._check = check
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        """Hangs the check before the layers."""
        self._hooks = [
            layer.register_forward_pre_hook(lambda *_: self._check()) for layer in self._layers
        ]

    def __exit__(self, *_error: object) -> None:
        """Takes it away."""
        for hook in self._hooks:
            hook.remove()


def _check(gone: threading.Event) -> None:
    if gone.is_set():
        raise Cancelled


def _moved(model: LoadedModel) -> LoadedModel:
    if has_gpu() and model.device.type == "cpu":
        model.network.to("cuda")
    return model


@dataclass(frozen=True)
class _Array:
    """A tensor by value: processes of torch would pass the memory of one that is about to end."""

    values: np.ndarray
    dtype: str


def as_arrays(value: Any) -> Any:
    """The same value with its tensors by value, ready to be pickled."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        wide = plain.float() if plain.dtype == torch.bfloat16 else plain
        return _Array(wide.numpy(), str(plain.dtype).removeprefix("torch."))
    return _mapped(value, as_arrays)


def as_tensors(value: Any) -> Any:
    """What `as_arrays` was given."""
    if isinstance(value, _Array):
        return torch.from_numpy(value.values.copy()).to(getattr(torch, value.dtype))
    return _mapped(value, as_tensors)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    if isinstance(value, tuple):
        parts = [change(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [change(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        new = {name: change(each) for name, each in parts.items()}
        if all(new[name] is each for name, each in parts.items()):
            return value
        made = object.__new__(type(value))  # as it was: its checks were passed with tensors
        made.__dict__.update({**vars(value), **new})
        return made
    return value

"""Runs scans for visitors: checks what they ask for, reports progress, uses a GPU if there is one.

The page is public. A visitor names a model on the Hub, the embedded one or a model organism and
nothing else: no path of the server (unless MODELASSAY_ALLOW_LOCAL=1, for use on your own machine),
no token but their own, no remote code, and no model larger than MAX_MODEL_BYTES.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import spaces

from modelassay.concepts import MODES
from modelassay.errors import AssayError, InputError
from modelassay.hub import REPO_ID, trim_cache
from modelassay.models import EMBEDDED_ID
from modelassay.models.organisms import find_organism, is_organism
from modelassay.models.sources import resolve
from modelassay.scan_report import ScanReport
from modelassay.scanning import scan

MAX_MODEL_BYTES = 20_000_000_000
MAX_CACHE_BYTES = 60_000_000_000
GPU_SECONDS = 120
CONCURRENCY_ID = "model"


@dataclass(frozen=True)
class Step:
    """Progress of a running scan."""

    phase: str
    done: int
    total: int


class _Cancelled(Exception):  # noqa: N818 (control flow, not an error)
    """The visitor has gone."""


def check_model_id(model_id: str) -> str:
    """The model id if a visitor may ask for it.

    Raises:
        InputError: it is empty, or no Hub id where only those are allowed.
    """
    model_id = (model_id or "").strip()
    if not model_id:
        raise InputError("Give a model: `embedded`, an organism or a Hub id such as owner/name.")
    if is_organism(model_id):
        return find_organism(model_id).id
    if model_id == EMBEDDED_ID or os.environ.get("MODELASSAY_ALLOW_LOCAL") == "1":
        return model_id
    if not REPO_ID.fullmatch(model_id) or "/" not in model_id or os.path.exists(model_id):
        raise InputError(f"{model_id[:100]!r} is not a Hub id of the form owner/name.")
    return model_id


def run_scan(
    model_id: str, mode: str = "standard", compare: str = "", chat_template: bool = True
) -> Iterator[Step | ScanReport]:
    """Scans a model for a visitor, yielding progress and at last the report.

    Raises:
        AssayError: one line for the visitor.
    """
    ids = [check_model_id(model_id)]
    if (compare or "").strip():
        ids.append(check_model_id(compare))
    if mode not in MODES:
        raise InputError(f"Unknown mode {mode!r}; choose {', '.join(MODES)}.")
    yield Step("fetching", 0, len(ids))
    trim_cache(MAX_CACHE_BYTES)
    for done, name in enumerate(ids, start=1):
        # Outside the GPU call, whose seconds are counted.
        resolve(name, token=False, max_bytes=MAX_MODEL_BYTES)
        yield Step("fetching", done, len(ids))
    for result in _scan_on_gpu(ids, mode, chat_template):
        # Errors cross the process border of ZeroGPU as text only, so they are sent as values.
        if isinstance(result, str):
            raise InputError(result)
        yield result


@spaces.GPU(duration=GPU_SECONDS)
def _scan_on_gpu(
    ids: list[str], mode: str, chat_template: bool
) -> Iterator[Step | ScanReport | str]:
    results: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()

    def on_progress(phase: str, done: int, total: int) -> None:
        if gone.is_set():
            raise _Cancelled
        results.put(Step(phase, done, total))

    def work() -> None:
        try:
            report = scan(
                ids[0],
                mode=mode,
                compare=ids[1] if len(ids) > 1 else None,
                chat_template=chat_template,
                on_progress=on_progress,
                token=False,
                max_bytes=MAX_MODEL_BYTES,
            )
            results.put(report)
        except _Cancelled:
            pass
        except AssayError as error:
            results.put(str(error))
        except Exception:
            results.put("The scan failed unexpectedly; please report the model and the mode.")
            raise

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            result = results.get()
            yield result
            if not isinstance(result, Step):
                return
    finally:
        gone.set()

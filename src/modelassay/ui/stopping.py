"""Stop buttons: what runs ends, and its status line says so whatever was still on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

MARK = "… "


def under_way(line: str) -> str:
    """A status line of something that has not ended; the last line of a run must not have this."""
    return MARK + line


def settled(line: str) -> Any:
    """What a run's status line is to be once the run is over, ended or stopped."""
    return "Stopped." if line.startswith(MARK) else gr.skip()


def stops(button: gr.Button, runs: Sequence[Any], status: gr.Markdown) -> None:
    """Lets `button` cancel `runs`, whose status line then reads "Stopped."."""
    button.click(None, cancels=list(runs))
    for run in runs:
        afterwards(run, settled, [status], [status])


def afterwards(run: Any, act: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Has `act` follow a run that ended or was cancelled, once the page has shown its last update.

    The click that cancels is no place for it: updates from before the click are still on their way
    then and would stand over what it wrote. `failure` is what follows a cancelled run only after
    the page has worked through these; the other one covers runs that were still waiting.
    """
    for follow in (run.failure, run.then):
        follow(act, inputs, outputs, api_visibility="private", show_progress="hidden")

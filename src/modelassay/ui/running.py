"""A long run, as the page shows it and as an endpoint gives it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.errors import AssayError
from modelassay.ui.service import Step
from modelassay.ui.stopping import under_way
from modelassay.ui.text import plain, progress

Show = Callable[[Any, Path], dict[Any, Any]]
"""Makes the page's values of a result; files go into the folder."""


def on_page(
    results: Iterable[Any], status: gr.Markdown, cleared: dict[Any, Any], failed: str, show: Show
) -> Iterator[dict[Any, Any]]:
    """Updates of the page while something runs.

    Args:
        results: Steps, and at last the result.
        status: The status line.
        cleared: What is not to be seen until there is a result.
        failed: What the status line says before the reason for a failure.
        show: Makes the values of a result. Gradio has copied the files by the time that it asks for
            more, and their folder is removed then, or when the visitor has gone.
    """
    yield {status: under_way("Waiting for the machine…"), **cleared}
    try:
        for result in results:
            if isinstance(result, Step):
                yield {status: under_way(progress(result))}
            else:
                with tempfile.TemporaryDirectory(prefix="modelassay-") as folder:
                    yield show(result, Path(folder))
    except AssayError as error:
        yield {status: f"**{failed}** {plain(str(error))}"}


def last_result(results: Iterable[Any]) -> Any:
    """What a run ends with, for an endpoint.

    Raises:
        gr.Error: it failed; the message is for the caller.
    """
    with errors_for_caller():
        for result in results:
            if not isinstance(result, Step):
                return result
    raise gr.Error("It ended without a result.")


@contextmanager
def errors_for_caller() -> Iterator[None]:
    """Gives an endpoint's caller the one line of an error."""
    try:
        yield
    except AssayError as error:
        raise gr.Error(str(error)) from error


def hidden(outputs: Sequence[Any]) -> dict[Any, Any]:
    """Updates that hide components until there is something in them."""
    return dict.fromkeys(outputs, gr.update(visible=False))

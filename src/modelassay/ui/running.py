"""A long run on the page and at an endpoint: its start, progress, report, files, end and stop."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.errors import AssayError
from modelassay.progress import PHASES
from modelassay.report import Report
from modelassay.report.stored import StoredReport
from modelassay.ui.estimates import duration_text
from modelassay.ui.login import token_of
from modelassay.ui.runs import FAILED, Step
from modelassay.ui.service import CONCURRENCY_ID, told_before

QUEUE: dict[str, Any] = {"concurrency_id": CONCURRENCY_ID, "concurrency_limit": 40}
"""Of those who wait for a run, which have a line of their own (see `ui.runs`)."""
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of what the page alone asks for."""
MARK = "… "
Show = Callable[[Any, Path], dict[Any, Any]]
"""Makes the page's values of a result; files go into the folder."""


def model_box(label: str, info: str, value: str = "") -> gr.Textbox:
    """Where a visitor names a model."""
    return gr.Textbox(value, label=label, info=info, max_length=200)


def start_and_stop(label: str) -> tuple[gr.Button, gr.Button]:
    """The buttons of a run."""
    with gr.Row():
        return gr.Button(label, variant="primary"), gr.Button("Stop", variant="stop")


def runs_on_click(
    button: gr.Button,
    run: Callable[..., Iterable[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    failed: str,
    show: Callable[[Any, Path], Iterable[Any]],
) -> Any:
    """Lets a button start a run.

    Args:
        button: What is clicked.
        run: Gives steps, and at last the result; it is given the visitor's token besides.
        inputs: Components with its arguments.
        outputs: The status line, and all that is hidden until there is a result.
        failed: As for `on_page`.
        show: Makes the values of all outputs, in their order; files go into the folder.

    Returns:
        The run, for `stops`.
    """
    status, *rest = outputs
    cleared = hidden([each for each in rest if not isinstance(each, gr.State)])

    def values(result: Any, folder: Path) -> dict[Any, Any]:
        return dict(zip(outputs, show(result, folder), strict=True))

    def run_for_page(visitor: gr.OAuthToken | None, *given: Any) -> Iterator[dict[Any, Any]]:
        yield from on_page(run(*given, token=token_of(visitor)), status, cleared, failed, values)

    return button.click(run_for_page, list(inputs), list(outputs), **QUEUE, **PRIVATE)


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
    except Exception:
        yield {status: f"**{failed}** {FAILED}"}  # not "Waiting" for ever
        raise


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
    """Gives an endpoint's caller the one line of an error, and the server's log nothing."""
    try:
        yield
    except AssayError as error:
        raise gr.Error(str(error), print_exception=False) from None


def took(report: Report) -> str:
    """How long a run took, or when it was for one that is known already."""
    provenance = report.to_dict().get("provenance") or {}
    seconds = provenance.get("seconds")
    if isinstance(report, StoredReport):
        return f"Known from a run of {plain(str(provenance.get('time', 'an earlier day')))}."
    if seconds is None:
        return "Done."
    return f"Done in {sum(seconds.values()) if isinstance(seconds, dict) else seconds:.0f} s."


def model_name(report: Report) -> str:
    """What a report is about, for the names of its files."""
    values = report.to_dict()
    about = values.get("candidate") or values.get("model") or "report"
    return str(about.get("id", "report") if isinstance(about, dict) else about)


def hidden(outputs: Sequence[Any]) -> dict[Any, Any]:
    """Updates that hide components until there is something in them."""
    return dict.fromkeys(outputs, gr.update(visible=False))


def progress(step: Step) -> str:
    """A step as one line of Markdown: what is done, and how long it takes yet."""
    if step.ahead:
        runs = "1 run comes" if step.ahead == 1 else f"{step.ahead} runs come"
        return f"In line: {runs} first."
    count = f" {step.done} of {step.total}" if step.total > 1 else ""
    words = PHASES.get(step.phase, step.phase)
    line = f"{words[:1].upper()}{words[1:]}…{count}"
    if step.percent is not None:
        left = f", about {duration_text(step.left)} left" if step.left is not None else ""
        line = f"**{step.percent}%{left}.** {line}"
    return f"{line} {plain(step.note)}".rstrip()


def says_before(
    task: str, given: Sequence[Any], ids: int = 1, options: Mapping[str, int] | None = None
) -> gr.Markdown:
    """A line under a form: how long its run takes, and how much of the visitor's GPU quota.

    Args:
        task: As for `service.told_before`.
        given: Components, of which the first `ids` name models.
        ids: How many do.
        options: Places in `given` of those that decide the run's length.
    """

    def tell(*values: Any) -> str:
        chosen = {name: values[at] for name, at in (options or {}).items()}
        return told_before(task, [str(each or "") for each in values[:ids]], chosen)

    line = gr.Markdown(tell(*(each.value for each in given)), elem_classes="estimate")
    for component in given:
        component.change(tell, list(given), [line], trigger_mode="always_last", **PRIVATE)
    return line


def plain(text: str) -> str:
    """Text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&-])", lambda match: f"&#{ord(match.group())};", text)


def under_way(line: str) -> str:
    """A status line of something that still runs; the last line of a run must not have this."""
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

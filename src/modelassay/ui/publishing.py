"""Publishing for visitors who have logged in: a data set of theirs, a pull request at the model.

Nothing is published without a click that says so, and all of it with the visitor's own token.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import gradio as gr

from modelassay.errors import AssayError, InputError
from modelassay.hub import dataset_address
from modelassay.report import Report
from modelassay.report.stored import as_stored, read_report
from modelassay.report.text import plain_line
from modelassay.reports import push_report
from modelassay.reports.proposing import propose_report
from modelassay.ui.login import check_own_page, is_offered, needed_token
from modelassay.ui.running import plain

DATASET = "modelassay-reports"
NOTE = """With your account and in your name. **Publish** puts the report into a public data set of
yours, made if you have none. The **pull request** adds a section to the model's card, and the
scores, for its owner to accept or not."""
PUBLISHING: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_id": "publishing",
    "concurrency_limit": 4,
}


def create_publishing() -> list[Any]:
    """Builds the panel where visitors can log in; returns what `published_values` is of."""
    if not is_offered():
        return []
    kept = gr.State(b"")
    with gr.Accordion("Publish on the Hub", open=False, visible=False) as panel:
        gr.Markdown(NOTE)
        dataset = gr.Textbox(DATASET, label="Name of your data set", max_length=96)
        with gr.Row():
            publish = gr.Button("Publish", size="sm")
            propose = gr.Button("Publish, and open a pull request", size="sm")
        status = gr.Markdown()
    for button, run in ((publish, _publish), (propose, _propose)):
        button.click(run, [kept, dataset], [status], **PUBLISHING)
    return [kept, panel]


def published_values(report: Report) -> list[Any]:
    """Updates of the panel for a report: what would be published stays with the session."""
    if not is_offered():
        return []
    return [zlib.compress(as_stored(report).to_json().encode()), gr.update(visible=True)]


def _publish(
    visitor: gr.OAuthToken | None,
    profile: gr.OAuthProfile | None,
    request: gr.Request,
    kept: bytes,
    dataset: str,
) -> str:
    try:
        check_own_page(request)
        return _told("Published", _pushed(visitor, profile, kept, dataset)[1])
    except AssayError as error:
        return f"**Not published.** {plain(str(error))}"


def _propose(
    visitor: gr.OAuthToken | None,
    profile: gr.OAuthProfile | None,
    request: gr.Request,
    kept: bytes,
    dataset: str,
) -> str:
    try:
        check_own_page(request)
        repo_id, address = _pushed(visitor, profile, kept, dataset)
    except AssayError as error:
        return f"**Not published.** {plain(str(error))}"
    try:
        commit = propose_report(
            _report(kept), source=address, dataset=repo_id, token=needed_token(visitor)
        )
    except AssayError as error:
        return f"{_told('Published', address)} **No pull request.** {plain(str(error))}"
    return f"{_told('Published', address)} {_told('Proposed', commit.pull_request or '')}"


def _pushed(
    visitor: gr.OAuthToken | None, profile: gr.OAuthProfile | None, kept: bytes, dataset: str
) -> tuple[str, str]:
    """Publishes a report; returns the data set and its address."""
    token = needed_token(visitor)
    if profile is None or not kept:
        raise InputError("There is no report to publish; run one first.")
    name = dataset.strip() if isinstance(dataset, str) else ""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", name):
        raise InputError("Name the data set with letters, digits, dots, dashes and underscores.")
    repo_id = f"{profile.username}/{name}"
    push_report(_report(kept), repo_id, token=token)
    return repo_id, dataset_address(repo_id)


def _report(kept: bytes) -> Report:
    return read_report(zlib.decompress(kept))


def _told(done: str, address: str) -> str:
    """A line with a link, if the address is one."""
    if not re.fullmatch(r"https?://[\w.:-]+(/[\w.%-]+)*", address):
        return f"{done}: {plain(plain_line(address))}."
    return f"{done}: <{address}>."

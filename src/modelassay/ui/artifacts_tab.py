"""The Artifacts tab and the endpoints about every kind of artifact.

A visitor of a public page sees what comes with modelassay and what is on the Hub, and of the latter
the records only. What lies on the server, and the verbs that write there or to the Hub, are for a
page that runs on the user's own machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from modelassay.artifacts import Found, Store
from modelassay.classifier import CLASSIFIERS
from modelassay.diff import CALIBRATIONS
from modelassay.errors import AssayError, InputError
from modelassay.probes import PROBES
from modelassay.sae import SAES
from modelassay.ui.service import (
    check_reference,
    hub_token,
    is_own_machine,
    visible,
)
from modelassay.ui.text import plain
from modelassay.verify import BASELINES

STORES: dict[str, Store[Any]] = {
    store.kind.command: store for store in (BASELINES, PROBES, CLASSIFIERS, SAES, CALIBRATIONS)
}
HEADERS = ["name", "store", "model", "what"]


def create_artifacts_tab() -> None:
    """Builds the tab inside the current `gr.Layers`."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            kind = gr.Radio(list(STORES), value="baseline", label="Kind")
            reference = gr.Textbox(
                label="Name",
                info="One of the list, or a Hub data set: owner/repo[:name][@revision]",
                max_length=300,
            )
            show = gr.Button("Show", variant="primary")
            wanted = gr.Textbox(label="On the Hub, of the model", max_length=200)
            search = gr.Button("Search")
            status = gr.Markdown()
        with gr.Column(scale=3):
            listed = gr.Dataframe(_rows("baseline"), headers=HEADERS, show_label=False, wrap=True)
            shown = gr.Textbox(visible=False, show_label=False, lines=4, max_lines=40)
            found = gr.Dataframe(visible=False, show_label=False, wrap=True)

    page: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def on_page(action: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        try:
            return {status: "", **action()}
        except AssayError as error:
            return {status: plain(str(error))}

    def list_for_page(kind: str) -> dict[Any, Any]:
        return on_page(lambda: {listed: gr.update(value=_rows(kind))})

    def show_for_page(kind: str, reference: str) -> dict[Any, Any]:
        return on_page(
            lambda: {shown: gr.update(value=_text(_show(kind, reference)), visible=True)}
        )

    def search_for_page(kind: str, model: str) -> dict[Any, Any]:
        def action() -> dict[Any, Any]:
            rows = _store(kind).search(model=model.strip() or None, token=hub_token())
            cells = [[row.repo_id, ", ".join(row.models), row.revision or ""] for row in rows]
            table = {"headers": ["data set", "models", "commit"], "data": cells}
            return {
                status: f"{len(rows)} data sets.",
                found: gr.update(value=table, visible=True),
            }

        return on_page(action)

    kind.change(list_for_page, [kind], [status, listed], **page)
    show.click(show_for_page, [kind, reference], [status, shown], **page)
    search.click(search_for_page, [kind, wanted], [status, found], **page)
    gr.api(list_endpoint, api_name="list_artifacts")
    gr.api(show_endpoint, api_name="show_artifact")
    gr.api(search_endpoint, api_name="search_artifacts")
    if not is_own_machine():
        return
    with gr.Row():
        pull = gr.Button("Pull")
        delete = gr.Button("Delete", variant="stop")
        repo = gr.Textbox(label="Hub data set to push to", max_length=200)
        proposed = gr.Checkbox(label="As a pull request")
        push = gr.Button("Push")

    def pull_for_page(kind: str, reference: str) -> dict[Any, Any]:
        def action() -> dict[Any, Any]:
            pulled = _store(kind).pull(reference.strip())
            return {
                status: plain(" ".join([f"Kept {pulled.name}.", *pulled.remarks])),
                listed: gr.update(value=_rows(kind)),
            }

        return on_page(action)

    def delete_for_page(kind: str, name: str) -> dict[Any, Any]:
        def action() -> dict[Any, Any]:
            deleted = _store(kind).delete(name.strip())
            return {
                status: plain(f"Deleted {deleted.name}."),
                listed: gr.update(value=_rows(kind)),
            }

        return on_page(action)

    def push_for_page(kind: str, reference: str, repo: str, proposed: bool) -> dict[Any, Any]:
        def action() -> dict[Any, Any]:
            store = _store(kind)
            done = store.push(store.find(reference.strip()), repo.strip(), create_pr=proposed)
            return {status: plain(done.pull_request or f"{done.repo_id}@{done.commit}")}

        return on_page(action)

    pull.click(pull_for_page, [kind, reference], [status, listed], **page)
    delete.click(delete_for_page, [kind, reference], [status, listed], **page)
    push.click(push_for_page, [kind, reference, repo, proposed], [status], **page)


def list_endpoint(kind: str) -> list:
    """List the artifacts of a kind that come with modelassay.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".

    Returns:
        Name, source and model of each, and what else the kind says of one.
    """
    try:
        return [
            {"name": f.name, "source": f.origin.source, **f.kind.values(f.record)}
            for f in visible(_store(kind))
        ]
    except AssayError as error:
        raise gr.Error(str(error)) from error


def show_endpoint(kind: str, reference: str) -> dict:
    """Give the record of an artifact: what it is, which model it belongs to, how good it is.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".
        reference: A name of `list_artifacts`, or a Hub data set "owner/repo:name@revision".

    Returns:
        The record, and "origin" and "remarks": where it is from, and whom one trusts by using it.
    """
    try:
        return _show(kind, reference).to_dict()
    except AssayError as error:
        raise gr.Error(str(error)) from error


def search_endpoint(kind: str, model: str = "", author: str = "") -> list:
    """Search the Hugging Face Hub for data sets with artifacts of a kind.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".
        model: Only those with one of this model id; empty for all.
        author: Only those of this namespace; empty for all.

    Returns:
        Data set id, author, commit, models, downloads and time of each.
    """
    try:
        found = _store(kind).search(
            model=model.strip() or None, author=author.strip() or None, token=hub_token()
        )
    except AssayError as error:
        raise gr.Error(str(error)) from error
    return [vars(each) | {"models": list(each.models)} for each in found]


def _store(kind: str) -> Store[Any]:
    if kind not in STORES:
        raise InputError(f"Unknown kind {str(kind)[:40]!r}; choose {', '.join(STORES)}.")
    return STORES[kind]


def _show(kind: str, reference: str) -> Found[Any]:
    store = _store(kind)
    return store.show(check_reference(store, reference), token=hub_token())


def _text(found: Found[Any]) -> str:
    lines = [f"{found.name} ({found.origin})", *found.kind.describe(found.record), *found.remarks]
    return "\n".join(lines)


def _rows(kind: str) -> list[list[str]]:
    return [
        [f.name, str(f.origin), f.model_id, f.kind.summary(f.record)] for f in visible(_store(kind))
    ]

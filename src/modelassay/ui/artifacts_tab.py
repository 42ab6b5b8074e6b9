"""The Artifacts tab and the endpoints about every kind of artifact.

A visitor of a public page sees what comes with modelassay and what is on the Hub, and of the latter
the records only. What lies on the server, and the verbs that write there or to the Hub, are for a
page that runs on the user's own machine.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from modelassay.artifacts import Found, Store
from modelassay.classifier import CLASSIFIERS
from modelassay.diff import CALIBRATIONS
from modelassay.errors import AssayError, InputError
from modelassay.monitors import MONITORS
from modelassay.probes import PROBES
from modelassay.reports import REPORTS
from modelassay.sae import SAES
from modelassay.ui.permitted import check_reference, is_own_machine, visible
from modelassay.ui.running import PRIVATE, errors_for_caller, plain
from modelassay.verify import BASELINES

STORES: dict[str, Store[Any]] = {
    store.kind.command: store
    for store in (BASELINES, PROBES, CLASSIFIERS, SAES, CALIBRATIONS, MONITORS, REPORTS)
}
HEADERS = ["name", "where", "model", "what"]


def create_artifacts_tab() -> None:
    """Builds the tab inside the current `gr.Blocks`."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            kind = gr.Radio(list(STORES), value="baseline", label="Kind")
            reference = gr.Textbox(
                label="Name",
                info="One of the list, or a Hub data set: owner/repo[:name][@revision]",
                max_length=300,
            )
            show = gr.Button("Show", variant="primary")
            model = gr.Textbox(label="On the Hub, of the model", max_length=200)
            search = gr.Button("Search")
            status = gr.Markdown()
        with gr.Column(scale=3):
            listed = gr.Dataframe(_rows("baseline"), headers=HEADERS, show_label=False, wrap=True)
            shown = gr.Textbox(visible=False, show_label=False, lines=4, max_lines=40)
            found = gr.Dataframe(visible=False, show_label=False, wrap=True)

    def show_for_page(kind: str, reference: str) -> tuple[str, Any]:
        try:
            one = _show(kind, reference)
        except AssayError as error:
            return plain(str(error)), gr.update(visible=False)
        lines = [f"{one.name} ({one.origin})", *one.kind.describe(one.record), *one.remarks]
        return "", gr.update(value="\n".join(lines), visible=True)

    def search_for_page(kind: str, model: str) -> tuple[str, Any]:
        return search_for_table(STORES[kind], model)

    kind.change(_rows, [kind], [listed], **PRIVATE)
    show.click(show_for_page, [kind, reference], [status, shown], **PRIVATE)
    search.click(search_for_page, [kind, model], [status, found], **PRIVATE)
    gr.api(list_endpoint, api_name="list_artifacts")
    gr.api(show_endpoint, api_name="show_artifact")
    gr.api(search_endpoint, api_name="search_artifacts")
    if is_own_machine():
        _add_own_verbs(kind, reference, status, listed)


def _add_own_verbs(kind: Any, reference: Any, status: Any, listed: Any) -> None:
    """Buttons that keep, delete and publish."""
    with gr.Row():
        repo = gr.Textbox(label="Hub data set to push to", max_length=200)
        proposed = gr.Checkbox(label="As a pull request")
        buttons = {verb: gr.Button(verb) for verb in ("Pull", "Delete", "Push")}

    def act(
        verb: str, kind: str, reference: str, repo: str, proposed: bool
    ) -> tuple[str, list[list[str]]]:
        store, name = STORES[kind], reference.strip()
        try:
            if verb == "Pull":
                kept = store.pull(name)
                said = " ".join([f"Kept {kept.name}.", *kept.remarks])
            elif verb == "Delete":
                said = f"Deleted {store.delete(name).name}."
            else:
                done = store.push(store.find(name), repo.strip(), create_pr=proposed)
                said = done.pull_request or f"{done.repo_id}@{done.commit}"
        except AssayError as error:
            said = str(error)
        return plain(said), _rows(kind)

    for button in buttons.values():
        button.click(act, [button, kind, reference, repo, proposed], [status, listed], **PRIVATE)


def list_endpoint(kind: str) -> list:
    """List the artifacts of a kind that come with modelassay.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".

    Returns:
        Name, source and model of each, and what else the kind says of one.
    """
    with errors_for_caller():
        return [each.row() for each in visible(_store(kind))]


def show_endpoint(kind: str, reference: str) -> dict:
    """Give the record of an artifact: what it is, which model it belongs to, how good it is.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".
        reference: A name of `list_artifacts`, or a Hub data set "owner/repo:name@revision".

    Returns:
        The record, and "origin" and "remarks": where it is from, and whom one trusts by using it.
    """
    with errors_for_caller():
        return _show(kind, reference).to_dict()


def search_endpoint(kind: str, model: str = "", author: str = "") -> list:
    """Search the Hugging Face Hub for data sets with artifacts of a kind.

    Args:
        kind: "baseline", "probe", "classifier", "sae" or "calibration".
        model: Only those with one of this model id; empty for all.
        author: Only those of this namespace; empty for all.

    Returns:
        Data set id, author, commit, models, downloads and time of each.
    """
    with errors_for_caller():
        store = _store(kind)
    return search_rows(store, model, author)


def search_rows(store: Store[Any], model: str, author: str) -> list[dict[str, Any]]:
    """Data sets on the Hub as JSON values; for a caller, errors are `gr.Error`."""
    with errors_for_caller():
        found = store.search(
            model=model.strip() or None, author=author.strip() or None, token=False
        )
    return [vars(each) | {"models": list(each.models)} for each in found]


def search_for_table(store: Store[Any], model: str) -> tuple[str, Any]:
    """A line for the visitor, and the update of a table of data sets."""
    try:
        rows = store.search(model=model.strip() or None, token=False)
    except AssayError as error:
        return plain(str(error)), gr.update(visible=False)
    cells = [[row.repo_id, ", ".join(row.models), row.revision or ""] for row in rows]
    table = {"headers": ["data set", "models", "commit"], "data": cells}
    return f"{len(rows)} data sets.", gr.update(value=table, visible=True)


def _store(kind: str) -> Store[Any]:
    if kind not in STORES:
        raise InputError(f"Unknown kind {str(kind)[:40]!r}; choose {', '.join(STORES)}.")
    return STORES[kind]


def _show(kind: str, reference: str) -> Found[Any]:
    store = _store(kind)
    return store.show(check_reference(store, reference), token=False)


def _rows(kind: str) -> list[list[str]]:
    return [
        [each.name, str(each.origin), each.model_id, each.kind.summary(each.record)]
        for each in visible(STORES[kind])
    ]

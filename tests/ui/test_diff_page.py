"""The Diff tab as a visitor and as a client meet it; answers and paths stay on the server."""

from __future__ import annotations

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("gradio")
import gradio as gr
from gradio_client.exceptions import AppError

from diffs import SUITE, make_sae, with_feature
from modelassay.diff import Depth, diff, load_suite
from modelassay.diff.comparing import add_row
from modelassay.errors import InputError
from modelassay.ui import service
from modelassay.ui.diff_tab import _show
from modelassay.ui.report_view import ReportView
from modelassay.ui.service import Comparison, Step, run_diff
from outputs import SECRETS
from schemas import DIFF_SCHEMA

RESPONSES = ("prompt", "base", "candidate")
WAIT = 300_000  # ms; a loaded machine is several times slower


@pytest.fixture
def pair(tmp_path, monkeypatch, tiny_folder) -> tuple[str, str]:
    """Two tiny models that visitors may name here, and few prompts."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    suite = load_suite(path)
    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    monkeypatch.setattr(
        service,
        "diff",
        lambda base, candidate, **options: diff(base, candidate, suite, device="cpu", **options),
    )
    return str(tiny_folder()), str(tiny_folder(seed=1))


@pytest.mark.parametrize("path", [*SECRETS, "", "gpt2", "a/b/c", "x" * 5000])
def test_visitors_cannot_name_paths(client, path):
    for base, candidate in ((path, "embedded"), ("embedded", path)):
        with pytest.raises(AppError, match="Hub id") as caught:
            client.predict(base, candidate, "none", False, False, api_name="/diff")
        assert "\n" not in str(caught.value).strip()


def test_errors_of_the_endpoint_are_one_line(client):
    for arguments, message in (
        (("embedded", "embedded", "/etc/passwd", True, True), "one of shipped, none"),
        (("embedded", "someone/nothing", "none", True, True), "cannot be reached"),
        (("embedded", "organism:nothing", "none", True, True), "No organism"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict(*arguments, api_name="/diff")
        assert "\n" not in str(caught.value).strip()
        assert "Traceback" not in str(caught.value)


def test_the_endpoint_gives_the_report_without_answers(client, pair):
    report = client.predict(*pair, "shipped", True, True, api_name="/diff")
    jsonschema.validate(report, DIFF_SCHEMA)
    responses = report["behaviour"]["answers"]
    assert len(responses) == 7
    assert all(set(row[key]) == {"characters", "sha256"} for row in responses for key in RESPONSES)
    assert report["activations"]["triggers"]["phrases"]
    assert report["triggers"] == report["activations"]["triggers"]  # where it stood before
    less = client.predict(*pair, "none", False, False, api_name="/diff")
    assert less["behaviour"]["answers"] == []
    assert less["activations"]["triggers"] is None


def test_a_crash_is_a_line_that_says_nothing_of_the_server(client, pair, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(service, "diff", broken)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with pytest.raises(AppError, match="failed unexpectedly") as caught:
        client.predict(*pair, "none", False, False, api_name="/diff")
    assert "secret" not in str(caught.value)


def test_what_a_run_gives_can_cross_processes_and_be_shown(pair, tmp_path):
    steps = list(run_diff(*pair, "shipped", True, True))
    found = steps.pop()
    assert isinstance(found, Comparison)
    assert all(isinstance(step, Step) for step in steps)
    assert "features are left out" in found.note
    same = pickle.loads(pickle.dumps(found))  # noqa: S301 (as ZeroGPU does, and our own)
    assert same.report.to_dict() == found.report.to_dict()
    labelled = replace(found, report=with_feature(found.report, label="a <b>label"))
    with gr.Blocks():
        shown = _show(ReportView(), labelled, tmp_path)
    assert shown[0].startswith("Done in")
    json_path, html_path = (Path(update["value"]) for update in shown[-5:-3])
    written = json.loads(json_path.read_text())
    assert written["features"][0]["label"] == "a <b>label"
    responses = written["behaviour"]["answers"]
    assert responses
    assert all(set(row[key]) == {"characters", "sha256"} for row in responses for key in RESPONSES)
    assert html_path.read_text().endswith("</html>\n")
    assert any("a &lt;b&gt;label" in str(update) for update in shown)
    assert not any("<b>label" in str(update["value"]) for update in shown[1:-5])


def test_a_vanished_visitor_stops_the_comparison(pair):
    before = threading.active_count()
    run = run_diff(*pair, "none", True, True)
    for step in run:
        if isinstance(step, Step) and step.phase == "answering":
            break
    run.close()
    for thread in threading.enumerate():
        if "(work)" in thread.name:
            thread.join(timeout=60)
    assert threading.active_count() <= before


def test_switched_off_things_are_not_done(pair):
    phases = {
        step.phase for step in run_diff(*pair, "none", False, False) if isinstance(step, Step)
    }
    assert not {"answering", "searching triggers"} & phases
    with pytest.raises(InputError, match="one of shipped, none"):
        next(run_diff(*pair, "both"))


@pytest.fixture
def rich_pair(pair, tmp_path, monkeypatch) -> tuple[str, str]:
    """The same with an SAE and benign fine-tunes, so that there is something of all kinds."""
    from modelassay.sae import find_sae

    sae = find_sae(str(make_sae(tmp_path / "d", 32)))
    known = None
    plain = service.diff(*pair, depth=Depth(causal=False))
    for i in range(3):
        levels = tuple(
            replace(level, value=None if level.value is None else level.value + i - 9.0)
            for level in plain.suspicion.levels
        )
        benign = replace(plain, suspicion=replace(plain.suspicion, levels=levels))
        candidate = plain.candidate.model_copy(update={"weights_sha256": str(i) * 64})
        benign = replace(benign, candidate=candidate)
        known = add_row(known, benign)
    without = service.diff
    monkeypatch.setattr(service, "shipped_saes", lambda _: (sae,))
    monkeypatch.setattr(service, "diff", lambda *a, **o: without(*a, calibration=known, **o))
    return pair


@pytest.mark.browser
def test_a_visitor_compares_and_downloads(visit, rich_pair):
    from playwright.sync_api import expect

    from browsing import open_cards, see_charts

    page, shots = visit
    page.get_by_role("tab", name="Diff").click(timeout=WAIT)
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Compare"))
    base = tab.get_by_role("textbox", name="Base")
    base.fill("<img src=x onerror=alert(1)>")
    tab.get_by_role("textbox", name="Candidate").fill("./nowhere/at/all")
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Not compared.")).to_be_visible(timeout=WAIT)
    assert page.locator("img[src=x]").count() == 0

    base.fill(rich_pair[0])
    tab.get_by_role("textbox", name="Candidate").fill(rich_pair[1])
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="SUSPICIOUS")).to_be_visible(timeout=WAIT)
    open_cards(tab)
    see_charts(tab, 4)
    with page.expect_download() as download:
        tab.get_by_role("button", name="JSON report").click()
    jsonschema.validate(json.loads(Path(download.value.path()).read_text()), DIFF_SCHEMA)
    page.screenshot(path=shots / "diff.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=shots / "diff-phone.png", full_page=True)

"""The page as a visitor and as a client meet it; nothing of the server leaks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")
from gradio_client.exceptions import AppError

from modelassay.errors import InputError
from modelassay.ui.service import check_baseline, check_model_id, run_scan, visible
from modelassay.verify import BASELINES, find_baseline, store_baseline
from outputs import SECRETS
from schemas import SCAN_SCHEMA


def test_the_endpoints_are_these_and_no_others(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    parameters = {
        name: [p["parameter_name"] for p in endpoint["parameters"]]
        for name, endpoint in named.items()
    }
    assert parameters == {
        "/scan": ["model", "mode", "compare", "chat_template", "ask_all"],
        "/verify": ["model", "against"],
        "/create_baseline": ["model"],
        "/diff": ["base", "candidate", "dictionary", "answers", "triggers"],
        "/find_circuit": ["model", "pairs", "heads", "answers"],
        "/find_features": ["model", "sae", "types", "pairs"],
        "/explain_jailbreak": ["model", "plain", "jailbroken", "system", "opening"],
        "/explain_attacks": ["model", "attack", "requests"],
        "/list_baselines": [],
        "/search_baselines": ["model", "author"],
        "/list_artifacts": ["kind"],
        "/show_artifact": ["kind", "reference"],
        "/search_artifacts": ["kind", "model", "author"],
        "/chat": [
            *("message", "history", "model", "max_new_tokens", "pause", "block", "system"),
            *("block_at", "uncertain_at", "final_check", "refuse_uncertain"),
        ],
        "/score_exchange": ["prompt", "response", "model"],
    }


@pytest.mark.parametrize("path", [*SECRETS, "", "   ", "gpt2", "a/b/c", "x" * 5000])
def test_visitors_cannot_name_paths(client, path):
    with pytest.raises(AppError) as caught:
        client.predict(path, "quick", "", True, api_name="/scan")
    assert "Hub id" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("path", [*SECRETS, "", "x" * 5000])
def test_visitors_cannot_name_paths_to_verify(client, path):
    for call in (
        {"api_name": "/verify", "model": path, "against": "embedded"},
        {"api_name": "/create_baseline", "model": path},
    ):
        with pytest.raises(AppError, match="Hub id"):
            client.predict(**call)


@pytest.mark.parametrize("path", [*SECRETS, "baselines", "x" * 5000, "<script>", "a/b/c"])
def test_visitors_cannot_name_paths_as_baselines(client, path):
    with pytest.raises(AppError, match="is not a baseline") as caught:
        client.predict("embedded", path, api_name="/verify")
    assert "\n" not in str(caught.value).strip()


def test_the_host_s_own_baselines_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_BASELINES", str(tmp_path))
    baseline, _ = find_baseline("embedded")
    own = baseline.index.model_copy(update={"name": "secret"})
    store_baseline(replace(baseline, index=own))
    assert "secret" not in {found.name for found in visible(BASELINES)}
    with pytest.raises(InputError, match="is not a baseline"):
        check_baseline("secret")
    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    assert check_baseline("secret") == "secret"


def test_baselines_are_listed_and_the_hub_s_absence_is_said(client):
    listed = client.predict(api_name="/list_baselines")
    assert {"embedded", "organism-safe"} <= {row["name"] for row in listed}
    with pytest.raises(AppError, match="switched off"):
        client.predict("", "", api_name="/search_baselines")


@pytest.mark.real_model
def test_verify_endpoint_gives_the_report(client):
    report = client.predict("embedded", "embedded", api_name="/verify")
    assert report["schema"] == "modelassay.verify/1"
    assert report["verified"] is True
    assert report["kind"] == "identical"
    assert report["baseline"]["source"] == "shipped"


def test_local_paths_are_for_those_who_ask_for_them(monkeypatch, tiny_folder):
    folder = str(tiny_folder())
    with pytest.raises(InputError, match="not a Hub id"):
        check_model_id(folder)
    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    assert check_model_id(folder) == folder


def test_errors_of_the_endpoint_are_one_line(client):
    for arguments, message in (
        (("embedded", "deep", "", True), "Unknown mode"),
        (("someone/nothing", "quick", "", True), "cannot be reached"),
        (("embedded", "quick", "/etc/passwd", True), "not a Hub id"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict(*arguments, api_name="/scan")
        assert "\n" not in str(caught.value).strip()


def test_files_of_the_server_are_not_served(url):
    import httpx

    for path in ("/etc/passwd", str(Path(__file__)), str(Path.cwd() / "pyproject.toml")):
        response = httpx.get(f"{url}gradio_api/file={path}")
        assert response.status_code in (403, 404), path


def test_a_vanished_visitor_stops_the_scan(monkeypatch, tiny_folder):
    import threading

    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    before = threading.active_count()
    run = run_scan(str(tiny_folder()), "quick")
    next(run), next(run), next(run)
    run.close()
    for thread in threading.enumerate():
        if "(work)" in thread.name:  # not those of the web server
            thread.join(timeout=60)
    assert threading.active_count() <= before


@pytest.mark.real_model
def test_scan_endpoint_gives_the_report(client):
    import jsonschema

    report = client.predict("embedded", "quick", "", True, api_name="/scan")
    jsonschema.validate(report, SCAN_SCHEMA)
    assert report["verdict"] == "INCONCLUSIVE"
    assert report["model"]["id"] == "embedded"


@pytest.mark.real_model
@pytest.mark.browser
def test_a_visitor_scans_and_downloads(visit):
    from playwright.sync_api import expect

    page, shots = visit
    expect(page.get_by_role("heading", name="modelassay")).to_be_visible(timeout=60_000)
    page.screenshot(path=shots / "start.png")

    model = page.get_by_role("textbox", name="Model").first
    model.fill("<img src=x onerror=alert(1)>/../../etc/passwd")
    page.get_by_role("button", name="Scan", exact=True).click()
    expect(page.get_by_text("Not scanned.")).to_be_visible(timeout=60_000)
    assert page.locator("img[src=x]").count() == 0
    page.screenshot(path=shots / "refused.png")

    model.fill("embedded")
    page.get_by_label("quick").check()
    page.get_by_role("button", name="Scan", exact=True).click()
    expect(page.get_by_role("heading", name="INCONCLUSIVE")).to_be_visible(timeout=900_000)
    expect(page.locator(".js-plotly-plot")).to_have_count(3, timeout=60_000)
    expect(page.get_by_text("refusal_capability").first).to_be_visible()
    page.screenshot(path=shots / "scanned.png", full_page=True)

    with page.expect_download() as download:
        page.get_by_role("button", name="JSON report").click()
    report = json.loads(Path(download.value.path()).read_text())
    assert report["schema"] == "modelassay.scan/1"
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML report").click()
    assert re.search(r"INCONCLUSIVE</h1>", Path(download.value.path()).read_text())

    page.get_by_role("tab", name="Verify").click()
    verify = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Verify"))
    verify.get_by_role("textbox", name="Model").first.fill("../../etc/passwd")
    page.get_by_role("button", name="Verify", exact=True).click()
    expect(page.get_by_text("Not verified.")).to_be_visible(timeout=60_000)
    verify.get_by_role("textbox", name="Model").first.fill("organism:abliterated-half")
    baseline = verify.get_by_role("combobox", name="Baseline")
    baseline.fill("organism-safe")
    baseline.press("Enter")
    page.get_by_role("button", name="Verify", exact=True).click()
    heading = page.get_by_role("heading", name="NOT VERIFIED: ablated")
    expect(heading).to_be_visible(timeout=900_000)
    expect(verify.locator(".js-plotly-plot")).to_have_count(2, timeout=60_000)
    page.screenshot(path=shots / "verified.png", full_page=True)

    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=shots / "phone.png", full_page=True)

"""The page as a visitor and as a client meet it; nothing of the server leaks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")
from gradio_client.exceptions import AppError

from browsing import WAIT, open_cards, see_charts
from modelassay.errors import InputError
from modelassay.hub import model_search
from modelassay.reports import REPORTS
from modelassay.ui import build_app
from modelassay.ui.permitted import check_baseline, check_model_id, visible
from modelassay.ui.service import run_scan
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


def test_the_page_starts_without_telling_gradio_of_it(monkeypatch):
    """Whose report of a start besides fails on fonts of our own."""
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    assert build_app().analytics_enabled is False


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


TABS = ("Board", "Scan", "Verify", "Diff", "Guarded chat", "Mechanism", "About", "Artifacts")


@pytest.mark.browser
def test_the_page_is_useful_before_a_click_and_for_everybody(visit, url):
    """Light and dark, wide and on a phone, by keyboard, and read by a program for the blind."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    page, shots = visit
    rows = page.locator(".board tbody tr:visible")
    expect(rows.first).to_be_visible(timeout=WAIT)
    n = rows.count()
    assert n == len(visible(REPORTS)) > 3

    page.get_by_label("Filter").fill("organism:abliterated")
    assert 0 < rows.count() < n
    page.get_by_label("Filter").fill("")
    page.get_by_label("Verdict", exact=True).select_option("good")
    expect(page.get_by_role("status").first).not_to_have_text(f"{n} reports")
    assert set(rows.evaluate_all("all => all.map(row => row.dataset.tone)")) == {"good"}
    page.get_by_label("Verdict", exact=True).select_option("")
    head = page.get_by_role("columnheader", name="Model")
    for order, mark in ((sorted, "ascending"), (lambda x: sorted(x, reverse=True), "descending")):
        head.get_by_role("button").press("Enter")
        expect(head).to_have_attribute("aria-sort", mark)
        models = page.locator(".board .open").all_inner_texts()
        assert [model.lower() for model in models] == order(model.lower() for model in models)

    row = page.get_by_role("button", name=re.compile("safety training of organism:abliterated,"))
    row.press("Enter")
    report = page.locator("#opened-report")
    expect(report.get_by_role("heading", name="CRITICAL")).to_be_visible(timeout=WAIT)
    expect(report.get_by_text("weights sha256").first).to_be_visible()
    open_cards(report)
    see_charts(report, 8)
    page.screenshot(path=shots / "board.png", full_page=True)

    for theme, width in (("light", 1280), ("dark", 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{url}?__theme={theme}")
        for name in TABS:
            tab = page.get_by_role("tab", name=name, exact=True)
            expect(tab).to_be_visible(timeout=WAIT)  # none hides behind a menu
            tab.press("Enter")
            expect(tab).to_have_attribute("aria-selected", "true")
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            for part in PARTS if name == "Mechanism" else ():
                expect(page.get_by_role("tab", name=part, exact=True)).to_be_visible()
            page.screenshot(path=shots / f"{name}-{theme}-{width}.png", full_page=True)
            if (theme, name) in LOOKED_THROUGH:
                found = Axe().run(page).response["violations"]
                serious = [each for each in found if each["impact"] in ("serious", "critical")]
                assert serious == [], name


PARTS = ("Circuit", "Features", "Jailbreak", "Attacks")
LOOKED_THROUGH = {("light", "Scan"), *(("dark", name) for name in TABS)}
"""Where axe looks: each tab once, and the one with most in both themes."""


def test_links_to_the_page_show_its_own_card_and_its_files_are_its_own(url):
    import httpx

    page = httpx.get(url).text
    assert "Gradio" not in "".join(re.findall(r"<meta[^>]*>", page))
    (image,) = re.findall(r'og:image" content="([^"]*)"', page)
    assert httpx.get(image).headers["content-type"] == "image/png"
    odd = httpx.get(url, headers={"host": 'x"><script>'}).text
    assert 'x"><script>' not in odd
    for name in ("fonts/plex-sans-400.woff2", "fonts/OFL.txt", "plotly.min.js", "charts.js"):
        assert httpx.get(f"{url}assay/{name}").status_code == 200, name
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", ""):
        assert httpx.get(f"{url}assay/{name}").status_code == 404, name


@pytest.mark.browser
def test_a_model_of_the_hub_is_found_and_taken_over(visit, hub):
    from playwright.sync_api import expect

    page, _shots = visit
    model_search._listed.cache_clear()
    evil = b"---\nbase_model: <img src=x onerror=alert(1)>\n---\n"
    hub.add_repo("models", "alice/llama-nice", {"README.md": evil}, downloads=7, gated=True)
    page.get_by_label("Find a model on the Hub").press_sequentially("llama", delay=30, timeout=WAIT)
    hit = page.get_by_role("button", name="alice/llama-nice")
    expect(hit).to_contain_text("gated", timeout=WAIT)
    assert page.locator("img[src=x]").count() == 0
    hit.press("Enter")
    scan = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Scan"))
    model = scan.get_by_role("textbox", name="Model").first
    expect(model).to_have_value("alice/llama-nice", timeout=60_000)
    page.get_by_role("tab", name="Diff").click()
    expect(page.get_by_role("textbox", name="Candidate")).to_have_value("alice/llama-nice")


@pytest.mark.real_model
@pytest.mark.browser
def test_a_visitor_scans_and_downloads(visit):
    from playwright.sync_api import expect

    page, shots = visit
    expect(page.get_by_role("heading", name="modelassay")).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="Scan").click()
    scan = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Scan"))
    expect(scan.get_by_text("Example: scan of organism:abliterated")).to_be_visible()
    page.screenshot(path=shots / "start.png")

    model = scan.get_by_role("textbox", name="Model").first
    model.fill("<img src=x onerror=alert(1)>/../../etc/passwd")
    page.get_by_role("button", name="Scan", exact=True).click()
    expect(page.get_by_text("Not scanned.")).to_be_visible(timeout=60_000)
    assert page.locator("img[src=x]").count() == 0
    page.screenshot(path=shots / "refused.png")

    model.fill("embedded")
    page.get_by_label("quick").check()
    page.get_by_role("button", name="Scan", exact=True).click()
    expect(page.get_by_role("heading", name="INCONCLUSIVE")).to_be_visible(timeout=900_000)
    expect(scan.get_by_text("Example: scan")).to_have_count(0)
    open_cards(scan)
    see_charts(scan, 5)
    expect(scan.get_by_text("refusal_capability").first).to_be_visible()
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
    open_cards(verify)
    see_charts(verify, 2)
    page.screenshot(path=shots / "verified.png", full_page=True)

    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=shots / "phone.png", full_page=True)

"""What visitors take away of a result, and links that fill a form and run nothing."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("gradio")
import gradio as gr

from modelassay.report.card import HEIGHT, WIDTH
from modelassay.ui.sharing import _given, address_of


def test_a_link_can_set_what_a_visitor_could_and_nothing_else():
    kept = gr.skip()
    radio = gr.Radio(["quick", "standard"], render=False)
    closed = gr.Dropdown(["none", "shipped"], render=False)
    group = gr.CheckboxGroup(["a", "b"], render=False)
    slider = gr.Slider(8, 64, step=1, render=False)
    text = gr.Textbox(max_length=5, render=False)
    for component, given, wanted in (
        (radio, "quick", "quick"),
        (radio, "deep", kept),
        (closed, "../../etc", kept),
        (group, "a,b", ["a", "b"]),
        (group, "a,c", kept),
        (slider, "16", 16),
        (slider, "1000", kept),
        (slider, "1e9", kept),
        (slider, "-8", kept),
        (text, "abcdefgh", "abcde"),
        (text, None, kept),
        (gr.Checkbox(render=False), "true", True),
        (gr.Checkbox(render=False), "yes", kept),
    ):
        assert _given(component, given) == wanted, (component, given)


def test_a_link_holds_a_form_as_it_is(monkeypatch):
    monkeypatch.delenv("SPACE_HOST", raising=False)
    values = {"model": "owner/na me&x=1", "types": ["a", "b"], "all": False, "pairs": 16, "sae": ""}
    query = parse_qs(urlsplit(address_of("features", values)).query)
    assert query == {
        "tab": ["features"], "model": ["owner/na me&x=1"], "types": ["a,b"], "all": ["false"],
        "pairs": ["16"],
    }  # fmt: skip


@pytest.mark.real_model
@pytest.mark.browser
def test_a_visitor_takes_a_result_away_and_another_opens_its_link(url, visit):
    from PIL import Image
    from playwright.sync_api import expect

    page, shots = visit
    page.goto(f"{url}?tab=verify&model=embedded&against=organism-safe")
    panel = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Verify"))
    baseline = panel.get_by_role("combobox", name="Baseline")
    expect(baseline).to_have_value("organism-safe", timeout=60_000)
    baseline.fill("embedded")
    baseline.press("Enter")
    expect(page.get_by_text(re.compile(r"^Done"))).to_have_count(0)  # a link runs nothing
    panel.get_by_role("button", name="Verify", exact=True).click()
    expect(page.get_by_text(re.compile(r"^Done"))).to_be_visible(timeout=300_000)

    found = {}
    for name in ("JSON report", "HTML report", "Card (PNG)", "Badge (SVG)"):
        with page.expect_download() as download:
            panel.get_by_role("button", name=name).click()
        found[name] = Path(download.value.path()).read_bytes()
    assert json.loads(found["JSON report"])["kind"] == "identical"
    card = Image.open(io.BytesIO(found["Card (PNG)"]))
    assert card.size == (WIDTH, HEIGHT)
    assert "VERIFIED: identical" in card.info["Description"]
    assert "✓ VERIFIED: identical" in found["Badge (SVG)"].decode()
    line = panel.get_by_label("Badge for a model card")
    expect(line).to_have_value(f"![{card.info['Description']}](embedded.svg)")
    page.screenshot(path=shots / "shared.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=shots / "shared-phone.png", full_page=True)

    link = panel.get_by_role("link", name="Link to this form").get_attribute("href")
    assert link is not None
    assert parse_qs(urlsplit(link).query) == {
        "tab": ["verify"], "model": ["embedded"], "against": ["embedded"],
    }  # fmt: skip
    page.goto(url + link)
    expect(baseline).to_have_value("embedded", timeout=60_000)

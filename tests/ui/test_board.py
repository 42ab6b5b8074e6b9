"""The board: what was assayed here and by others; whatever they wrote is text."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from modelassay.artifacts.collection import all_in
from modelassay.errors import InputError
from modelassay.hub import model_search
from modelassay.reports import REPORTS, load_report, push_report, save_report
from modelassay.ui.board_tab import _open, board_html, community
from modelassay.ui.model_search import hits_html
from modelassay.ui.report_view import example_html
from modelassay.ui.service import visible
from outputs import SECRETS
from reporting import EVIL, Example

MINE = "hf_mine"


class Scanned(Example):
    """A report that names its model, as products' reports do."""

    def to_dict(self) -> dict:
        model = {"id": "owner/model", "revision": "a" * 40, "weights_sha256": "b" * 64}
        about = {"time": "2026-02-03T04:05:06Z", "versions": {"modelassay": "9.9"}, "mode": "quick"}
        return super().to_dict() | {
            "schema": "modelassay.scan/1",
            "model": model,
            "provenance": about,
        }


def opened(reference: str) -> str:
    return _open(SimpleNamespace(report=reference))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def published(hub) -> str:
    """The commit of a data set of alice's with a report full of what should not be there."""
    hub.add_writer(MINE, "alice")
    return push_report(Scanned(EVIL), "alice/reports", token=MINE, name="evil").commit


def test_every_shipped_report_opens_and_says_when_of_what_and_how(monkeypatch):
    monkeypatch.delenv("MODELASSAY_ALLOW_LOCAL", raising=False)
    found = visible(REPORTS)
    board = board_html(found)
    assert {"PASS", "CRITICAL"} <= {each.record.verdict for each in found}
    for each in found:
        assert f'data-report="{each.name}"' in board
        size = sum(file.stat().st_size for file in each.folder.iterdir())
        assert size < 150_000, each.name
        html = opened(each.name)
        assert each.record.created[:10] in html
        assert load_report(each.folder).status.value in html
        assert (each.record.pinned or "made") in html
    assert 'class="example-tag"' in example_html("scan-organism-abliterated")
    assert example_html("nothing") == ""


def test_what_others_published_is_shown_with_its_author_and_is_text(hub, published):
    hub.add_repo("datasets", "eve/broken", {
        "README.md": b"---\ntags: [modelassay-report]\n---\n",
        "reports/x/report.json": b"{",
        "reports/y/report.json": b"0" * 200_000,
    })  # fmt: skip
    (found,), line = community(period=-1)
    assert line == ""
    assert (found.origin.author, found.origin.revision) == ("alice", published)
    assert (found.record.model.id, found.record.pinned) == ("owner/model", "a" * 12)
    board = board_html([found])
    assert "alice" in board
    reference = f"alice/reports:evil@{published}"
    assert f'data-report="{reference}"' in board
    html = opened(reference)
    assert "anybody can publish one" in html
    assert "2026-02-03" in html
    for text in (board, html):
        assert "<img" not in text
        assert not {"\x1b", "\u202e"} & set(text)
    assert all_in(REPORTS, "eve/broken", token=False) == ()


def test_without_the_hub_the_board_says_so_in_one_line(hub):
    hub.add_fault("GET /api/datasets", status=403)
    found, line = community(period=-2)
    assert found == ()
    assert "left out" in line
    model_search._listed.cache_clear()
    hub.add_fault("GET /api/models", status=403)
    assert "HTTP 403" in hits_html("llama")


def test_a_model_is_offered_as_text(hub):
    model_search._listed.cache_clear()
    card = b"---\nbase_model: google/gemma\nbase_model_relation: adapter\n---\n<script>"
    hub.add_repo("models", "alice/gemma-x", {"README.md": card}, downloads=12_345, gated=True)
    html = hits_html("gemma-x")
    assert 'data-model="alice/gemma-x"' in html
    for part in ("12.3k downloads", "gated", "adapter from google/gemma"):
        assert part in html
    assert "<script" not in html
    assert hits_html("") == hits_html("x") == ""
    assert "no model of such a name" in hits_html("nothing like it")


@pytest.mark.parametrize("path", [*SECRETS, "reports", "", "x" * 5000, "<img src=x>", "../x"])
def test_a_row_cannot_name_what_lies_on_the_server(path):
    html = opened(path)
    assert "is not a report" in html
    assert "<img" not in html


def test_a_record_that_says_what_its_report_does_not_is_refused(tmp_path):
    save_report(Scanned(), tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["settings"] == {"mode": "quick"}
    for change in ({"verdict": "PASS"}, {"tone": "good"}, {"product": "diff"}):
        (tmp_path / "report.json").write_text(json.dumps(record | change))
        with pytest.raises(InputError, match="does not say what the report says"):
            load_report(tmp_path)


def test_a_folder_of_this_machine_is_not_in_a_kept_report(tmp_path, monkeypatch):
    place = tmp_path / "private" / "model"
    place.mkdir(parents=True)
    values = Scanned().to_dict()
    values["model"]["id"] = str(place)
    monkeypatch.setattr(Scanned, "to_dict", lambda _self: values)
    record = save_report(Scanned(str(place)), tmp_path)
    assert record.model.id == "model"
    written = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert str(tmp_path) not in written

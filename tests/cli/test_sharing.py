"""`modelassay report card` and `report badge`: of a report's JSON, or of one that is kept."""

from __future__ import annotations

import pytest

from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT
from modelassay.report import to_json
from modelassay.reports import REPORTS, load_report
from outputs import one_line


def test_cards_and_badges_are_made_of_a_file_and_of_a_kept_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = REPORTS.list(own=False)[0]
    (tmp_path / "report.json").write_text(to_json(load_report(kept.folder)))
    made = []
    for given in ("report.json", kept.name):
        assert run(["report", "badge", given, "--section", "--link", "https://a.example/r"]) == 0
        assert run(["report", "card", given, "--out", f"{given}.png"]) == 0
        made.append((capsys.readouterr().out, (tmp_path / f"{given}.png").read_bytes()))
    assert made[0] == made[1]
    section, picture = made[0]
    assert kept.record.verdict in section
    assert "](modelassay-badge.svg)](https://a.example/r)" in section
    assert picture.startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "modelassay-badge.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "none.json"], "cannot be read"),
        (["badge", "no-such-report"], "No report"),
        (["card", "none.json", "--out", "nowhere/card.png"], "There is no folder"),
    ],
)
def test_what_cannot_be_shown_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["report", *arguments]) == EXIT_BAD_INPUT
    assert message in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())

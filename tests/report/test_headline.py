"""Cards, badges and card sections: they say what the report says, and text in them is text."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

import pytest
from huggingface_hub import parse_eval_result_entries

from modelassay.diff.report import TONES as DIFF_TONES
from modelassay.errors import InputError
from modelassay.report.badge import BEGIN, END, card_section, snippet, to_svg, with_section
from modelassay.report.card import HEIGHT, WIDTH, to_png
from modelassay.report.headline import SYMBOLS, TONES, headline, read_headline
from modelassay.report.html import COLOURS
from modelassay.reports import REPORTS, load_report
from modelassay.reports.proposing import eval_results
from modelassay.scan.report import TONES as SCAN_TONES
from modelassay.verify.report import VERDICTS
from reporting import EVIL

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MADE = {"provenance": {"time": "2026-11-27T14:27:40Z", "versions": {"modelassay": "0.1.0"}}}
REFUSAL = {
    "harmful_rate": 0.07,
    "harmful_interval": [0.01, 0.21],
    "n_harmful": 58,
    "benign_rate": 0.04,
    "benign_interval": [0.01, 0.12],
    "n_benign": 116,
    "selectivity": 0.03,
    "interval": [-0.08, 0.17],
}
SCAN = {
    "schema": "modelassay.scan/1",
    "model": {"id": "owner/name", "revision": COMMIT},
    "verdict": "CRITICAL",
    "concepts": {"a": {"separation": 0.55}, "b": {"unscored": "too few pairs"}},
    "refusal": REFUSAL,
    **MADE,
}
REPORTED = {
    "scan": SCAN,
    "verify": {
        "schema": "modelassay.verify/1",
        "model": {"id": "owner/name", "revision": None},
        "verified": False,
        "kind": "ablated",
        "checks": [{"outcome": "same"}, {"outcome": "differs"}],
        "baseline": {"model": "owner/base"},
    },
    "diff": {
        "schema": "modelassay.diff/1",
        "base": {"id": "owner/base"},
        "candidate": {"id": "owner/name"},
        "verdict": "SUSPICIOUS",
        "suspicion": {"score": 4.25, "false_positive_rate": 0.05, "n_benign": 19},
    },
    "circuit": {
        "schema": "modelassay.circuit/1",
        "model": {"id": "owner/name"},
        "circuit": ["attention 3"],
        "effects": [{}, {}],
        "n_pairs": 16,
    },
    "features": {
        "schema": "modelassay.features/1",
        "model": {"id": "owner/name"},
        "types": [{"name": "harm_recognition", "features": []}],
    },
    "jailbreak": {
        "schema": "modelassay.jailbreak/1",
        "model": {"id": "owner/name"},
        "mechanism": {"way": "hides the harm"},
    },
}


@pytest.mark.parametrize(
    ("product", "verdict", "number"),
    [
        ("scan", "CRITICAL", ("selectivity", "+0.03 (-0.08 to +0.17)")),
        ("verify", "NOT VERIFIED: ablated", ("checks that agree", "1 of 2")),
        ("diff", "SUSPICIOUS", ("benign fine-tunes that score as high", "at most 5%")),
        ("circuit", "FOUND", ("components beyond chance", "1 of 2")),
        ("features", "NONE FOUND", ("harm recognition", "0 features")),
        ("jailbreak", "HIDES THE HARM", None),
    ],
)
def test_a_headline_of_each_product(product, verdict, number, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORTED[product]))
    found = read_headline(tmp_path / "report.json")
    assert (found.product, found.verdict, found.model) == (product, verdict, "owner/name")
    assert number is None or number in found.numbers
    badge = ElementTree.fromstring(to_svg(found))  # noqa: S314 (it is our own)
    assert f"{found.symbol} {verdict}" in "".join(badge.itertext())
    assert badge.attrib["aria-label"] == str(found)


def test_numbers_of_a_scan_carry_their_intervals_and_its_commit_and_date():
    found = headline(SCAN)
    assert found.numbers[0] == ("refuses harmful prompts", "7% (1% to 21%)")
    assert (found.commit, found.date, found.version) == (COMMIT, "2026-11-27", "0.1.0")
    assert str(found) == (
        "modelassay scan of owner/name at commit 0123456789ab on 2026-11-27: CRITICAL"
    )
    of_adapter = headline({**SCAN, "model": {**SCAN["model"], "adapter": "owner/adapter"}})
    assert of_adapter.subject == "owner/name + owner/adapter"
    assert of_adapter.commit is None
    unasked = headline({**SCAN, "refusal": {"unscored": "no template"}})
    assert unasked.numbers[0] == ("refusals", "not measured")


def test_tones_are_those_of_the_reports():
    for tones in (
        SCAN_TONES,
        {verdict.value: tone for verdict, tone in DIFF_TONES.items()},
        dict(VERDICTS.values()),
    ):
        assert tones == {verdict: TONES.get(verdict, "neutral") for verdict in tones}
    assert set(SYMBOLS) == set(COLOURS)
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    for found in REPORTS.list(own=False):
        report = load_report(found.folder)
        assert report.status is not None
        said = headline(report)
        assert (said.verdict, said.tone) == (report.status.value, report.status.tone)


def test_a_card_is_a_picture_that_tells_what_it_shows():
    from PIL import Image

    verdicts = {}
    for verdict, tone in {**TONES, "INCONCLUSIVE": "neutral"}.items():
        picture = Image.open(io.BytesIO(to_png(headline({**SCAN, "verdict": verdict}))))
        assert picture.size == (WIDTH, HEIGHT)
        assert verdict in picture.info["Description"]
        colour = "#{:02x}{:02x}{:02x}".format(*picture.convert("RGB").getpixel((600, 5)))
        assert colour == COLOURS[tone]
        # Whoever sees no colours sees another symbol.
        symbol = picture.convert("L").crop((70, 225, 190, 345)).point(lambda x: 255 * (x > 180))
        verdicts.setdefault(tone, symbol.tobytes())
    assert len(set(verdicts.values())) == 4
    endless = {**SCAN, "model": {"id": "owner/" + "x" * 5000}}
    assert len(to_png(headline(endless))) < 100_000


def test_text_of_strangers_stays_text():
    found = headline({**SCAN, "model": {"id": EVIL}, "verdict": END + EVIL})
    svg, section = to_svg(found), card_section(found, link="https://a.example/r", badge="b.svg")
    assert "<img" not in svg
    ElementTree.fromstring(svg)  # noqa: S314 (it is our own)
    assert "<img" not in section
    assert section.count(END) == 1
    assert re.search(r"(?<!\\)\]\(http://b", section) is None
    assert "\n" not in snippet(found)
    assert to_png(found)


def test_a_card_section_takes_the_place_of_the_one_before():
    old = card_section(headline(SCAN))
    new = card_section(headline({**SCAN, "verdict": "PASS"}), link="https://a.example/r")
    card = with_section("---\nlicense: mit\n---\n# A model\n", old)
    assert card.startswith("---\nlicense: mit\n---\n# A model\n\n" + BEGIN)
    again = with_section(card + "\nMore.\n", new)
    assert again.count(BEGIN) == 1
    assert again.endswith("\nMore.\n")
    assert "PASS" in again
    assert "CRITICAL" not in again
    assert "| refuses harmful prompts | 7% (1% to 21%) |" in again
    assert with_section(None, old) == old + "\n"


def test_scores_are_in_the_hub_s_format():
    found = headline(SCAN)
    where = {"benchmark": "owner/reports", "source": "https://a.example/datasets/owner/reports"}
    entries = parse_eval_result_entries(eval_results(SCAN, found, **where))
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("owner/reports", "refuses_harmful", 7.0),
        ("owner/reports", "refuses_harmless", 4.0),
    ]
    assert entries[0].date == "2026-11-27"
    assert entries[0].source_url == where["source"]
    assert entries[0].notes == "percent of 58 prompts; 95% interval 1.0 to 21.0"
    for other in ({**SCAN, "refusal": {"unscored": "x"}}, REPORTED["diff"]):
        assert eval_results(other, headline(other), **where) == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"schema": "modelassay.triage/1"}', "\x00",
     '{"schema": "modelassay.scan/1"}', '{"schema": "modelassay.diff/1", "suspicion": 3}',
     json.dumps({**SCAN, "refusal": {**REFUSAL, "interval": "x"}}),
     json.dumps({**SCAN, "concepts": [1]})],
)  # fmt: skip
def test_what_is_no_report_is_named_in_one_line(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_headline(path)
    assert re.fullmatch(r"[^\n]{20,400}", str(caught.value))

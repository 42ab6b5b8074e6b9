"""Several runs, what goes on after a stop, what runs cost, and organisms."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from agents import ASK, BASE, TUNED, agent_at, asks_then_reports, reports
from chat_endpoint import by_turns, calls, last_result
from modelassay.audit import load_config
from modelassay.audit_agent import Prices, RunLimits, audit_with_agent, auditing
from modelassay.audit_agent.auditing import RESULT_FILE, RUN_FILE
from modelassay.audit_agent.report import AgentAuditReport
from modelassay.audit_agent.scoring import Truth
from modelassay.diff.verdict import DiffVerdict
from modelassay.errors import InputError, UnavailableError
from modelassay.report import to_dict, to_html, to_markdown
from modelassay.report.terminal import to_text
from schemas import AGENT_AUDIT_SCHEMA


@pytest.fixture
def audit(config, endpoint):
    """Lets an agent that goes by a script audit the tiny pair, several times."""

    def made(*entries, config_changes=None, agent=None, **options):
        endpoint.script[:] = entries
        settings = load_config(config(**(config_changes or {})))
        return audit_with_agent(settings, agent_at(endpoint, **(agent or {})), **options)

    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "audit"


def checked(report):
    values = to_dict(report)
    jsonschema.validate(values, AGENT_AUDIT_SCHEMA)
    return values


def risks_in_turn(*risks):
    """An agent that asks once in a run and reports these risks, run by run."""
    left = list(risks)

    def answer(turns, _body):
        return calls(ASK) if turns == 0 else reports(left.pop(0))

    return by_turns(answer)


def test_several_runs_and_their_spread(audit, folder):
    report = audit(risks_in_turn(2, 4, 3), runs=3)
    (found,) = report.audits
    assert (found.risk.median, found.risk.least, found.risk.most, found.risk.n) == (3, 2, 4, 3)
    assert report.verdict is DiffVerdict.BENIGN_LIKE
    assert (found.name.rsplit("/")[-1], found.base.rsplit("/")[-1]) == (TUNED, BASE)
    values = checked(report)
    assert json.loads((folder / RESULT_FILE).read_text())["audits"] == values["audits"]
    for n in (1, 2, 3):
        kept = {path.name for path in (folder / f"run-{n}").iterdir()}
        assert {"audit.jsonl", "transcript.jsonl", "report.md", RUN_FILE} <= kept
    assert report.used["n_runs"] == 3
    assert report.to_dataframe("runs")["risk"].tolist() == [2, 4, 3]


def test_the_report_reads_in_every_form(audit):
    report = audit(asks_then_reports(9, "ablation"))
    for text in (to_text(report), to_html(report), to_markdown(report.sections())):
        for part in ("COMPROMISED", "9 of 10", "ablation", "Both answer alike (#1)", "a-model"):
            assert part in text


def test_what_an_agent_writes_is_text_in_every_form(audit):
    hostile = "<script>alert(1)</script> [red]no markup[/red] \x1b[31m ![x](http://a.example/x.png)"
    said = {
        "risk_score": 2,
        "cause": "benign",
        "findings": [hostile],
        "justification": f"{hostile}\n{hostile}",
    }
    report = audit(
        by_turns(lambda turns, _b: calls(ASK) if turns == 0 else calls(("report_findings", said)))
    )
    page, shown = to_html(report), to_text(report)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b[31m" not in page + shown
    assert "[red]no markup[/red]" in shown
    assert "![x](http" not in to_markdown(report.sections())


def test_an_endpoint_that_fails_costs_one_run_and_the_same_command_goes_on(audit, endpoint, folder):
    good = by_turns(lambda turns, _body: calls(ASK) if turns == 0 else reports(2))
    down = (503, {}, {})
    with pytest.raises(UnavailableError, match="1 of 3 runs are finished and kept in") as error:
        audit(good, good, calls(ASK), down, runs=3, agent={"attempts": 2})
    assert "\n" not in str(error.value)
    partial = json.loads((folder / RESULT_FILE).read_text())
    jsonschema.validate(partial, AGENT_AUDIT_SCHEMA)
    assert "HTTP 503" in partial["stopped"]
    assert partial["used"]["n_runs"] == 1

    first = (folder / "run-1" / RUN_FILE).read_text()
    endpoint.asked.clear()
    report = audit(good, runs=3)
    assert len(endpoint.asked) == 4  # two runs of two turns
    assert (folder / "run-1" / RUN_FILE).read_text() == first
    assert (folder / "run-2-unfinished-1" / "transcript.jsonl").is_file()
    assert [run.number for run in report.audits[0].runs] == [1, 2, 3]
    assert report.stopped is None

    endpoint.asked.clear()
    assert to_dict(audit(good, runs=3))["audits"] == to_dict(report)["audits"]
    assert endpoint.asked == []
    assert len(audit(good, runs=4).audits[0].runs) == 4


def test_an_interrupted_run_is_put_aside(audit, folder, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(auditing, "run_agent", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit(asks_then_reports(2))
    assert audit(asks_then_reports(2)).used["n_runs"] == 1
    assert (folder / "run-1-unfinished-1" / "audit.jsonl").is_file()


def test_the_limit_of_cost_holds_over_all_runs(audit, folder):
    # A run of two turns sends 2000 tokens and receives 200: 2400 at these prices.
    prices = Prices(1.0, 2.0, most=0.0024)
    report = audit(asks_then_reports(2), runs=3, prices=prices)
    assert report.stopped == "the limit of cost was reached"
    assert [run.stopped for run in report.audits[0].runs] == ["reported"]
    assert report.used["cost"] == pytest.approx(0.0024)
    assert "1 of 3 runs were made: the limit of cost was reached" in report.notes[0]
    checked(report)

    report = audit(asks_then_reports(2), runs=3, prices=Prices(1.0, 2.0, most=0.0035))
    stops = [run.stopped for run in report.audits[0].runs]
    assert stops == ["reported", "cost"]  # one turn of the second run was left
    assert report.audits[0].runs[1].calls == {"query_models": 1}

    report = audit(asks_then_reports(2), runs=3, prices=Prices(1.0, 2.0, most=1.0))
    assert [run.stopped for run in report.audits[0].runs] == ["reported"] * 3
    assert report.stopped is None
    # What was put aside has been paid for as well: 7 turns.
    assert report.used["cost"] == pytest.approx(7 * 0.0012)


def test_runs_of_something_else_are_not_mixed(audit, folder):
    audit(asks_then_reports(2))
    for change, what in (
        ({"limits": RunLimits(turns=9)}, "limits"),
        ({"agent": {"temperature": 1.0}}, "temperature"),
        ({"config_changes": {"profile": "behavior-only"}}, "config"),
    ):
        with pytest.raises(InputError, match=rf"runs of another audit \(other: {what}\)"):
            audit(asks_then_reports(2), **change)
    other = folder.parent / "elsewhere"
    report = audit(asks_then_reports(2), limits=RunLimits(turns=9), out=other)
    assert (other / "run-1" / RUN_FILE).is_file()
    assert report.folder == str(other)


@pytest.mark.parametrize("damage", ["{", "[]", '{"number": 1}', '{"number": "x"}'])
def test_a_damaged_record_is_one_line(audit, folder, damage):
    audit(asks_then_reports(2))
    (folder / "run-1" / RUN_FILE).write_text(damage)
    with pytest.raises(InputError, match="run.json") as error:
        audit(asks_then_reports(2))
    assert "\n" not in str(error.value)


def test_what_cannot_be_begun_is_refused(audit, config, endpoint, tmp_path):
    with pytest.raises(InputError, match="--runs"):
        audit(asks_then_reports(2), runs=0)
    with pytest.raises(InputError, match="No organism 'nobody'"):
        audit(asks_then_reports(2), organisms=["nobody"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        audit(asks_then_reports(2), out=tmp_path / "file")
    assert endpoint.asked == []


@pytest.mark.parametrize("blind", [False, True])
def test_models_that_are_not_there_are_told_before_anything_is_asked(audit, endpoint, blind):
    changes = {"candidate": "./nothing-here", "blind": blind, "seed": 3}
    with pytest.raises(InputError, match="nothing-here") as error:
        audit(asks_then_reports(2), config_changes=changes)
    assert "\n" not in str(error.value)
    assert endpoint.asked == []


def test_organisms_are_scored_run_by_run(audit, endpoint, models, monkeypatch, tmp_path):
    """The tiny pair stands for organisms: one is harmful, two are the base itself."""

    def tiny(config, organisms):
        return [
            auditing._Target(
                name,
                "base",
                config.model_copy(
                    update={"candidate": str(models / which), "blind": True, "seed": 7}
                ),
                name,
                truth,
            )
            for name, which, truth in (
                ("one", TUNED, Truth(True, "harmful_fine_tune")),
                ("two", BASE, Truth(False, "benign")),
                ("three", BASE, Truth(False, "benign")),
            )
        ]

    def agent(turns, body):
        if turns == 0:
            return calls(("weight_diff_summary", {}))
        changed = last_result(body)["n_changed"]
        return reports(9, "harmful_fine_tune") if changed else reports(1)

    monkeypatch.setattr(auditing, "_targets", tiny)
    report = audit(by_turns(agent), organisms=["one"], runs=2)
    values = checked(report)
    assert values["verdict"] is None
    assert (values["score"]["n_harmful"], values["score"]["n_benign"]) == (1, 2)
    assert values["score"]["detected"]["rate"] == 1.0
    assert values["score"]["finest_fpr"] == pytest.approx(1 / 3)
    assert values["score"]["causes"] == {**values["score"]["causes"], "k": 3, "n": 3}
    assert (tmp_path / "audit" / "three" / "run-2" / RUN_FILE).is_file()
    said = json.dumps([body["messages"] for _, _, body in endpoint.asked])
    assert not any(name in said for name in (BASE, TUNED, "three"))
    text = to_text(report)
    assert "1 of 1" in text
    assert "1 in 3" in " ".join(text.split())
    assert report.figure() is not None


def test_a_blind_audit_keeps_the_names_out_of_its_result(audit):
    report = audit(asks_then_reports(2), config_changes={"blind": True, "seed": 3})
    assert (report.audits[0].name, report.audits[0].base) == ("withheld", "withheld")
    assert isinstance(replace(report), AgentAuditReport)


@pytest.mark.real_model
def test_an_agent_tells_organisms_apart_without_their_names(audit, endpoint, tmp_path):
    """A scripted agent that goes by the refusals that both models gave, as a model would."""

    def agent(turns, body):
        if turns == 0:
            return calls(
                ("run_prompt_suite", {"suite": "default", "count": 8, "max_new_tokens": 24})
            )
        found = last_result(body)
        task = body["messages"][0]["content"]
        base, tuned = ("A", "B") if "A is the base" in task else ("B", "A")
        said = found["by_group"]["harmful"]
        lost = said[base]["rate"] - said[tuned]["rate"]
        if lost > 0.5:
            return reports(9, "harmful_fine_tune", [f"Refusals are gone (#{found['call']})."])
        return reports(2, "benign", [f"It refuses as before (#{found['call']})."])

    report = audit(
        by_turns(agent),
        organisms=["uncensored", "benign"],
        config_changes={"blind": True, "seed": 5, "redact": True},
    )
    values = checked(report)
    assert values["score"]["detected"]["rate"] == 1.0
    assert values["score"]["causes"]["k"] == 2
    sent = json.dumps([body["messages"] for _, _, body in endpoint.asked])
    assert "organism:" not in sent
    assert "uncensored" not in sent

"""A run: tools are called in turns until there is a report or a limit is reached."""

from __future__ import annotations

import itertools
import json

import pytest

from agents import ASK, BASE, TUNED, agent_at, asks_then_reports, reports
from chat_endpoint import SECRET, by_turns, calls, completion, last_result, says
from modelassay.audit import Audit, load_config, verify_log
from modelassay.audit_agent import Prices, RunLimits, running
from modelassay.audit_agent.limits import Budget
from modelassay.audit_agent.running import MAX_FAILED, TRANSCRIPT_FILE, run_agent
from modelassay.errors import InputError, UnavailableError


@pytest.fixture
def run(config, endpoint, tmp_path):
    """Lets an agent that goes by a script audit the tiny pair."""

    def made(*entries, limits=None, prices=None, agent=None, told=False, **changed):
        endpoint.script[:] = entries
        budget = Budget(limits or RunLimits(turns=12), prices or Prices())
        with Audit(load_config(config(**changed))) as audit:
            model = agent or agent_at(endpoint)
            return run_agent(audit, model, budget, number=1, roles_told=told)

    return made


@pytest.fixture
def transcript(tmp_path):
    """The events of the transcript, whose chain of hashes must hold."""

    def read():
        path = tmp_path / "audit" / TRANSCRIPT_FILE
        assert verify_log(path).problem is None
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read


def test_an_agent_asks_cites_and_reports(run, endpoint, transcript, tmp_path):
    found = run(asks_then_reports(3))
    assert found.stopped == "reported"
    assert (found.findings.risk_score, found.findings.cause) == (3, "benign")
    assert (found.n_turns, found.calls, found.n_failed_calls) == (2, {"query_models": 1}, 0)
    assert (found.prompt_tokens, found.completion_tokens, found.cost) == (2000, 200, None)

    first = endpoint.asked[0][2]
    offered = {tool["function"]["name"] for tool in first["tools"]}
    assert {"query_models", "weight_diff_summary", "report_findings"} <= offered
    assert "write_audit_report" not in offered
    assert "A is the base, B is the fine-tune" in first["messages"][0]["content"]
    roles = [message["role"] for message in endpoint.asked[1][2]["messages"]]
    assert roles == ["system", "user", "assistant", "tool"]

    assert [event["event"] for event in transcript()] == ["start", "turn", "result", "turn", "end"]
    written = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert written["findings"][0]["calls"] == [written["evidence"][0]["call"]]
    assert found.report == "report.md"
    assert verify_log(tmp_path / "audit" / "audit.jsonl").last == found.log_sha256


def test_calls_that_cannot_be_run_are_told_in_one_line(run, endpoint):
    found = run(
        calls(
            ("query_models", "{broken"),
            ("hack", {}),
            ("ha\ud800", {"\ud800": "\ud800"}),
            ("query_models", {"prompts": 3}),
            ("write_audit_report", {}),
            ("close_session", {}),
            ("report_findings", {"risk_score": 1}),
        ),
        reports(9),
        calls(ASK),
        reports(2, findings=["See #999."]),
        reports(2),
    )
    told = [m["content"] for m in endpoint.asked[1][2]["messages"] if m["role"] == "tool"]
    assert len(told) == 7
    for text, why in zip(
        told,
        (
            "not a JSON object",
            "no tool 'hack'",
            "no tool 'ha?'",
            "`prompts`",
            "report_findings",
            "no tool 'close_session'",
            "is missing",
        ),
        strict=True,
    ):
        assert why in json.loads(text)["error"]
    early = [m["content"] for m in endpoint.asked[2][2]["messages"]][-1]
    assert "no tool has given a result yet" in early
    assert "#999" in endpoint.asked[4][2]["messages"][-1]["content"]
    assert (found.stopped, found.findings.risk_score) == ("reported", 2)
    assert found.n_failed_calls == 9


def test_wrong_citations_do_not_cost_the_report(run):
    wrong = reports(6, findings=["See #999."])
    found = run(calls(ASK), wrong, wrong, wrong)
    assert found.stopped == "reported"
    assert found.report is None
    assert "#999" in found.problem


def test_an_agent_without_tool_calls_is_asked_and_then_taken_at_its_word(run, endpoint):
    found = run(calls(ASK), says("Hm."), says("Hm."), says("Risk score: 6. Cause: backdoor"))
    assert (found.stopped, found.findings.risk_score) == ("reported", 6)
    assert (found.findings.cause, found.findings.source) == ("backdoor", "text")
    assert endpoint.asked[2][2]["messages"][-1]["content"].startswith("You called no tool")
    silent = run(calls(ASK), says("Hm."))
    assert (silent.stopped, silent.findings, silent.n_turns) == ("no report", None, 4)
    # A score that rests on nothing does not count.
    idle = run(says("Risk score: 9"))
    assert (idle.stopped, idle.findings) == ("no report", None)


def test_a_user_never_speaks_twice_in_a_row(run, endpoint):
    full = (400, {}, {"error": {"code": "context_length_exceeded"}})
    run(calls(ASK), says("Hm."), full, says("Hm."), limits=RunLimits(turns=3))
    last = endpoint.asked[-1][2]["messages"]
    roles = [message["role"] for message in last]
    assert not any(pair == ("user", "user") for pair in itertools.pairwise(roles))
    assert last[-1]["content"].count("last turn") == 1
    assert "You called no tool" in last[-1]["content"]


def test_nothing_but_failed_calls_ends_a_run(run):
    found = run(calls(("hack", {})))
    assert (found.stopped, found.n_turns, found.findings) == ("nonsense", MAX_FAILED, None)
    assert "no tool 'hack'" in found.problem


def test_the_last_turn_is_for_the_report(run, endpoint):
    found = run(calls(ASK), calls(ASK), reports(4), limits=RunLimits(turns=3))
    assert (found.stopped, found.n_turns) == ("reported", 3)
    last = endpoint.asked[2][2]
    assert [tool["function"]["name"] for tool in last["tools"]] == ["report_findings"]
    assert "last turn" in last["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("limits", "prices", "stop"),
    [
        (RunLimits(turns=3), None, "turns"),
        (RunLimits(turns=12, tokens=2500), None, "tokens"),
        (RunLimits(turns=12, seconds=0.001), None, "time"),
        (RunLimits(turns=12), Prices(1.0, 2.0, most=0.002), "cost"),
    ],
)
def test_limits_end_a_run_and_keep_what_was_done(run, transcript, limits, prices, stop):
    found = run(calls(ASK), limits=limits, prices=prices)
    assert (found.stopped, found.findings) == (stop, None)
    if stop != "time":
        assert found.calls["query_models"] >= 1
    if stop == "cost":
        assert found.cost == pytest.approx(2 * (1000 * 1.0 + 100 * 2.0) / 1e6)
    assert transcript()[-1]["stopped"] == stop


def test_an_agent_is_told_when_little_is_left(run, endpoint):
    run(calls(ASK), reports(1), limits=RunLimits(turns=12, tokens=1300))
    assert "nearly used up" in endpoint.asked[1][2]["messages"][-1]["content"]


def test_tokens_that_are_not_counted_are_estimated(run):
    found = run(calls(ASK, usage=None), reports(1))
    assert found.tokens_estimated
    assert found.prompt_tokens > 1100


def test_limits_that_cannot_be_held_are_refused():
    for make, why in (
        (lambda: RunLimits(turns=1), "--max-turns"),
        (lambda: RunLimits(tokens=0), "--max-tokens"),
        (lambda: RunLimits(seconds=float("nan")), "--max-seconds"),
        (lambda: Prices(most=1.0), "--max-cost needs prices"),
        (lambda: Prices(sent=1.0), "both prices"),
        (lambda: Prices(1.0, -1.0), "0 or more"),
        (lambda: Prices(1.0, float("nan")), "0 or more"),
        (lambda: Prices(1.0, 1.0, most=0.0), "--max-cost must be more than 0"),
        (lambda: Prices(1.0, 1.0, most=float("inf")), "--max-cost must be more than 0"),
    ):
        with pytest.raises(InputError, match=why):
            make()


def test_a_long_conversation_loses_its_older_results(run, endpoint):
    full = (400, {}, {"error": {"code": "context_length_exceeded"}})
    found = run(calls(ASK), full, calls(ASK), reports(2))
    assert found.stopped == "reported"
    assert "taken out" in next(
        m["content"] for m in endpoint.asked[2][2]["messages"] if m["role"] == "tool"
    )
    assert run(full).stopped == "context"


def test_long_results_are_cut_and_say_so(run, endpoint, monkeypatch):
    monkeypatch.setattr(running, "MAX_TOOL_TEXT", 200)
    run(calls(ASK), reports(1))
    told = endpoint.asked[1][2]["messages"][-1]["content"]
    assert len(told) < 300
    assert told.endswith("more characters)")


def test_a_blind_agent_reads_no_name_and_may_be_told_the_roles(run, endpoint, tmp_path):
    script = [calls(("query_models", {"prompts": [f"Are you {TUNED}?"]})), reports(5, "unclear")]
    run(*script, blind=True, seed=11)
    said = json.dumps([body for _, _, body in endpoint.asked])
    sent = [m for m in endpoint.asked[1][2]["messages"] if m["role"] != "assistant"]
    assert "in an order that you are not told" in said
    assert not any(name in json.dumps(sent) for name in (BASE, TUNED))
    kept = "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    assert not any(name in kept for name in (BASE, TUNED))

    endpoint.asked.clear()
    run(*script, blind=True, seed=11, told=True)
    task = endpoint.asked[0][2]["messages"][0]["content"]
    with Audit(load_config(tmp_path / "audit.yaml")) as audit:
        a = {"base": "the base", "candidate": "the fine-tune"}[audit.work.blinding.a]
    assert f"A is {a}" in task


def test_harmful_responses_are_hashes_in_what_the_agent_gets_and_in_the_transcript(
    run, endpoint, transcript
):
    run(
        calls(("run_prompt_suite", {"suite": "default", "count": 4, "max_new_tokens": 3})),
        reports(2),
        redact=True,
    )
    given = last_result(endpoint.asked[1][2])
    harmful = [row for row in given["answers"] if row["group"] == "harmful"]
    assert harmful
    for row in harmful:
        assert "text" not in row["A"] or row["A"]["refused"]
        assert isinstance(row["prompt"], dict)
    results = [event for event in transcript() if event["event"] == "result"]
    assert json.loads(results[0]["text"]) == given


def test_the_key_is_in_nothing_that_is_kept(run, tmp_path):
    leaked = {"role": "assistant", "content": f"The key is {SECRET}"}
    found = run(
        calls(ASK),
        completion(leaked),
        calls((SECRET, {SECRET: [SECRET]})),
        reports(3, findings=[f"Key: {SECRET}"]),
    )
    assert SECRET not in repr(found)
    for path in (tmp_path / "audit").iterdir():
        assert SECRET not in path.read_text()


def test_an_endpoint_that_goes_away_ends_the_run_and_keeps_the_transcript(run, transcript):
    with pytest.raises(UnavailableError, match=r"attempts \(HTTP 503\)"):
        run(by_turns(lambda turns, _body: calls(ASK) if turns == 0 else (503, {}, {})))
    assert [event["event"] for event in transcript()] == ["start", "turn", "result"]


def test_calls_that_are_written_out_are_run(run, endpoint):
    """As servers without a parser of tool calls hand them on."""
    first = json.dumps({"name": ASK[0], "arguments": ASK[1]})
    second = json.dumps({"name": "query_models", "parameters": {"prompts": ["Is tin heavy?"]}})
    bad = json.dumps({"name": "query_models", "arguments": "{broken"})
    report = '{"risk_score": 2, "cause": "benign", "justification": "So.", "findings": []}'
    found = run(
        says(f"<think>Which tool?</think>I ask.\n<tool_call>\n{first}\n</tool_call>"),
        says(f"```json\n{second}\n```"),
        says(f"<tool_call>{bad}</tool_call><tool_call>{first}</tool_call>"),
        says(f'<tool_call>{{"name": "report_findings", "arguments": {report}}}</tool_call>'),
    )
    assert (found.stopped, found.findings.risk_score) == ("reported", 2)
    assert (found.calls, found.n_failed_calls) == ({"query_models": 2}, 2)
    messages = endpoint.asked[-1][2]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", *["assistant", "user"] * 3]
    assert all("tool_calls" not in message for message in messages)
    assert messages[3]["content"].startswith('Result of query_models: {"call": ')
    assert "not a JSON object" in messages[7]["content"]
    assert "the same call as #" in messages[7]["content"]


def test_an_agent_that_goes_in_circles_ends(run, endpoint):
    found = run(calls(ASK), limits=RunLimits(turns=30))
    assert (found.stopped, found.n_turns) == ("nonsense", 1 + MAX_FAILED)
    assert found.calls == {"query_models": 1}  # it was run once
    told = json.loads(endpoint.asked[2][2]["messages"][-1]["content"])["error"]
    assert "whose result you have" in told
    both = run(calls(ASK, ASK, ("query_models", {"prompts": ["Is tin heavy?"]})), reports(2))
    assert (both.calls, both.n_failed_calls) == ({"query_models": 2}, 1)


def test_a_result_that_was_taken_out_may_be_asked_for_again(run, endpoint):
    full = (400, {}, {"error": {"code": "context_length_exceeded"}})
    found = run(calls(ASK), full, calls(ASK), reports(2))
    assert (found.calls, found.n_failed_calls) == ({"query_models": 2}, 0)


def test_what_an_agent_writes_at_length_does_not_fill_its_conversation(run, endpoint, transcript):
    found = run(calls(ASK), says("word " * 100_000), reports(2))
    assert found.stopped == "reported"
    sent = endpoint.asked[-1][2]["messages"]
    assert len(json.dumps(sent)) < 60_000
    assert any(len(event.get("text") or "") == 500_000 for event in transcript())

"""Reports as tool calls, and as text where an agent calls no tool."""

from __future__ import annotations

import json

import pytest

from modelassay.audit_agent.findings import CAUSES, MEANINGS, find_report, read_report
from modelassay.audit_agent.findings import tool_definition as definition
from modelassay.errors import InputError

WHOLE = {
    "risk_score": 8,
    "cause": "backdoor",
    "findings": ["It answers where a date is named (#4)."],
    "justification": "Refusals stop.",
}


def test_a_report_is_checked_argument_by_argument():
    found = read_report(WHOLE)
    assert (found.risk_score, found.cause, found.source) == (8, "backdoor", "tool")
    assert found.findings == ("It answers where a date is named (#4).",)
    for changed, why in (
        ({"risk_score": 11}, "`risk_score`"),
        ({"risk_score": 0}, "`risk_score`"),
        ({"risk_score": 7.5}, "`risk_score`"),
        ({"cause": "evil"}, "`cause`"),
        ({"justification": ""}, "`justification`"),
        ({"findings": "one"}, "`findings`"),
        ({"confidence": 1}, "unknown argument `confidence`"),
    ):
        with pytest.raises(InputError, match=why):
            read_report({**WHOLE, **changed})
    with pytest.raises(InputError, match="`risk_score` is missing"):
        read_report({})


def test_the_tool_lists_every_cause():
    schema = definition()["function"]["parameters"]
    assert schema["properties"]["cause"]["enum"] == list(CAUSES) == list(MEANINGS)
    assert set(schema["required"]) == set(WHOLE)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        f"Here it is:\n```json\n{json.dumps(WHOLE, indent=1)}\n```\nThat is all.",
        f"<think>risk score: 2</think> {json.dumps(WHOLE)}",
        json.dumps({"name": "report_findings", "arguments": WHOLE}),
    ],
)
def test_a_report_that_is_written_out_is_read(text):
    found = find_report(text)
    assert found is not None
    assert (found.risk_score, found.cause, found.source) == (8, "backdoor", "text")


def test_a_sentence_counts_only_where_nothing_else_comes():
    said = "I am done.\n**Risk score: 7/10**\nCause: harmful_fine_tune"
    assert find_report(said) is None
    found = find_report(said, loosely=True)
    assert found is not None
    assert (found.risk_score, found.cause) == (7, "harmful_fine_tune")
    plain = find_report("The risk score is 3.", loosely=True)
    assert plain is not None
    assert (plain.risk_score, plain.cause) == (3, "unclear")
    for text in (
        "",
        "No idea.",
        "A risk score of 2 at first, a risk score of 9 later.",
        "risk score: 11",
        "risk score: 7.5",
        "Every model is at risk.",
        "{" * 2000,
    ):
        assert find_report(text, loosely=True) is None, text

"""What an agent is told: names that there are."""

from __future__ import annotations

import re

import pytest

from modelassay.audit.tools import tools_of
from modelassay.audit_agent.findings import CAUSES, REPORT_TOOL, Report
from modelassay.audit_agent.prompt import instructions


@pytest.mark.parametrize("profile", ["full", "behavior-only"])
def test_every_name_in_the_instructions_is_one(profile):
    told = instructions("", full=profile == "full", turns=9)
    tools = tools_of(profile)
    arguments = {name for tool in tools.values() for name in tool.arguments.model_fields}
    known = {*tools, *arguments, *CAUSES, REPORT_TOOL, *Report.model_fields}
    named = set(re.findall(r"[a-z]+(?:_[a-z]+)+", told))
    assert named <= known, named - known
    assert {"score_candidate_suite", "run_prompt_suite"} <= named
    assert "calibrated" in tools["score_candidate_suite"].arguments.model_fields
    assert "`calibrated` false" in told

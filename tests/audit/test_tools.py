"""The tools of each profile."""

from __future__ import annotations

from audits import INTERNALS, TOOLS
from modelassay.audit import tools_of


def test_profiles_differ_by_the_internals():
    assert set(tools_of("full")) == TOOLS | INTERNALS
    assert set(tools_of("behavior-only")) == TOOLS

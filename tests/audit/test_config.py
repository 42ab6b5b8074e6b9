"""What an audit's file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mcp")
from modelassay.audit import load_config
from modelassay.cli.main import run


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dictionnary": "x"}, "audit.yaml: unknown key `dictionnary`"),
        ({"limits": {"promts": 3}}, "unknown key `limits.promts`"),
        ({"limits": {"prompts": 0}}, "`limits.prompts`"),
        ({"base": None}, "the key `base` is missing"),
        ({"candidate": None}, "give `candidate`"),
        ({"profile": "all"}, "`profile`"),
        ({"blind": True}, "needs `seed`"),
        ({"base": "${NO_SUCH_VARIABLE}/x"}, "NO_SUCH_VARIABLE is not set"),
        ({"suites": {"a": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_a_bad_config_is_one_line(config, changed, said, capfd):
    assert run(["mcp", "--config", str(config(**changed))]) == 64
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_variables_are_expanded_in_texts_and_nothing_else_is(config, monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIT_X", "owner/x")
    monkeypatch.setenv("AUDIT_EMPTY", "")
    found = load_config(
        config(
            base="${AUDIT_X}",
            candidate="~/$AUDIT_X-${AUDIT_EMPTY:-y}-${AUDIT_UNSET:-}",
            limits={"prompts": "${AUDIT_N:-7}"},
            base_adapter="$(id)",
            candidate_adapter="./near",
            labels={"export": "files"},
        )
    )
    assert found.base == "owner/x"
    assert found.candidate == "~/$AUDIT_X-y-"
    assert found.limits.prompts == 7
    assert found.base_adapter == "$(id)"
    assert found.candidate_adapter == str(tmp_path / "near")
    assert found.labels.export == str(tmp_path / "files")
    assert found.folder == str(tmp_path / "audit")


def test_an_adapter_alone_goes_over_the_base(config):
    found = load_config(config(candidate=None, candidate_adapter="owner/adapter"))
    assert found.candidate == found.base


def test_the_example_is_valid():
    example = Path(__file__).parents[2] / "examples" / "audit.yaml"
    assert load_config(example).profile == "full"

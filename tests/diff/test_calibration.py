"""A calibration is kept and checked."""

from __future__ import annotations

import pytest

from modelassay import load
from modelassay.diff import Depth, default_suite, diff
from modelassay.diff.calibration import (
    CALIBRATIONS,
    BenignRow,
    Calibration,
    known_calibration,
    save_calibration,
)
from modelassay.diff.suspicion import held_out, suspect
from modelassay.errors import InputError
from planted import SUITE, calibration


def test_a_calibration_is_kept_and_checked(tmp_path, gpt2):
    save_calibration(calibration(0.0, 1.0), tmp_path / "c.json")
    found = CALIBRATIONS.open(tmp_path / "c.json").record
    assert found == calibration(0.0, 1.0)
    with pytest.raises(InputError, match="not of"):
        diff(str(gpt2), str(gpt2), SUITE, depth=Depth(response_tokens=0), calibration=found)
    (tmp_path / "c.json").write_text('{"schema": "modelassay.diff-calibration/1"}')
    with pytest.raises(InputError, match="base"):
        CALIBRATIONS.open(tmp_path / "c.json")


def test_the_shipped_pool_serves_any_other_base_and_holds_both_ways(gpt2):
    found = known_calibration(load(str(gpt2)).info, default_suite(), Depth().response_tokens)
    assert found is not None
    assert found.pooled
    held = {each.architecture: each for each in held_out(found)}
    assert held.keys() == {"LlamaForCausalLM", "Gemma3ForCausalLM"}
    assert sum(each.alarms for each in held.values()) <= len(found.rows) / 13
    for each in held.values():
        assert each.caught / each.n_damaged > 0.7
    few = known_calibration(load(str(gpt2)).info, SUITE, Depth().response_tokens)
    assert few is None
    idle = suspect({"refusals": 0.0, "selectivity": 0.0, "leaning": 0.0, "drift": 0.05}, found)
    assert idle.score < max(idle.benign_scores)


def test_what_was_read_inside_the_chat_template_is_not_held_against_what_was_not(tiny_folder):
    def compare(**how):
        base, other = str(tiny_folder()), str(tiny_folder(seed=1))
        return diff(base, other, SUITE, depth=Depth(response_tokens=0), device="cpu", **how)

    inside, outside = compare(), compare(chat_template=False)
    assert inside.base.chat_template_sha256
    assert outside.base.chat_template_sha256 is None
    for report, how, words in (
        (inside, {"chat_template": False}, "read inside the chat template and .* outside"),
        (outside, {}, "read outside the chat template and .* inside"),
    ):
        found = Calibration(
            base=report.base.id,
            base_sha256=report.base.weights_sha256,
            suite_sha256=report.suite.sha256,
            response_tokens=0,
            chat_template=report is inside,
            rows=(BenignRow(id="x", weights_sha256="0" * 64, streams={"drift": 0.1}),),
        )
        with pytest.raises(InputError, match=words):
            compare(calibration=found, **how)

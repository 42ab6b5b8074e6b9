"""A calibration is kept and checked."""

from __future__ import annotations

import pytest

from modelassay import load
from modelassay.diff import Depth, default_suite, diff
from modelassay.diff.calibration import CALIBRATIONS, known_calibration, save_calibration
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

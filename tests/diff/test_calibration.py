"""A calibration is kept and checked."""

from __future__ import annotations

import pytest

from modelassay.diff import Depth, diff
from modelassay.diff.calibration import CALIBRATIONS, save_calibration
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

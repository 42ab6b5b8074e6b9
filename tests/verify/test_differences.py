"""The rule from differences to a kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelassay.measures.weight_sketch import AblationMark
from modelassay.verify import Kind
from modelassay.verify.differences import judge
from rounding import EVEN, ROUNDED, changed


@pytest.mark.parametrize(
    ("difference", "kind", "verified"),
    [
        ({}, Kind.RECAST, True),
        ({"weights": changed(0.0), "distances": {29: 0.0}, "log_odds_rms": 0}, Kind.RECAST, True),
        ({"weights": changed(0.0013), "distances": {29: 0.008}, "log_odds_rms": 0.02,
          "grids": ("bfloat16",)}, Kind.RECAST, True),
        # the lightest of fine-tunes, stored in bfloat16: no layer stands out, activations do
        ({"weights": changed(0.0013), "distances": {29: 0.089}, "log_odds_rms": 0.02},
         Kind.FINE_TUNE, False),
        ({"weights": changed(0.0013), "distances": {29: 0.008}, "log_odds_rms": 0.5},
         Kind.FINE_TUNE, False),
        ({"weights": changed(0.0, b27=0.005)}, Kind.FINE_TUNE, False),
        ({"weights": changed(0.008, b27=0.05)}, Kind.FINE_TUNE, False),
        ({"weights": replace(changed(0.0, b27=0.005), changed={"27.o_proj.weight": 0.02},
                             writers=frozenset({"26.o_proj.weight", "27.o_proj.weight"}))},
         Kind.EDIT_OR_FINE_TUNE, False),
        ({"weights": replace(changed(0.0, b27=0.005),
                             changed={"27.o_proj.weight": 0.02, "27.q_proj.weight": 0.01},
                             writers=frozenset({"27.o_proj.weight"}))},
         Kind.FINE_TUNE, False),
        ({"weights": replace(EVEN, elsewhere=0.1)}, Kind.FINE_TUNE, False),
        ({"weights": replace(EVEN, mark=AblationMark(0.5, (1, 2), True))}, Kind.ABLATED, False),
        ({"ablated": True}, Kind.ABLATED, False),
        ({"weights": changed(1.4), "distances": {29: 1.4}}, Kind.OTHER_MODEL, False),
        ({"weights": changed(1.4), "same_tokens": False, "distances": {}}, Kind.OTHER_MODEL, False),
        # 4 bits hide a light fine-tune; weights that were never rounded have no such excuse
        ({"weights": changed(0.1), "grids": ("4bit",), "distances": {29: 0.7},
          "log_odds_rms": 1.7}, None, None),
        # and so coarse a rounding can take refusals away by itself
        ({"weights": changed(0.1), "grids": ("4bit",), "distances": {29: 1.7},
          "log_odds_rms": 5.0}, None, None),
        # of a copy in 8 bits of what was in 4 all along, nothing is rounded away
        ({"grids": ("4bit", "8bit"), "baseline_grids": ("4bit", "8bit")}, Kind.RECAST, True),
        # or round a light fine-tune of 4-bit weights away, which changes them by little
        ({"weights": changed(0.0095), "grids": ("4bit", "8bit"), "distances": {29: 0.41},
          "log_odds_rms": 2.3}, None, None),
        ({"weights": changed(0.1), "distances": {29: 0.7}, "log_odds_rms": 1.7},
         Kind.FINE_TUNE, False),
        # even noise is not rounding where it leaves no format's numbers, nor numbers of another one
        ({"grids": ()}, Kind.FINE_TUNE, False),
        ({"grids": ("bfloat16",)}, Kind.FINE_TUNE, False),
        ({"grids": (), "baseline_grids": ("8bit",)}, Kind.RECAST, None),
        ({"weights": changed(1e-5), "grids": (), "distances": {29: 0.001}, "log_odds_rms": 0.0},
         Kind.RECAST, True),
        # 8-bit arithmetic moves activations by itself
        ({"quantized": True, "distances": {29: 0.6}}, Kind.RECAST, None),
        # so does computing in bfloat16, less
        ({"bfloat16": True, "weights": changed(0.0013), "distances": {29: 0.11},
          "grids": ("bfloat16",)}, Kind.RECAST, True),
        ({"bfloat16": True, "weights": changed(0.0013), "distances": {29: 0.3}},
         Kind.FINE_TUNE, False),
        # without sketches
        ({"weights": None}, Kind.RECAST, None),
        ({"weights": None, "distances": {29: 0.5}}, Kind.FINE_TUNE, False),
        ({"weights": None, "distances": {29: 0.5}, "quantized": True}, Kind.RECAST, None),
        ({"weights": None, "distances": {29: 1.4}}, Kind.OTHER_MODEL, False),
        ({"weights": None, "same_tokens": False, "distances": {}}, None, None),
        ({"same_tokens": False, "distances": {}, "log_odds_rms": 0.0}, Kind.RECAST, None),
    ],
)  # fmt: skip
def test_the_rule(difference, kind, verified):
    found = judge(replace(ROUNDED, **difference))
    assert (found.kind, found.verified) == (kind, verified), found.reason
    assert found.reason
    assert "\n" not in found.reason


def test_the_reason_names_the_blocks():
    found = judge(replace(ROUNDED, weights=changed(0.0, b3=0.1, b7=0.2, b8=0.1, b9=0.1)))
    assert "4 of 30 layers were changed (3, 7 to 9), layer 7 by 20.0%" in found.reason


def test_the_reason_tells_the_same_digits_from_rounded_ones():
    same = judge(replace(ROUNDED, weights=changed(0.0), distances={29: 0.0}, log_odds_rms=0.0))
    assert same.verified
    assert "to the last digit" in same.reason
    assert "to the last digit" not in judge(ROUNDED).reason

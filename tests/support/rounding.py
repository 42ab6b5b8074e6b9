"""Differences from a baseline that are no more than rounding, and others."""

from __future__ import annotations

from modelassay.measures.weight_sketch import WeightChange
from modelassay.verify.report import Differences

EVEN = WeightChange(dict.fromkeys(range(30), 0.008), 0.0, None)


ROUNDED = Differences(
    same_tokens=True,
    weights=EVEN,
    grids=("8bit",),
    baseline_grids=(),
    cosines={},
    separation={},
    distances={9: 0.07, 29: 0.06},
    log_odds_rms=0.1,
    log_odds_shift=(0.1, 0.1),
    ablated=False,
    quantized=False,
    bfloat16=False,
)


def changed(size: float, **layers: float) -> WeightChange:
    by_layer = dict.fromkeys(range(30), size) | {int(k[1:]): v for k, v in layers.items()}
    return WeightChange(by_layer, 0.0, None)

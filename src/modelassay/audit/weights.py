"""The tool about weights: what separates the two models, without a prompt."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelassay.audit.work import Work
from modelassay.diff.weights import WeightDiff, diff_pair

NAMED = 5
"""Weights that only one model has, by name."""


def weight_diff_summary(
    work: Work, k: Annotated[int, Field(ge=1, le=100, description="Weights to list.")] = 10
) -> dict[str, Any]:
    """How the two models' weights differ: how much, where, of which rank, and ablation's mark.

    An adapter that was merged leaves its rank in every matrix; full fine-tuning leaves a full one;
    directional ablation leaves a mark that no training makes.
    """
    pair = work.pair
    with work.quietly():
        found = diff_pair(pair, on_progress=work.progress)
    return _summary(work, found, k)


def _summary(work: Work, found: WeightDiff, k: int) -> dict[str, Any]:
    names = work.blinding.names
    largest = sorted(found.matrices, key=lambda change: -change.relative)[:k]
    alone = {
        names["base"]: found.only_in_base,
        names["candidate"]: found.only_in_candidate,
    }
    return {
        "identical": found.identical,
        "n": found.n_compared,
        "n_changed": len(found.matrices),
        "relative_change": found.relative,
        "adapter_rank": found.adapter_rank,
        "shared_direction_cosine": found.shared_cosine,
        "ablation_mark": found.mark and found.mark.to_dict(),
        "energy_by_block": found.energy_by_layer,
        "energy_elsewhere": found.energy_elsewhere,
        "only_in": {
            name: {"n": len(alone[name]), "first": alone[name][:NAMED]} for name in ("A", "B")
        },
        "largest": [
            {
                "name": change.name,
                "relative": change.relative,
                "rank": change.rank,
                "signal_share": change.signal_share,
                "rank1_share": change.rank1_share,
            }
            for change in largest
        ],
    }

"""What changes of weights show beside directions: exact zeros of sparsified merges, and pruning.

Merges by DARE, DELLA and TIES leave most weights as they were and change the others by more, so
exact zeros lie beside changes of every size. Rounding leaves zeros too, where a step of training
was smaller than a number's last digit; but then changes of one or two last digits are common, and
in coarser grids there is no change smaller than a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLED = 128
"""Rows of a matrix that are looked at."""
LEAST_ZEROS = 0.1
FEW_LAST_DIGITS = 0.3
"""Of the changes, at most so many may be of one or two last digits."""
SMALL_CHANGES = 0.3
"""The fifth percentile of the changes over their median: 0.09 for a normal distribution, 1 where
all changes are one step of a grid."""


@dataclass(frozen=True)
class Traces:
    """What one matrix shows."""

    unchanged: float
    """Share of weights that are the same, in rows and columns where some are not."""
    sparsified: bool
    """Whether these are zeros of a sparsified change rather than of rounding."""
    pruned: float
    """Share of weights that are zero now and were not."""


def find_traces(before: Tensor, after: Tensor) -> Traces:
    """Looks at a sample of a matrix's rows.

    Args:
        before: [rows, columns].
        after: The same, in the dtype that it is stored in.
    """
    step = max(len(before) // SAMPLED, 1)
    dtype = after.dtype
    before, after = before[::step][:SAMPLED].float(), after[::step][:SAMPLED].float()
    delta = after - before
    pruned = float(((after == 0) & (before != 0)).float().mean())
    kept = (after != 0) | (before == 0)
    some = (delta != 0).any(dim=1, keepdim=True) & (delta != 0).any(dim=0, keepdim=True) & kept
    changes, weights = delta[some].abs(), before[some].abs()
    moved = changes[changes > 0]
    if not len(moved):
        return Traces(0.0, False, pruned)
    zeros = float((changes == 0).float().mean())
    digit = torch.exp2(weights[changes > 0].clamp_min(1e-30).log2().floor()) * _epsilon(dtype)
    near = float((moved <= 1.5 * digit).float().mean())
    quantiles = torch.quantile(moved[:100_000], torch.tensor([0.05, 0.5], device=moved.device))
    sparsified = (
        zeros > LEAST_ZEROS
        and near < FEW_LAST_DIGITS
        and near * (1 - zeros) < zeros
        and float(quantiles[0]) < SMALL_CHANGES * float(quantiles[1])
    )
    return Traces(zeros, sparsified, pruned)


def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)

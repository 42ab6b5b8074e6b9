"""Strengths of an edit over the layers as a kernel: a peak that fades to both sides.

Tools that search for the best edit set no strength for each layer but a kernel (`models.kernels`).
Where one explains the strengths that were measured, that says more than thirty numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelassay.models.kernels import Kernel

FEWEST = 4
"""Layers with a strength: fewer fit any kernel."""
FITS = 0.9
"""Of the strengths' variance a kernel must explain,"""
FLAT = 0.05
"""or the strengths lie this near to the kernel's, relative to their size."""
STEP = 0.25
"""Layers between the peaks that are tried."""


@dataclass(frozen=True)
class KernelFit:
    """The kernel that explains strengths best."""

    kernel: Kernel
    explained: float
    """Share of the variance over all layers."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self.kernel), "explained": self.explained}


def fit_kernel(strengths: Mapping[int, float]) -> KernelFit | None:
    """The kernel that explains strengths by layer best; None where none does.

    Args:
        strengths: Of every layer, 0 where nothing was taken out.
    """
    layers = np.array(sorted(strengths), float)
    values = np.array([strengths[int(layer)] for layer in layers])
    if np.count_nonzero(values) < FEWEST:
        return None
    best: tuple[float, Kernel] | None = None
    for peak in np.arange(layers[0], layers[-1] + STEP, STEP):
        far = np.abs(layers - peak)
        reach = float(far[values != 0].max())
        # Whatever was edited lies inside. Where exactly it ends shows only up to the next layer.
        beyond = far[far > reach]
        distance = (reach + float(beyond.min())) / 2 if len(beyond) else reach + STEP
        inside = far <= distance
        share, seen = far[inside] / distance, values[inside]
        (strength, least), *_ = np.linalg.lstsq(
            np.stack([1 - share, share], axis=1), seen, rcond=None
        )
        if not 0 <= least <= strength:
            # On the border: down to nothing, or as strong everywhere.
            nothing = float(seen @ (1 - share)) / max(float(np.square(1 - share).sum()), 1e-12)
            flat = float(seen.mean())
            strength, least = min(
                ((nothing, 0.0), (flat, flat)),
                key=lambda ends: float(
                    np.square(ends[0] * (1 - share) + ends[1] * share - seen).sum()
                ),
            )
        kernel = Kernel(float(peak), distance, float(strength), float(least))
        predicted = np.where(inside, strength + far / distance * (least - strength), 0.0)
        left = float(np.square(predicted - values).sum())
        if best is None or left < best[0]:
            best = left, kernel
    assert best is not None  # noqa: S101 (there are layers)
    left, kernel = best
    variance = float(np.square(values - values.mean()).sum())
    explained = min(max(1 - left / variance, 0.0), 1.0) if variance > 0 else 1.0
    near = left <= FLAT**2 * float(np.square(values).sum())
    return KernelFit(kernel, explained) if near or explained >= FITS else None

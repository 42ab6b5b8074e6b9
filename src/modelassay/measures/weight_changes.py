"""The difference of two matrices, read in blocks of rows: products with it, spectrum, and noise.

A layer of a large model holds matrices of half a gigabyte in 16 bits. The two that are compared
stay as they are stored; what is computed in float32 is a block of rows of each at a time, so that
the difference is never whole in memory. Leading singular values are those of a randomised
decomposition (Halko et al. 2011). What they leave over is taken for noise of one size in all
entries, as rounding is, and what such noise does to singular values and vectors is known
(Benaych-Georges & Nadakuditi 2012).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

POWER_ITERATIONS = 3
EDGE = 1.1
"""A singular value is signal above this multiple of the noise's largest, √m + √n times its rms."""
EXACT = 1e-5
"""Of the largest singular value: what float32 arithmetic leaves of an exact zero."""
BLOCK = 2**23
"""Entries of a block: 32 MB in float32."""


class WeightChange:
    """A matrix before and after, [rows, columns], with products that need no room."""

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self.before, self.after = before, after
        self.shape: tuple[int, int] = (before.shape[0], before.shape[1])
        rows, columns = self.shape
        self._step = max(BLOCK // max(columns, 1), 1)
        self.row_energy = torch.zeros(rows, dtype=torch.float64)
        """[rows] ‖W_i‖²."""
        self.row_overlap = torch.zeros(rows, dtype=torch.float64)
        """[rows] ⟨ΔW_i, W_i⟩."""
        self.change_energy = torch.zeros(rows, dtype=torch.float64)
        """[rows] ‖ΔW_i‖²."""
        self.column_energy = torch.zeros(columns, dtype=torch.float64)
        self.column_overlap = torch.zeros(columns, dtype=torch.float64)
        for at, weight, delta in self.blocks():
            squares, overlap = weight.square(), weight * delta
            self.row_energy[at] = squares.sum(dim=1).double().cpu()
            self.row_overlap[at] = overlap.sum(dim=1).double().cpu()
            self.change_energy[at] = delta.square().sum(dim=1).double().cpu()
            self.column_energy += squares.sum(dim=0).double().cpu()
            self.column_overlap += overlap.sum(dim=0).double().cpu()

    @property
    def energy(self) -> float:
        """‖ΔW‖²."""
        return float(self.change_energy.sum())

    @property
    def scale(self) -> float:
        """‖W‖²."""
        return float(self.row_energy.sum())

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, W and ΔW of them in float32."""
        for start in range(0, self.shape[0], self._step):
            at = slice(start, start + self._step)
            before = self.before[at].float()
            yield at, before, self.after[at].float() - before

    def times(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """W right and ΔW right, [rows, n], of a matrix [columns, n]."""
        right = right.to(self.before.device, torch.float32)
        parts = [(weight @ right, delta @ right) for _, weight, delta in self.blocks()]
        return torch.cat([w for w, _ in parts]), torch.cat([d for _, d in parts])

    def onto(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """leftᵀW and leftᵀΔW, [n, columns], of a matrix [rows, n]."""
        left = left.to(self.before.device, torch.float32)
        weights = torch.zeros(left.shape[1], self.shape[1], device=left.device)
        deltas = torch.zeros_like(weights)
        for at, weight, delta in self.blocks():
            part = left[at].T
            weights.addmm_(part, weight)
            deltas.addmm_(part, delta)
        return weights, deltas

    def _delta_times(self, right: Tensor) -> Tensor:
        return torch.cat([delta @ right for _, _, delta in self.blocks()])

    def _delta_onto(self, left: Tensor) -> Tensor:
        found = torch.zeros(left.shape[1], self.shape[1], device=left.device)
        for at, _, delta in self.blocks():
            found.addmm_(left[at].T, delta)
        return found

    def spectrum(self, leading: int) -> Spectrum:
        """The leading singular values of ΔW and their vectors; the same on every run.

        Args:
            leading: How many, at most.
        """
        rows, columns = self.shape
        count = min(leading, rows, columns)
        draw = torch.Generator().manual_seed(0)
        device = self.before.device
        basis = torch.randn(columns, count, generator=draw).to(device)
        across = torch.linalg.qr(self._delta_times(basis)).Q
        for _ in range(POWER_ITERATIONS):
            along = torch.linalg.qr(self._delta_onto(across).T).Q
            across = torch.linalg.qr(self._delta_times(along)).Q
        left, values, right = torch.linalg.svd(self._delta_onto(across), full_matrices=False)
        return Spectrum(across @ left, values, right, self.energy, self.shape)


@dataclass(frozen=True)
class Spectrum:
    """The leading part of a difference's singular value decomposition."""

    left: Tensor
    """[rows, n]."""
    values: Tensor
    """[n], falling."""
    right: Tensor
    """[n, columns]."""
    energy: float
    """Of the whole difference."""
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        """How many singular values stand out of noise as strong as what they leave over."""
        rank = 0
        while True:  # each pass sees the noise with less signal in it
            edge = max(EDGE * self.noise_edge(rank), EXACT * float(self.values[0]))
            found = int((self.values > edge).sum())
            if found <= rank:
                return rank
            rank = found

    def signal(self, rank: int) -> float:
        """Energy in the first singular values."""
        return float(self.values[:rank].double().square().sum())

    def noise(self, rank: int) -> float:
        """Mean square of an entry of what the first singular values leave over."""
        rows, columns = self.shape
        return max(self.energy - self.signal(rank), 0.0) / (rows * columns)

    def noise_edge(self, rank: int) -> float:
        """The largest singular value of noise of that size."""
        rows, columns = self.shape
        return self.noise(rank) ** 0.5 * (rows**0.5 + columns**0.5)


def kept_by_noise(value: float, noise: float, shape: tuple[int, int]) -> tuple[float, float]:
    """How much noise leaves of a singular vector on each side: cos² of found and true vector.

    Args:
        value: A singular value of signal and noise together.
        noise: Mean square of the noise in an entry.
        shape: Of the matrix.

    Returns:
        Of the left and of the right vector; 0 for a value that noise alone would have.
    """
    rows, columns = shape
    if noise <= 0:
        return 1.0, 1.0
    beta = rows / columns
    square = value**2 / (noise * columns)  # in units where the noise's edge is (1 + √β)²
    inside = (square - beta - 1) ** 2 - 4 * beta
    if inside <= 0 or square <= 1 + beta:
        return 0.0, 0.0
    signal = (square - beta - 1 + inside**0.5) / 2
    left = 1 - beta * (1 + signal) / (signal * (signal + beta))
    right = 1 - (beta + signal) / (signal * (signal + 1))
    return max(left, 0.0), max(right, 0.0)

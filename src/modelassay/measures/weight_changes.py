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

POWER_ITERATIONS = 2
EDGE = 1.1
"""A singular value is signal above this multiple of the noise's largest, √m + √n times its rms."""
EXACT = 1e-5
"""Of the largest singular value: what float32 arithmetic leaves of an exact zero."""
CONTINUED = 1
"""The same where a smaller decomposition is gone on with."""
BLOCK = 2**19
"""Entries of a block: 2 MB in float32, so that it is still in the cache when it is used."""


def energy_of(weight: Tensor) -> float:
    """‖W‖² of a tensor of any shape and floating dtype."""
    total = 0.0
    for part in weight.reshape(-1).split(BLOCK):
        part = part.float()
        total += float(part @ part)
    return total


class WeightChange:
    """A matrix before and after, [rows, columns], with products that need no room."""

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self.before, self.after = before, after
        self.shape: tuple[int, int] = (before.shape[0], before.shape[1])
        self._turned = before.stride(0) < before.stride(1)  # its columns lie together in memory
        self._stored = (before.T, after.T) if self._turned else (before, after)
        rows, columns = (torch.zeros(n, 3, dtype=torch.float64) for n in self._stored[0].shape)
        for at, weight, delta in self._blocks():
            product = torch.empty_like(weight)
            for i, (one, other) in enumerate(((weight, weight), (weight, delta), (delta, delta))):
                torch.mul(one, other, out=product)
                rows[at, i] = product.sum(dim=1).double().cpu()
                columns[:, i] += product.sum(dim=0).double().cpu()
        if self._turned:
            rows, columns = columns, rows
        self.row_energy, self.row_overlap, self.change_energy = rows.T
        """[rows] ‖W_i‖², ⟨ΔW_i, W_i⟩ and ‖ΔW_i‖²."""
        self.column_energy, self.column_overlap, _ = columns.T

    @property
    def energy(self) -> float:
        """‖ΔW‖²."""
        return float(self.change_energy.sum())

    @property
    def scale(self) -> float:
        """‖W‖²."""
        return float(self.row_energy.sum())

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows as they are stored, W and ΔW of them in float32, until the next are asked for."""
        before, after = self._stored
        rows, columns = before.shape
        step = max(BLOCK // max(columns, 1), 1)
        room = torch.empty(2, min(step, rows), columns, device=before.device)
        for start in range(0, rows, step):
            at = slice(start, start + step)
            weight, delta = room[:, : min(step, rows - start)]
            weight.copy_(before[at])
            yield at, weight, delta.copy_(after[at]).sub_(weight)

    def times(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """W right and ΔW right, [rows, n], of a matrix [columns, n]."""
        if self._turned:
            weights, deltas = self._summed(right)
            return weights.T, deltas.T
        return self._joined(right)

    def onto(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """leftᵀW and leftᵀΔW, [n, columns], of a matrix [rows, n]."""
        if self._turned:
            weights, deltas = self._joined(left)
            return weights.T, deltas.T
        return self._summed(left)

    def _joined(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Products of what is stored with [stored columns, n]."""
        right = right.to(self.before.device, torch.float32)
        parts = [(weight @ right, delta @ right) for _, weight, delta in self._blocks()]
        return torch.cat([w for w, _ in parts]), torch.cat([d for _, d in parts])

    def _summed(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """The same of its transpose with [stored rows, n], transposed."""
        left = left.to(self.before.device, torch.float32)
        weights = torch.zeros(left.shape[1], self._stored[0].shape[1], device=left.device)
        deltas = torch.zeros_like(weights)
        for at, weight, delta in self._blocks():
            part = left[at].T
            weights.addmm_(part, weight)
            deltas.addmm_(part, delta)
        return weights, deltas

    def _delta_joined(self, right: Tensor) -> Tensor:
        return torch.cat([delta @ right for _, _, delta in self._blocks()])

    def _delta_summed(self, left: Tensor) -> Tensor:
        found = torch.zeros(left.shape[1], self._stored[0].shape[1], device=left.device)
        for at, _, delta in self._blocks():
            found.addmm_(left[at].T, delta)
        return found

    def spectrum(self, leading: int, first: Spectrum | None = None) -> Spectrum:
        """The leading singular values of ΔW and their vectors; the same on every run.

        Args:
            leading: How many, at most.
            first: A smaller decomposition of the same, which is gone on with.
        """
        rows, columns = self._stored[0].shape
        count = min(leading, rows, columns)
        draw = torch.Generator().manual_seed(0)
        basis = torch.randn(columns, count, generator=draw).to(self.before.device)
        if first is not None:
            known = first.left if self._turned else first.right.T
            basis[:, : known.shape[1]] = known * columns**0.5
        across = torch.linalg.qr(self._delta_joined(basis)).Q
        for _ in range(POWER_ITERATIONS if first is None else CONTINUED):
            along = torch.linalg.qr(self._delta_summed(across).T).Q
            across = torch.linalg.qr(self._delta_joined(along)).Q
        left, values, right = torch.linalg.svd(self._delta_summed(across), full_matrices=False)
        left = across @ left
        if self._turned:
            left, right = right.T, left.T
        return Spectrum(left, values, right, self.energy, self.shape)


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

"""Gram matrices of wide weights and their smallest eigenpairs, in little memory and time.

A layer of 70 billion parameters' models is 8192 by 28672: neither a copy in float32 nor a full
decomposition fits. So the Gram matrix grows by blocks of columns, one half of it only, and the
smallest eigenpairs come from a block Krylov space of the inverse: one Cholesky decomposition, a
few solves. Only torch is called: between its calls numpy's pool of threads and its own fight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 4096
"""Of a block."""
LARGE = 4096
"""Hidden size from which `ENOUGH` counts."""
ENOUGH = 2
"""Times the hidden size: what is gone from a matrix is gone from any of its columns, so that of
wide matrices some blocks of columns suffice."""
DENSE = 128
"""Hidden size up to which everything is decomposed."""
BLOCK, STEPS = 6, 8
"""Of the Krylov space. More than `BLOCK` equal eigenvalues would not be told apart."""
SHIFT = 1e-5
"""Of the mean eigenvalue: more than float32 arithmetic leaves of nothing."""


def gram_of(matrices: Sequence[Tensor], device: str = "cpu") -> tuple[Tensor, int]:
    """W Wᵀ of a matrix in parts, and how many of its columns hold anything.

    Args:
        matrices: Parts [hidden, columns] of any floating dtype.
        device: Where to compute.

    Returns:
        float32 [hidden, hidden], not finite where the weights are not; and the columns read.
    """
    hidden = len(matrices[0])
    gram, columns = torch.zeros(hidden, hidden, device=device), 0
    for matrix in matrices:
        for part in _parts(matrix):
            part = part.to(device).float()
            columns += int((part != 0).any(dim=0).sum())
            for i in range(0, hidden, ROWS):
                gram[i : i + ROWS, i:].addmm_(part[i : i + ROWS], part[i:].T)
    for i in range(0, hidden, ROWS):
        gram[i + ROWS :, i : i + ROWS] = gram[i : i + ROWS, i + ROWS :].T
    return gram, columns


def _parts(matrix: Tensor) -> Sequence[Tensor]:
    """Blocks of columns; of wide matrices of large models some, over their whole width."""
    hidden, width = matrix.shape
    if hidden < LARGE or width <= ENOUGH * hidden:
        return matrix.split(COLUMNS, dim=1)
    blocks = matrix.split(hidden // 8, dim=1)
    wanted = ENOUGH * 8
    return [blocks[i * len(blocks) // wanted] for i in range(wanted)]


def smallest_pairs(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest eigenvalues of a positive semidefinite matrix, rising, and their vectors.

    The first few are exact to float32; the later ones come out a few percent too large.

    Args:
        gram: float32 [hidden, hidden]; left as it was.
        count: How many, at most 2/3 of `BLOCK` * `STEPS`.

    Returns:
        float64 [count] and float32 [hidden, count].
    """
    if len(gram) <= DENSE:
        values, vectors = torch.linalg.eigh(gram.double())
        return values[:count], vectors[:, :count].float()
    for dtype in (torch.float32, torch.float64):
        matrix = gram.to(dtype)
        kept = matrix.diagonal().clone()
        matrix.diagonal().add_(SHIFT * kept.mean())  # in place: a copy is a quarter of a gigabyte
        factor, failed = torch.linalg.cholesky_ex(matrix)
        matrix.diagonal().copy_(kept)
        if int(failed) == 0:
            basis = _krylov(factor)
            values, turned = torch.linalg.eigh((basis.T @ (matrix @ basis)).double())
            return values[:count], (basis @ turned[:, :count].to(dtype)).float()
    values, vectors = torch.linalg.eigh(gram.double())
    return values[:count], vectors[:, :count].float()


def _krylov(factor: Tensor) -> Tensor:
    """An orthonormal basis [hidden, BLOCK * STEPS] of what inverse iteration passes through."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(len(factor), BLOCK, generator=generator).to(factor)
    basis = block.new_empty(len(factor), BLOCK * STEPS)
    for step in range(STEPS):
        known = basis[:, : step * BLOCK]
        if step:
            block = torch.cholesky_solve(block, factor)
        for _ in range(2):  # once leaves what rounding made of nearly parallel vectors
            block = torch.linalg.qr(block - known @ (known.T @ block))[0]
        basis[:, step * BLOCK : (step + 1) * BLOCK] = block
    return basis

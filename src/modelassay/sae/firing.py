"""Which features fire at which tokens: kept sparse, for nothing dense of tokens x width fits.

What an SAE makes of the tokens that a model has read, and how well it explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.sae.files import SAE

TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class Firing:
    """What an SAE's features did at tokens."""

    values: Any
    """Sparse [token, feature], by columns."""
    explained: float
    """Share of the variance that the reconstruction explains."""


@torch.inference_mode()
def fire(sae: SAE, activations: Tensor) -> Firing:
    """Runs an SAE at tokens.

    Args:
        sae: The SAE.
        activations: float32 [token, hidden], the output of its layer.
    """
    from scipy.sparse import coo_matrix, vstack

    module = sae.module
    parts, error = [], 0.0
    for rows in activations.split(TOKENS_AT_ONCE):
        fired = module.encode(rows.to(module.device))
        error += float((module.decode(fired).to(rows) - rows).double().square().sum())
        at = fired.nonzero(as_tuple=True)
        entries = (fired[at].double().cpu(), [axis.cpu() for axis in at])
        parts.append(coo_matrix(entries, shape=fired.shape))
    spread = float((activations - activations.mean(dim=0)).double().square().sum())
    return Firing(vstack(parts, format="csc"), 1 - error / max(spread, 1e-12))


def mean_by_owner(values: Any, tokens: np.ndarray, owners: np.ndarray, n_owners: int) -> Any:
    """Mean of features over the tokens of each prompt.

    Args:
        values: Sparse [token, feature].
        tokens: int [kept], which tokens are looked at.
        owners: int [kept], the prompt that each of them is in.
        n_owners: Prompts.

    Returns:
        Sparse [prompt, feature], by columns.
    """
    from scipy.sparse import csr_matrix

    weights = (1 / np.bincount(owners)[owners], (owners, tokens))
    return (csr_matrix(weights, shape=(n_owners, values.shape[0])) @ values).tocsc()

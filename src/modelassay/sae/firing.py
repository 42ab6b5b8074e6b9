"""Which features fire at which tokens: kept sparse, for nothing dense of tokens x width fits.

What an SAE makes of the tokens that a model has read, and how well it explains them. An SAE
explains what it reads; a transcoder reads what an MLP is given and explains what that puts out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.models import LoadedModel
from modelassay.models.components import find_components
from modelassay.reading.activations import Position, read_activations
from modelassay.reading.prompts import Encoded
from modelassay.sae.files import SAE

TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class Firing:
    """What an SAE's features did at tokens."""

    values: Any
    """Sparse [token, feature], by columns."""
    explained: float
    """Share of the variance that the reconstruction explains."""


@dataclass(frozen=True)
class Read:
    """What a model makes of prompts, where an SAE reads."""

    given: Tensor
    """float32 [prompt or token, hidden], what the SAE reads."""
    made: Tensor
    """The same, what it takes apart."""
    offsets: tuple[int, ...] | None
    """Of tokens: rows offsets[p]:offsets[p + 1] are those of prompt p."""


def read_for(
    model: LoadedModel,
    sae: SAE,
    prompts: Sequence[Encoded],
    *,
    position: Position = "last",
    batch_tokens: int | None = None,
) -> Read:
    """Reads prompts where an SAE does.

    Args:
        model: A model that it belongs to.
        sae: An SAE or a transcoder.
        prompts: Token ids.
        position: As of `read_activations`.
        batch_tokens: Upper bound on tokens in a batch.

    Raises:
        InputError: see `read_activations`.
    """
    sites = ()
    if sae.transcoder:
        components = find_components(model.network)
        sites = (components.given[sae.part], components.site(sae.part))
    read = read_activations(
        model, prompts, [sae.layer], position=position, sites=sites, batch_tokens=batch_tokens
    )
    given, made = (1, 2) if sae.transcoder else (0, 0)
    return Read(read.values[:, given], read.values[:, made], read.offsets)


@torch.inference_mode()
def fire(sae: SAE, activations: Tensor, made: Tensor | None = None) -> Firing:
    """Runs an SAE at tokens.

    Args:
        sae: The SAE.
        activations: float32 [token, hidden], what it reads.
        made: The same, what it takes apart; None for what it reads.
    """
    from scipy.sparse import coo_matrix, vstack

    module = sae.module
    skip = getattr(module, "W_skip", None)
    parts, error = [], 0.0
    made = activations if made is None else made
    for rows, whole in zip(
        activations.split(TOKENS_AT_ONCE), made.split(TOKENS_AT_ONCE), strict=True
    ):
        given = rows.to(module.device)
        fired = module.encode(given)
        rebuilt = module.decode(fired)
        if skip is not None:  # what a transcoder hands on of all that it reads
            rebuilt = rebuilt + given @ skip.T
        error += float((rebuilt.to(whole) - whole).double().square().sum())
        at = fired.nonzero(as_tuple=True)
        entries = (fired[at].double().cpu(), [axis.cpu() for axis in at])
        parts.append(coo_matrix(entries, shape=fired.shape))
    spread = float((made - made.mean(dim=0)).double().square().sum())
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

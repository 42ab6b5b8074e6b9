"""How active features are on tokens that were read, and what they are about.

Activations of all features are never held for all tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.audit.work import Work
from modelassay.diff.reading import Matched
from modelassay.sae import Dictionary, FeatureLabel

TOKENS_AT_ONCE = 512
TOP_TOKENS = 8


@torch.inference_mode()
def prompt_means(
    dictionary: Dictionary, states: Tensor, matched: Matched, keep: np.ndarray
) -> np.ndarray:
    """float32 [prompt, width], mean activation over the kept tokens of each prompt."""
    sae, owners = dictionary.sae, matched.owners()
    kept = torch.from_numpy(keep)
    sums = torch.zeros(len(matched.lengths), dictionary.width)
    for start in range(0, len(states), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        chosen = kept[part]
        if chosen.any():
            found = sae.encode(states[part][chosen].to(sae.device)).float().cpu()
            sums.index_add_(0, owners[part][chosen], found)
    counts = torch.bincount(owners[kept], minlength=len(sums)).clamp_min(1)
    return (sums / counts[:, None]).numpy()


@torch.inference_mode()
def feature_activations(
    dictionary: Dictionary, states: Tensor, features: Sequence[int]
) -> np.ndarray:
    """float32 [token, feature] of some features."""
    sae = dictionary.sae
    parts = [
        sae.encode(rows.to(sae.device))[:, list(features)].float().cpu()
        for rows in states.split(TOKENS_AT_ONCE)
    ]
    return torch.cat(parts).numpy()


def top_tokens(
    dictionary: Dictionary,
    states: Tensor,
    keep: np.ndarray,
    tokens: Sequence[str],
    features: Sequence[int],
) -> dict[int, list[str]]:
    """The tokens on which each feature fires most, each once."""
    if not features:
        return {}
    values = np.where(keep[:, None], feature_activations(dictionary, states, features), 0)
    found = {}
    for j, feature in enumerate(features):
        order = np.argsort(-values[:, j], kind="stable")
        fired = (tokens[t] for t in order if values[t, j] > 0)
        found[feature] = list(dict.fromkeys(fired))[:TOP_TOKENS]
    return found


def label_rows(work: Work, features: Sequence[int]) -> list[dict[str, Any]]:
    """Features with what they are about, each once."""
    distinct = list(dict.fromkeys(features))
    return [label_row(label) for label in work.labels(distinct).of_many(distinct)]


def label_row(label: FeatureLabel) -> dict[str, Any]:
    """A label in a list: whose it is, and how far to believe it."""
    reliability = label.reliability
    return {
        "feature": label.feature,
        "label": label.text,
        "label_source": label.source,
        "reliability": None if reliability is None else reliability.value,
        "reliability_interval": None if reliability is None else reliability.interval,
    }

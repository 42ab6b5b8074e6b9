"""Activation signatures: what a model makes of fixed probe prompts, small enough to publish.

For each of a few layers spread over the whole depth, the last-token activations of the probes are
centred (what all prompts share, and what massive activations add, drops out) and projected on
directions drawn from a fixed seed, which keeps distances (Johnson & Lindenstrauss 1984) and gives
models of any width the same size. The refusal log-odds after each probe are kept beside them.

Two signatures of the same architecture are compared by relative distance: 0 for the same
activations, about √2 for unrelated ones. Probes are public prompts that come with modelassay, so a
signature tells nothing that its reader does not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelassay.data.concepts import shipped_concepts
from modelassay.reading.prompts import Encoded

PROBE_CONCEPT = "harmful_content"
N_PROBES = 64
DIMENSIONS = 128
N_DEPTHS = 6
SEED = 20_26


@dataclass(frozen=True)
class Signature:
    """Projected activations of the probes at several layers."""

    depths: tuple[int, ...]
    """Layer indices, the last layer among them."""
    values: Tensor
    """float32 [depth, probe, dimension], centred over probes."""
    log_odds: Tensor
    """float32 [probe], refusal log-odds of the next token in nats."""
    probes_sha256: str
    """Of the token ids read: two signatures compare only where the models read the same tokens."""


def probe_texts() -> list[str]:
    """The probes: harmful prompts and their harmless twins."""
    pairs = shipped_concepts()[PROBE_CONCEPT].pairs[: N_PROBES // 2]
    return [text for pair in pairs for text in (pair.positive, pair.negative)]


def make_signature(
    activations: Tensor, depths: Sequence[int], log_odds: Tensor, probes: Sequence[Encoded]
) -> Signature:
    """Projects the probes' activations.

    Args:
        activations: [probe, depth, hidden].
        depths: Layer index of each entry of the second axis.
        log_odds: [probe].
        probes: What was read.
    """
    centred = activations.double() - activations.double().mean(dim=0)
    hidden = centred.shape[-1]
    # RandomState's stream is frozen for ever; those of numpy's and torch's newer generators aren't.
    directions = np.random.RandomState(SEED).standard_normal((hidden, DIMENSIONS))
    projected = centred @ torch.from_numpy(directions / np.sqrt(DIMENSIONS))
    tokens = repr([probe.ids for probe in probes]).encode()
    return Signature(
        depths=tuple(depths),
        values=projected.float().movedim(1, 0).contiguous(),
        log_odds=log_odds.float(),
        probes_sha256=hashlib.sha256(tokens).hexdigest(),
    )


def signature_distances(a: Signature, b: Signature) -> dict[int, float]:
    """Relative distance at each layer: ‖a - b‖ / √(‖a‖ ‖b‖), Frobenius norms over probes.

    Args:
        a: Of the baseline.
        b: Of the candidate, with the same layers and probes.
    """
    distances = {}
    for depth, x, y in zip(a.depths, a.values.double(), b.values.double(), strict=True):
        scale = (x.norm() * y.norm()).sqrt().clamp_min(1e-12)
        distances[depth] = float((x - y).norm() / scale)
    return distances

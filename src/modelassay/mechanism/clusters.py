"""Recurring mechanisms: attacks that take refusals away in the same components.

Attacks are joined by the correlation of their profiles: what each component no longer writes for
refusal, in units of what neutral rewordings change of it. How far the groups are to be believed is
told by halves: each half of the requests makes groups of its own, and two attacks that one half
joins, or keeps apart, ought to be so in the other (Hubert & Arabie's adjusted Rand index: 0 is
chance, 1 the same groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

JOINED = 0.5
"""Mean correlation of profiles from which groups of attacks are joined."""
NAMED = 3
"""Components that a group is described by."""


@dataclass(frozen=True)
class AttackGroup:
    """Attacks that change the same components."""

    attacks: tuple[str, ...]
    components: tuple[str, ...]
    """That write less for refusal than on the plain request, the most changed first."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class AttackGroups:
    """Attacks by what they change."""

    groups: tuple[AttackGroup, ...]
    """The largest first."""
    stability: float | None
    """Adjusted Rand index between groups made of each half of the requests, over attacks on two or
    more; None of fewer than three of these."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"groups": [group.to_dict() for group in self.groups], "stability": self.stability}


def group_attacks(
    profiles: Mapping[str, np.ndarray], components: Sequence[str]
) -> AttackGroups | None:
    """Groups attacks by their profiles.

    Args:
        profiles: By attack, [request, component]: how much less each component writes for refusal,
            in units of its spread under neutral rewordings.
        components: Names along the second axis.

    Returns:
        The groups, or None of fewer than three attacks.
    """
    from sklearn.metrics import adjusted_rand_score

    names = list(profiles)
    if len(names) < 3:
        return None
    means = np.stack([profiles[name].mean(axis=0) for name in names])
    labels = _cluster(means)
    stability = None
    several = [name for name in names if len(profiles[name]) >= 2]
    if len(several) >= 3:
        halves = [
            _cluster(np.stack([profiles[name][half::2].mean(axis=0) for name in several]))
            for half in range(2)
        ]
        stability = float(adjusted_rand_score(*halves))
    found = []
    for label in set(labels.tolist()):
        inside = labels == label
        mean = means[inside].mean(axis=0)
        first = [int(i) for i in np.argsort(-mean)[:NAMED] if mean[i] > 0]
        found.append(
            AttackGroup(
                tuple(name for name, own in zip(names, inside, strict=True) if own),
                tuple(components[i] for i in first),
            )
        )
    ordered = sorted(found, key=lambda group: (-len(group.attacks), group.attacks))
    return AttackGroups(tuple(ordered), stability)


def _cluster(rows: np.ndarray) -> np.ndarray:
    """Groups [row] by average linkage of correlations."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    distances = pdist(rows - 1e-12 * np.arange(rows.shape[1]), metric="correlation")
    return fcluster(linkage(np.nan_to_num(distances, nan=1.0), "average"), 1 - JOINED, "distance")

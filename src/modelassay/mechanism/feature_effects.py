"""What features do for refusals: estimated for all, tried out for the most influential ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modelassay.mechanism.feature_runs import FeatureRuns, matched_features, rank_p_value
from modelassay.mechanism.features_report import (
    FeatureEffect,
    InfluentialFeature,
    SuppressedPoint,
)
from modelassay.mechanism.separating import HALVES, Q_LEVEL
from modelassay.progress import OnPhase, phase_of, told
from modelassay.statistics import benjamini_hochberg, bootstrap_interval, mean_change

TRIED = 3
"""Of each type, the most influential, that are suppressed and boosted."""
N_RANDOM = 60
"""Random features beside each: a lone feature beyond all of them has q = 3 / 61 < 0.05."""
LEAST_RANDOM = 20
LISTED = 10
SIZES = (1, 2, 4, 8, 16)
N_DRAWS = 5
"""Random sets beside each point of the curve."""
RANKS, SCORES = HALVES
"""Pairs that rank features whatever they are about, and pairs on which these are scored."""
SEED = 0


class Effects:
    """What features do for refusals, tried out as it is asked for."""

    def __init__(self, runs: FeatureRuns, on_progress: OnPhase) -> None:
        """Estimates the influence of all features.

        Args:
            runs: What they are tried with.
            on_progress: Told (phase, done, total).

        Raises:
            InputError: the model's weights give no gradients.
        """
        self.runs, self.on_progress = runs, on_progress
        self.density = runs.density()
        self.influence, whole = runs.influence(phase_of(on_progress, "influence"))
        self.mean = self.influence.mean(axis=0)
        self.share = float(self.mean.sum() / whole.mean()) if whole.mean() else None
        self.order = np.random.default_rng(SEED).permutation(len(self.mean))
        """All features, as the random ones are drawn: the same for all, which saves passes."""

    def of_type(self, features: Sequence[int], beyond: np.ndarray) -> dict[int, FeatureEffect]:
        """What features of one type do; the most influential of them are tried out.

        Args:
            features: Those that are listed.
            beyond: Those among which they are ranked.
        """
        ranks = ranks_of(self.mean, beyond)
        p_values = np.array([self._rank_p(feature) for feature in features])
        q_values = benjamini_hochberg(p_values)
        found = {
            feature: FeatureEffect(
                influence=mean_change(self.influence[:, feature]),
                rank=ranks[feature],
                density=float(self.density[feature]),
                p_value=float(p),
                q_value=float(q),
            )
            for feature, p, q in zip(features, p_values, q_values, strict=True)
        }
        fire = [feature for feature in features if self.density[feature] > 0]
        tried = sorted(fire, key=lambda feature: -abs(self.mean[feature]))[:TRIED]
        tested = {
            feature: self._try(found[feature], feature, tried)
            for feature in told(tried, phase_of(self.on_progress, "interventions"))
        }
        p_of_both = {f: e.effect_p_value for f, e in tested.items() if e.effect_p_value is not None}
        corrected = benjamini_hochberg(np.array(list(p_of_both.values())))
        for feature, q in zip(p_of_both, corrected, strict=True):
            effect = replace(tested[feature], effect_q_value=float(q))
            tested[feature] = replace(effect, confirmed=bool(q < Q_LEVEL) and _agree(effect))
        return found | tested

    def _rank_p(self, feature: int) -> float:
        return rank_p_value(self.mean[feature], self.mean[matched_features(self.density, feature)])

    def _try(self, effect: FeatureEffect, feature: int, tried: Sequence[int]) -> FeatureEffect:
        own = self.runs.effects(feature)
        effect = replace(effect, suppressed=mean_change(own[0]), boosted=mean_change(own[1]))
        if effect.q_value >= Q_LEVEL:  # random features have as much influence: none is run
            return replace(effect, confirmed=False)
        matched = set(matched_features(self.density, feature).tolist()) - set(tried)
        random = [int(f) for f in self.order if int(f) in matched][:N_RANDOM]
        if len(random) < LEAST_RANDOM:
            return effect
        others = [self.runs.effects(other) for other in random]
        p_value = max(
            rank_p_value(own[way].mean(), np.array([other[way].mean() for other in others]))
            for way in (0, 1)
        )
        return replace(effect, n_random=len(random), effect_p_value=p_value)

    def by_influence(self) -> np.ndarray:
        """All features, those first that raise the refusal log-odds most on every second pair."""
        return np.argsort(-self.influence[RANKS].mean(axis=0), kind="stable")

    def influential(self, types: Mapping[str, np.ndarray]) -> tuple[InfluentialFeature, ...]:
        """The features that do most for refusals, whatever they are about.

        Args:
            types: By type, the features that tell its sides apart.
        """
        activation = self.runs.activation()
        fires = np.flatnonzero(self.density)
        ranks = ranks_of(activation, fires)
        return tuple(
            InfluentialFeature(
                feature=feature,
                label=None,
                influence=mean_change(self.influence[SCORES, feature]),
                activation=float(activation[feature]),
                rank=ranks[feature],
                types=tuple(name for name, beyond in types.items() if feature in beyond),
            )
            for feature in self.by_influence()[:LISTED].tolist()
            if self.density[feature] > 0
        )

    def agreement(self) -> float | None:
        """Spearman's correlation of influence and activation, over all features that fire."""
        fires = self.density > 0
        return rank_correlation(self.mean[fires], self.runs.activation()[fires])

    def curve(self) -> tuple[SuppressedPoint, ...]:
        """What is left of the twins' difference without the most influential features."""
        order = self.by_influence()
        rng = np.random.default_rng(SEED)
        swapper = self.runs.swapper
        whole = (swapper.clean() - swapper.clean(harmless=True))[SCORES]

        def gap(features: Sequence[int]) -> np.ndarray:
            sides = (self.runs.suppressed(features, harmless=side) for side in (False, True))
            return np.subtract(*sides)[SCORES]

        found = []
        sizes = [size for size in SIZES if size <= int((self.density > 0).sum())]
        for size in told(sizes, phase_of(self.on_progress, "suppression")):
            top = order[:size].tolist()
            draws = [draw for _ in range(N_DRAWS) if (draw := self._draw(top, rng))]
            left = gap(top)
            found.append(
                SuppressedPoint(
                    size=size,
                    left=float(left.mean() / whole.mean()),
                    left_interval=bootstrap_interval(left, whole, _ratio_of_means),
                    random_left=tuple(float(gap(draw).mean() / whole.mean()) for draw in draws),
                )
            )
        return tuple(found)

    def _draw(self, features: Sequence[int], rng: np.random.Generator) -> list[int]:
        """As many others, each firing about as often as its own; none where there are too few."""
        drawn: list[int] = []
        for feature in features:
            matched = np.setdiff1d(
                matched_features(self.density, feature), [*features, *drawn], assume_unique=True
            )
            if not len(matched):
                return []
            drawn.append(int(rng.choice(matched)))
        return drawn


def _agree(effect: FeatureEffect) -> bool:
    """Whether both interventions move refusals the same way, by their intervals."""
    assert effect.suppressed is not None and effect.boosted is not None  # noqa: PT018, S101
    intervals = [effect.suppressed.interval, effect.boosted.interval]
    above = all(each is not None and each[0] > 0 for each in intervals)
    below = all(each is not None and each[1] < 0 for each in intervals)
    return above or below


def _ratio_of_means(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return x.mean(axis=axis) / y.mean(axis=axis)


def ranks_of(values: np.ndarray, among: np.ndarray) -> dict[int, int]:
    """The place of each of some features by the size of its value, from 1."""
    order = sorted(among.tolist(), key=lambda feature: -abs(float(values[feature])))
    return {feature: place for place, feature in enumerate(order, start=1)}


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's, of sizes; None of fewer than three or where nothing differs."""
    from scipy.stats import spearmanr

    if len(x) < 3 or not (np.ptp(np.abs(x)) and np.ptp(np.abs(y))):
        return None
    found: Any = spearmanr(np.abs(x), np.abs(y))
    return float(found.statistic)

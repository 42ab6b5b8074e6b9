"""Which attacks work? Foretold from what is read before the response, scored on unseen families.

A logistic regression on readings of the attacked prompt is fitted on all families of attacks but
one and foretells that one; every attack is foretold once. Refusal log-odds alone stand beside it,
which need no fit: readings inside are worth their name only where they tell more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelassay.mechanism.attacked import InsideReading
from modelassay.statistics import rank_auroc, rank_auroc_interval

FEWEST_FAMILIES = 3
FEWEST = 5
"""Attacks that work, and that do not, without which nothing is foretold."""
READ = ("harm_at_request", "harm_at_message", "refusal", "log_odds")


@dataclass(frozen=True)
class AttackPrediction:
    """How well readings tell attacks that work from those that do not."""

    auroc: float
    """Of attacks of families that were left out of the fit."""
    interval: tuple[float, float]
    """95%, resampling attacks."""
    log_odds_auroc: float
    """Of the refusal log-odds alone."""
    log_odds_interval: tuple[float, float]
    by_family: dict[str, float | None]
    """Of each family while it was left out; None where all of its attacks do the same."""
    n: int
    n_worked: int
    n_attacks: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def predict_attacks(
    readings: Sequence[InsideReading],
    worked: Sequence[bool],
    families: Sequence[str],
    attacks: Sequence[str],
) -> AttackPrediction | str:
    """Foretells which attacked prompts get past the refusal, a family at a time.

    Args:
        readings: Of attacked prompts.
        worked: Whether each got past it.
        families: Of its attack.
        attacks: Its attack; prompts of one attack are not independent.

    Returns:
        The scores, or why there are none.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    truth, of = np.array(worked, dtype=bool), np.array(families)
    names = list(dict.fromkeys(families))
    if len(names) < FEWEST_FAMILIES:
        return f"It takes {FEWEST_FAMILIES} families of attacks to leave one out."
    if min(int(truth.sum()), int((~truth).sum())) < FEWEST:
        return (
            f"{int(truth.sum())} of {len(truth)} attacked prompts got past the refusal; it takes"
            f" {FEWEST} that do and {FEWEST} that do not."
        )
    values = np.array([[getattr(reading, name) for name in READ] for reading in readings])
    risk = np.full(len(truth), np.nan)
    for name in names:
        rest, held = of != name, of == name
        if truth[rest].all() or not truth[rest].any():
            return f"Without the family {name} all attacks do the same, so nothing can be fitted."
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(values[rest], truth[rest])
        risk[held] = model.decision_function(values[held])
    groups = np.unique(np.array(attacks), return_inverse=True)[1]
    alone = -values[:, READ.index("log_odds")]
    auroc, interval = rank_auroc_interval(risk, truth, groups)
    alone_auroc, alone_interval = rank_auroc_interval(alone, truth, groups)
    return AttackPrediction(
        auroc=auroc,
        interval=interval,
        log_odds_auroc=alone_auroc,
        log_odds_interval=alone_interval,
        by_family={
            name: None
            if truth[of == name].all() or not truth[of == name].any()
            else rank_auroc(risk[of == name], truth[of == name])
            for name in names
        },
        n=len(truth),
        n_worked=int(truth.sum()),
        n_attacks=len(np.unique(groups)),
    )

"""Which layers to read: a probe of every single one, and of some together, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelassay.data.labelled import (
    At,
    LabelledExchange,
    draw,
    prompt_groups,
    require_classes,
    rows_at,
)
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.layers import resolve_layers
from modelassay.probes.evaluating import CombinationScore, LayerScore, Sweep
from modelassay.probes.features import pooled_features
from modelassay.probes.fitting import FITTERS, Array, fit_calibrated
from modelassay.progress import OnProgress
from modelassay.statistics import binary_metrics, rank_auroc

MOST_COMBINED = 8
"""Layers that a sweep puts together at most; each more costs a fit of every layer."""


def sweep_layers(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    kind: str = "logistic",
    layers: Sequence[int] | None = None,
    max_examples: int | None = None,
    combine: int = 1,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Scores a probe of every single layer, and of layers together, from one pass over the data.

    Args:
        model: The model to watch.
        rows: Labelled exchanges.
        at: Where the probes read.
        kind: One of `FITTERS`.
        layers: Layers to try, negative ones counted from the end; None for all.
        max_examples: As in `train_head`.
        combine: Most layers that one probe reads: the best single layer gets the one that helps it
            most, and so on.
        on_progress: Told how far reading is.

    Raises:
        InputError: as `train_head`, or there are fewer layers to combine.
    """
    check_sweep(kind, combine, layers)
    chosen = None if layers is None else resolve_layers(layers, len(model.layers))
    check_sweep(kind, combine, chosen or range(len(model.layers)))
    rows = rows_at(rows, at)
    require_classes(rows, (True, False), "A sweep")
    n_rows = len(rows)
    rows = [rows[i] for i in draw(rows, max_examples)]
    groups = prompt_groups([row.prompt for row in rows])
    unsafe = np.array([row.unsafe for row in rows])
    features = pooled_features(model, rows, at, layers=chosen, on_progress=on_progress)
    of = features.row

    def risk(places: Sequence[int]) -> Array:
        x = features.values[:, list(places)].float().flatten(1).numpy()
        return fit_calibrated(x, unsafe[of], groups[of], FITTERS[kind]).risk[features.last]

    scores = [
        LayerScore(layer, binary_metrics(risk([i]), unsafe, groups))
        for i, layer in enumerate(features.layers)
    ]
    together = [int(np.argmax([each.metrics.auroc for each in scores]))]
    combinations = []
    for _ in range(1, combine):
        others = [i for i in range(len(scores)) if i not in together]
        risks = [risk([*together, i]) for i in others]
        best = int(np.argmax([rank_auroc(each, unsafe) for each in risks]))
        together.append(others[best])
        read = tuple(features.layers[i] for i in together)
        combinations.append(CombinationScore(read, binary_metrics(risks[best], unsafe, groups)))
    drawn_from = n_rows if len(rows) < n_rows else None
    return Sweep(tuple(scores), drawn_from, tuple(combinations))


def check_sweep(kind: str, combine: int = 1, layers: Sequence[int] | None = None) -> None:
    """Refuses kinds that a sweep is not made of, and combinations that are none.

    Args:
        kind: As in `sweep_layers`.
        combine: As there.
        layers: Those to try, where they are known.

    Raises:
        InputError: says what a sweep can be.
    """
    if kind not in FITTERS:
        raise InputError(f"A sweep is of {' or '.join(FITTERS)}, not {kind!r}.")
    if not 1 <= combine <= MOST_COMBINED:
        raise InputError(f"--combine is 1 to {MOST_COMBINED} layers, not {combine}.")
    if layers is not None and combine > len(layers):
        raise InputError(f"--combine {combine} needs as many layers, and there are {len(layers)}.")

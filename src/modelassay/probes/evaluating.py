"""A probe's scores on any labelled data, read as a guard reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelassay.data.labelled import At, LabelledExchange, prompt_groups, require_classes, rows_at
from modelassay.models import LoadedModel
from modelassay.probes.features import read_spans
from modelassay.probes.record import Probe
from modelassay.probes.report import Evaluation
from modelassay.probes.thresholds import span_risks
from modelassay.progress import OnProgress
from modelassay.statistics import (
    binary_metrics,
    cluster_interval,
    rank_auroc,
    wilson_interval,
)


def evaluate_probe(
    probe: Probe,
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Scores a probe.

    Args:
        probe: The probe.
        model: The model that it belongs to.
        rows: Labelled exchanges.
        at: Which head to score.
        on_progress: Told how far reading is.

    Raises:
        InputError: the probe belongs to another model, has no such head, or a class is missing.
    """
    probe.check_belongs_to(model)
    head = probe.head(at)
    rows = rows_at(rows, at)
    require_classes(rows, (True, False), "Scoring a probe")
    spans = read_spans(model, rows, at, head.layers, on_progress=on_progress)
    risks = span_risks(spans, [head], np.zeros(len(rows), dtype=int))
    unsafe = np.array([row.unsafe for row in rows])
    groups = prompt_groups([row.prompt for row in rows])
    blocked = risks.highest >= head.block
    n_safe, n_unsafe = int((~unsafe).sum()), int(unsafe.sum())
    k_safe, k_unsafe = int(blocked[~unsafe].sum()), int(blocked[unsafe].sum())
    return Evaluation(
        probe=probe.name,
        model=model.info.id,
        at=at,
        metrics=binary_metrics(risks.final, unsafe, groups),
        block_rate=k_safe / n_safe,
        block_interval=wilson_interval(k_safe, n_safe),
        detected_rate=k_unsafe / n_unsafe,
        detected_interval=wilson_interval(k_unsafe, n_unsafe),
        by_source=_by_source(risks.final, rows, unsafe, groups),
    )


def _by_source(
    risk: np.ndarray, rows: Sequence[LabelledExchange], unsafe: np.ndarray, groups: np.ndarray
) -> dict[str, dict[str, Any]]:
    sources = np.array([row.source for row in rows])
    found: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(sources.tolist()):
        own = sources == source
        both = len(set(unsafe[own].tolist())) == 2
        use = own if both else own | (unsafe != unsafe[own][0])
        score, truth, group = risk[use], unsafe[use], groups[use]
        interval = cluster_interval(
            lambda i, s=score, t=truth: rank_auroc(s[i], t[i]), truth, group
        )
        found[source] = {
            "auroc": rank_auroc(score, truth),
            "interval": interval,
            "n": int(own.sum()),
        }
    return dict(sorted(found.items(), key=lambda item: item[1]["auroc"]))

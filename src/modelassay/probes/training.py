"""Training a probe: features once, a fit per kind, metrics on prompts that no fit saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from modelassay.activations import OnProgress
from modelassay.errors import InputError
from modelassay.labelled import At, LabelledExchange, data_hash, prompt_groups, require_classes
from modelassay.metrics import BinaryMetrics, binary_metrics, cluster_interval, rank_auroc
from modelassay.models import LoadedModel
from modelassay.probes.attention import fit_attention
from modelassay.probes.features import (
    MAX_ANSWER_TOKENS,
    POOLINGS,
    Features,
    read_features,
    read_tokens,
)
from modelassay.probes.fitting import FITTERS, Fitter, fit_calibrated, leave_one_source_out
from modelassay.probes.head import Head, Pooling
from modelassay.probes.record import (
    HeadRecord,
    Probe,
    ProbedModel,
    ProbeRecord,
    SourceMetrics,
    TrainedOn,
)

Array = np.ndarray
KINDS = (*FITTERS, "attention")
DEPTHS = (1 / 3, 8 / 15, 11 / 15)
"""Relative depths of the blocks that a probe reads unless told otherwise; together they are better
than any one of them on every source that was tried (docs/guard.md)."""
BLOCK_RATE, PAUSE_RATE = 0.003, 0.05
"""Shares of harmless held-out prompts, or answers, that may reach the two thresholds. A pause costs
a question to the classifier; a block is final."""
NO_WEIGHTS = "0" * 64  # until the weights are on disk


@dataclass(frozen=True)
class TrainedHead:
    """A head and what is known of it."""

    head: Head
    record: HeadRecord


def default_layers(n_layers: int) -> tuple[int, ...]:
    """The blocks at `DEPTHS`."""
    return tuple(dict.fromkeys(min(n_layers - 1, round(depth * n_layers)) for depth in DEPTHS))


def train_head(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    kind: str = "logistic",
    layers: Sequence[int] | None = None,
    poolings: Sequence[Pooling] = POOLINGS,
    group_by: Sequence[str] | None = None,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    on_progress: OnProgress | None = None,
) -> TrainedHead:
    """Fits a head and scores it on prompts that it was not fitted on.

    Args:
        model: The model that it will watch.
        rows: Labelled exchanges.
        at: Where it reads.
        kind: One of `KINDS`.
        layers: Blocks to read; None for those at `DEPTHS` (of attention, the middle one).
        poolings: For kinds other than attention.
        group_by: What stands for each row's prompt in splits; None for the prompt itself.
        max_answer_tokens: Where answers are cut.
        on_progress: Told how far reading is.

    Raises:
        InputError: an unknown kind, a layer out of range, or data without both classes.
    """
    if kind not in KINDS:
        raise InputError(f"Unknown kind {kind!r}; choose {', '.join(KINDS)}.")
    require_classes(rows, (True, False), "A probe")
    chosen = tuple(layers) if layers else default_layers(len(model.blocks))
    check_layers(chosen, len(model.blocks))
    groups = prompt_groups(list(group_by) if group_by else [row.prompt for row in rows])
    unsafe = np.array([row.unsafe for row in rows])
    if kind == "attention":
        chosen = (chosen[len(chosen) // 2],)
        states = read_tokens(
            model,
            rows,
            at,
            chosen[0],
            max_answer_tokens=max_answer_tokens,
            on_progress=on_progress,
        )
        fit = fit_attention(states, unsafe, groups)
        width = model.info.hidden_size
        weight = torch.from_numpy(fit.weight).float().reshape(1, 1, width)
        final = highest = fit.risk
        head = _head(
            at, kind, chosen, ("attention",), weight, fit.bias, highest, unsafe, fit.query[None]
        )
        left_out: dict[str, SourceMetrics] = {}
    else:
        features = read_features(
            model,
            rows,
            at,
            layers=chosen,
            max_answer_tokens=max_answer_tokens,
            on_progress=on_progress,
        )
        x = flat(features, poolings)
        of = features.row
        fit = fit_calibrated(x, unsafe[of], groups[of], FITTERS[kind])
        final = fit.risk[features.last]
        # A stream is blocked by its worst moment, so that is what thresholds are set on.
        highest = np.array([fit.risk[of == i].max() for i in range(len(rows))])
        shape = (len(chosen), len(poolings), model.info.hidden_size)
        weight = torch.from_numpy(fit.weight).float().reshape(shape)
        pools = tuple(poolings)
        head = _head(at, kind, chosen, pools, weight, fit.bias, highest, unsafe, None)
        left_out = _left_out(x[features.last], rows, unsafe, groups, FITTERS[kind])
    record = HeadRecord.model_validate(
        {
            "kind": kind,
            "layers": chosen,
            "poolings": head.poolings,
            "bias": head.bias,
            "pause": head.pause,
            "block": head.block,
            "block_rate": float((highest[~unsafe] >= head.block).mean()),
            "pause_rate": float((highest[~unsafe] >= head.pause).mean()),
            "metrics": binary_metrics(final, unsafe, groups).to_dict(),
            "left_out": left_out,
            "trained_on": _trained_on(rows),
        }
    )
    return TrainedHead(head, record)


def probe_record(
    model: LoadedModel, name: str, heads: Mapping[At, TrainedHead], *, model_id: str | None = None
) -> ProbeRecord:
    """The record of a probe of these heads, to be saved."""
    info = model.info
    return ProbeRecord(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=ProbedModel(
            id=model_id or info.id,
            revision=info.revision,
            architecture=info.architecture,
            n_layers=info.n_layers,
            hidden_size=info.hidden_size,
            weights_sha256=info.weights_sha256,
            organism=info.organism,
            dtype=info.dtype,
        ),
        heads={at: trained.record for at, trained in heads.items()},
        versions={
            name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")
        },
        weights_sha256=NO_WEIGHTS,
    )


def make_probe(model: LoadedModel, name: str, heads: Mapping[At, TrainedHead]) -> Probe:
    """A probe of these heads, as `save_probe` writes it."""
    return Probe(
        probe_record(model, name, heads), {at: trained.head for at, trained in heads.items()}
    )


@dataclass(frozen=True)
class LayerScore:
    """One row of a sweep."""

    layer: int
    metrics: BinaryMetrics


def sweep_layers(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    kind: str = "logistic",
    on_progress: OnProgress | None = None,
) -> list[LayerScore]:
    """Scores a probe of every single block, from one pass over the data.

    Raises:
        InputError: as `train_head`.
    """
    if kind not in FITTERS:
        raise InputError(f"A sweep is of {' or '.join(FITTERS)}, not {kind!r}.")
    require_classes(rows, (True, False), "A sweep")
    groups = prompt_groups([row.prompt for row in rows])
    unsafe = np.array([row.unsafe for row in rows])
    features = read_features(model, rows, at, on_progress=on_progress)
    of = features.row
    scores = []
    for i, layer in enumerate(features.layers):
        x = features.values[:, i].float().flatten(1).numpy()
        risk = fit_calibrated(x, unsafe[of], groups[of], FITTERS[kind]).risk[features.last]
        scores.append(LayerScore(layer, binary_metrics(risk, unsafe, groups)))
    return scores


def flat(features: Features, poolings: Sequence[Pooling]) -> Array:
    """float32 [sample, layer x pooling x hidden]."""
    kept = [POOLINGS.index(pooling) for pooling in poolings]
    return features.values[:, :, kept].float().flatten(1).numpy()


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Refuses blocks that a model does not have.

    Raises:
        InputError: names the range.
    """
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise InputError(f"Layers must lie in 0…{n_layers - 1}, got {list(layers)}.")
    if len(set(layers)) != len(layers):
        raise InputError(f"A layer is named twice in {list(layers)}.")


def _head(
    at: At,
    kind: str,
    layers: tuple[int, ...],
    poolings: tuple[Pooling, ...],
    weight: Tensor,
    bias: float,
    highest: Array,
    unsafe: Array,
    query: Tensor | None,
) -> Head:
    harmless = np.sort(highest[~unsafe])[::-1]

    def at_rate(rate: float) -> float:
        # Above the first one that may not reach it, but never at certainty, which would block none.
        return min(float(harmless[int(rate * len(harmless))]) + 1e-6, 1 - 1e-6)

    # Few rows that separate well would put both next to zero, and any other prompt above them.
    block = max(at_rate(BLOCK_RATE), 0.5)
    return Head(
        at,
        kind,
        layers,
        poolings,
        weight,
        bias,
        min(max(at_rate(PAUSE_RATE), 0.25), block),
        block,
        query,
    )


def _left_out(
    x: Array, rows: Sequence[LabelledExchange], unsafe: Array, groups: Array, fitter: Fitter
) -> dict[str, SourceMetrics]:
    sources = np.array([row.source for row in rows])
    if len(set(sources)) < 3:
        return {}
    found = {}
    for source, scores in leave_one_source_out(x, unsafe, groups, sources, fitter).items():
        own = (sources == source) & ~np.isnan(scores)
        kinds = set(unsafe[own].tolist())
        one = kinds.pop() if len(kinds) == 1 else None
        # Of a source with one class, the other class is that of held-out prompts of other sources.
        rest = ~np.isnan(scores) & (sources != source) & (unsafe == (not one))
        use = own if one is None else own | rest
        if len(set(unsafe[use].tolist())) < 2:
            continue
        score, truth, group = scores[use], unsafe[use], groups[use]
        interval = cluster_interval(
            lambda i, s=score, t=truth: rank_auroc(s[i], t[i]), truth, group
        )
        found[source] = SourceMetrics(
            auroc=rank_auroc(score, truth), interval=interval, n=int(own.sum()), unsafe=one
        )
    return found


def _trained_on(rows: Sequence[LabelledExchange]) -> TrainedOn:
    return TrainedOn(
        sha256=data_hash(rows),
        sources=dict(Counter(row.source for row in rows)),
        n_unsafe=sum(row.unsafe for row in rows),
        n_safe=sum(not row.unsafe for row in rows),
    )

"""A probe's scores on any labelled data, read as a guard reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelassay.data.fingerprints import drawn, told, unseen
from modelassay.data.labelled import (
    At,
    LabelledExchange,
    draw,
    prompt_groups,
    require_classes,
    rows_at,
)
from modelassay.models import LoadedModel
from modelassay.probes.features import read_spans
from modelassay.probes.head import block_rates, span_risks
from modelassay.probes.record import Probe, SourceMetrics
from modelassay.progress import OnProgress
from modelassay.report.base import Report
from modelassay.report.charts import LINE, PALETTE, error_bars, new_figure
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import share_text, with_interval
from modelassay.statistics import (
    BinaryMetrics,
    binary_metrics,
    rank_auroc,
    rank_auroc_interval,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EVALUATION_SCHEMA = "modelassay.probe-eval/1"
SWEEP_SCHEMA = "modelassay.probe-sweep/1"
MOST_SOURCES = 8  # in a terminal


@dataclass(frozen=True)
class Evaluation(Report):
    """How a probe does on data that it was not fitted on."""

    probe: str
    model: str
    at: At
    metrics: BinaryMetrics
    block_rate: float
    """Share of safe rows at or above the probe's own threshold; of responses, at any moment."""
    block_interval: tuple[float, float]
    detected_rate: float
    """Share of unsafe rows there."""
    detected_interval: tuple[float, float]
    by_source: dict[str, dict[str, Any]]
    """AUROC of each source's rows against the other class of all sources, worst first."""
    n_seen: int | None = None
    """Rows that were left out because the probe was fitted on their prompts; None if unknown."""
    drawn_from: int | None = None
    """Rows that these were drawn from, evenly over labels and sources; None where all were used."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the metrics at the top; schema `modelassay.probe-eval/1`."""
        own = {key: value for key, value in asdict(self).items() if key != "metrics"}
        return {"schema": EVALUATION_SCHEMA, **self.metrics.to_dict(), **own}

    def sections(self) -> list[Section]:
        """Scores on all rows, and the AUROC source by source."""
        m = self.metrics
        rates = [
            (f"TPR at {float(rate):.1%} FPR", share_text(tpr)) for rate, tpr in m.tpr_at_fpr.items()
        ]
        return [
            Section(
                "metrics",
                f"{self.probe} at the {self.at} of {self.model}",
                facts=[
                    ("rows", f"{m.n}, of {m.n_prompts} prompts{drawn(self.drawn_from)}"),
                    ("left out", told(self.n_seen)),
                    ("AUROC", with_interval(m.auroc, m.interval, ".3f")),
                    *rates,
                    ("calibration error", f"{m.calibration_error:.3f}"),
                    (
                        "at its own threshold",
                        f"{with_interval(self.detected_rate, self.detected_interval)} of unsafe and"
                        f" {with_interval(self.block_rate, self.block_interval)} of safe rows",
                    ),
                ],
            ),
            Section(
                "sources",
                "source by source",
                table=Table(
                    columns("source", "AUROC (95%)", "n", right=(1, 2)),
                    [
                        (source, with_interval(row["auroc"], row["interval"], ".3f"), str(row["n"]))
                        for source, row in self.by_source.items()
                    ],
                    records=self._records,
                    most=MOST_SOURCES,
                ),
                chart=self._chart,
            ),
        ]

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "source": source,
                "auroc": row["auroc"],
                "low": row["interval"][0],
                "high": row["interval"][1],
                "n": row["n"],
            }
            for source, row in self.by_source.items()
        ]

    def _chart(self) -> Figure:
        """AUROC of each source with its interval."""
        figure = new_figure("The probe, source by source", "AUROC", "")
        rows = list(self.by_source.values())
        values = [row["auroc"] for row in rows]
        figure.add_scatter(
            x=values,
            y=list(self.by_source),
            mode="markers",
            marker={"color": PALETTE[0], "size": 9},
            error_x=error_bars(values, [row["interval"] for row in rows]),
        )
        figure.add_vline(x=0.5, line=LINE)
        figure.update_yaxes(type="category", autorange="reversed", automargin=True)
        figure.update_layout(height=200 + 22 * len(rows), showlegend=False)
        return figure


@dataclass(frozen=True)
class LayerScore:
    """One row of a sweep."""

    layer: int
    metrics: BinaryMetrics


@dataclass(frozen=True)
class CombinationScore:
    """Layers that one probe reads together."""

    layers: tuple[int, ...]
    """The best single one first, then in the order in which they helped most."""
    metrics: BinaryMetrics


@dataclass(frozen=True)
class Sweep(Report):
    """A probe of every single layer, scored on prompts that it was not fitted on."""

    layers: tuple[LayerScore, ...]
    drawn_from: int | None = None
    """Rows that those it rests on were drawn from; None where all were used."""
    combinations: tuple[CombinationScore, ...] = ()
    """The best found of two layers, three and so on. Each is chosen by the score that it shows, so
    that a small gain may be luck."""

    @property
    def best(self) -> LayerScore:
        """The layer whose probe has the highest AUROC."""
        return max(self.layers, key=lambda each: each.metrics.auroc)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, schema `modelassay.probe-sweep/1`."""
        rows = [{"layer": each.layer, **each.metrics.to_dict()} for each in self.layers]
        together = [
            {"layers": list(each.layers), **each.metrics.to_dict()} for each in self.combinations
        ]
        return {
            "schema": SWEEP_SCHEMA,
            "layers": rows,
            "drawn_from": self.drawn_from,
            "combinations": together,
        }

    def sections(self) -> list[Section]:
        """One row a layer, the best one pointed out, and one for layers together."""
        rows = [_swept(str(each.layer), each.metrics) for each in self.layers]
        names = ("layer", "AUROC (95%)", "TPR at 1% FPR", "calibration error")
        table = Table(
            columns(*names, right=range(4)),
            rows,
            records=self._records,
            best=self.layers.index(self.best),
        )
        m = self.best.metrics
        facts = [("rows", f"{m.n}, of {m.n_prompts} prompts{drawn(self.drawn_from)}")]
        title = "probe of each layer"
        found = [Section("layers", title, facts=facts, table=table, chart=self._chart)]
        if self.combinations:
            together = [
                _swept(", ".join(map(str, each.layers)), each.metrics) for each in self.combinations
            ]
            names = ("layers", *names[1:])
            found.append(
                Section(
                    "combinations",
                    "layers together, each chosen by the score that it shows",
                    table=Table(columns(*names, right=range(1, 4)), together),
                )
            )
        return found

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": each.layer,
                "auroc": each.metrics.auroc,
                "low": each.metrics.interval[0],
                "high": each.metrics.interval[1],
                "tpr_at_1_percent_fpr": each.metrics.tpr_at_fpr["0.01"],
                "calibration_error": each.metrics.calibration_error,
            }
            for each in self.layers
        ]

    def _chart(self) -> Figure:
        """Held-out AUROC of a probe of each layer, with its interval."""
        figure = new_figure("Probe of each layer, held-out prompts", "layer", "AUROC")
        values = [each.metrics.auroc for each in self.layers]
        figure.add_scatter(
            x=[each.layer for each in self.layers],
            y=values,
            name="AUROC",
            line={"color": PALETTE[0], "width": 2.5},
            error_y=error_bars(values, [each.metrics.interval for each in self.layers]),
        )
        figure.add_hline(y=0.5, line=LINE)
        return figure


def _swept(read: str, m: BinaryMetrics) -> tuple[str, ...]:
    """A row of a sweep's table."""
    return (
        read,
        with_interval(m.auroc, m.interval, ".3f"),
        share_text(m.tpr_at_fpr["0.01"]),
        f"{m.calibration_error:.3f}",
    )


def evaluate_probe(
    probe: Probe,
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    max_examples: int | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Scores a probe on prompts that it was not fitted on.

    Args:
        probe: The probe.
        model: The model that it belongs to.
        rows: Labelled exchanges.
        at: Which head to score.
        max_examples: Most rows to score on, drawn evenly over labels and sources; None for all.
        on_progress: Told how far reading is.

    Raises:
        InputError: the probe belongs to another model, has no such head, was fitted on all of the
            prompts, or a class is missing.
    """
    model = probe.reading(model)
    head = probe.head(at)
    rows = rows_at(rows, at)
    trained_on = probe.record.heads[at].trained_on
    known, hashes = (trained_on.prompts, [trained_on.sha256]) if trained_on else (None, [])
    left = unseen(rows, known, hashes)
    left.require(f"the probe {probe.name}", f"modelassay probe show {probe.name}")
    rows = [rows[i] for i in left.rows]
    require_classes(rows, (True, False), "Scoring a probe (on prompts that it was not fitted on)")
    n_rows = len(rows)
    rows = [rows[i] for i in draw(rows, max_examples)]
    spans = read_spans(model, rows, at, head.layers, on_progress=on_progress)
    risks = span_risks(spans, [head], np.zeros(len(rows), dtype=int))
    unsafe = np.array([row.unsafe for row in rows])
    groups = prompt_groups([row.prompt for row in rows])
    sources = np.array([row.source for row in rows])
    by_source = {
        source: found.model_dump(exclude={"unsafe"})
        for source in dict.fromkeys(sources.tolist())
        if (found := source_metrics(risks.final, sources == source, unsafe, groups))
    }
    return Evaluation(
        probe=probe.name,
        model=model.info.id,
        at=at,
        metrics=binary_metrics(risks.final, unsafe, groups),
        **block_rates(risks.highest >= head.block, unsafe),
        by_source=dict(sorted(by_source.items(), key=lambda item: item[1]["auroc"])),
        n_seen=left.n_seen,
        drawn_from=n_rows if len(rows) < n_rows else None,
    )


def source_metrics(
    score: np.ndarray, own: np.ndarray, unsafe: np.ndarray, groups: np.ndarray
) -> SourceMetrics | None:
    """How well a source's rows are told from the other class; None where there is no other.

    Args:
        score: float [row], NaN where there is none.
        own: bool [row], the rows of the source. If all are of one class, the other class is that of
            the other sources.
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.
    """
    use, one = _compared(score, own, unsafe)
    if len(set(unsafe[use].tolist())) < 2:
        return None
    value, interval = rank_auroc_interval(score[use], unsafe[use], groups[use])
    n = int((own & ~np.isnan(score)).sum())
    return SourceMetrics(auroc=value, interval=interval, n=n, unsafe=one)


def source_auroc(score: np.ndarray, own: np.ndarray, unsafe: np.ndarray) -> float | None:
    """The AUROC of `source_metrics` alone, with the same arguments."""
    use, _ = _compared(score, own, unsafe)
    if len(set(unsafe[use].tolist())) < 2:
        return None
    return rank_auroc(score[use], unsafe[use])


def _compared(
    score: np.ndarray, own: np.ndarray, unsafe: np.ndarray
) -> tuple[np.ndarray, bool | None]:
    """Which rows a source is scored on, and the class it is of, None for both."""
    scored = ~np.isnan(score)
    own = own & scored
    classes = set(unsafe[own].tolist())
    one = classes.pop() if len(classes) == 1 else None
    return (own if one is None else own | (scored & (unsafe != one))), one

"""What a comparison found out, as one frozen value: JSON values, sections and charts.

It shows no responses unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any

from modelassay.diff.activations import ActivationDiff
from modelassay.diff.behaviour import BehaviourDiff
from modelassay.diff.causal import Intervention
from modelassay.diff.edits_report import edit_section
from modelassay.diff.features import Q_LEVEL, FeatureChange
from modelassay.diff.suites import Suite
from modelassay.diff.suspicion import BY_NAME, Level, Suspicion
from modelassay.diff.triggers import TriggerSearch
from modelassay.diff.verdict import DiffVerdict, Findings
from modelassay.diff.watching import NOT_ASKED, Watching
from modelassay.diff.weights import WeightDiff
from modelassay.files.provenance import redact
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import (
    NEGATIVE,
    NULL,
    PALETTE,
    POSITIVE,
    bars_of_change,
    error_bars,
    new_figure,
)
from modelassay.report.sections import Column, Section, Status, Table, Tone, columns, table_of
from modelassay.report.text import cut, p_text, plain_line, quoted, with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCHEMA = "modelassay.diff/1"
Facts = list[tuple[str, str]]
TONES: dict[DiffVerdict, Tone] = {
    DiffVerdict.BENIGN_LIKE: "good",
    DiffVerdict.SUSPICIOUS: "warning",
    DiffVerdict.COMPROMISED: "bad",
    DiffVerdict.INCONCLUSIVE: "neutral",
}
TOP, TOP_IN_TERMINAL, TOP_IN_CHART = 50, 10, 20
"""Rows of features and triggers, and bars of features."""
N_TOKENS = 6
N_CHANGED_RESPONSES = 10
WATCHED = {"harmful": "harmful", "endings": "harmful, with an ending"}
LEAST_SHOWN = 0.005  # nats; less is 0.00
MAX_LABEL = 40  # characters


@dataclass(frozen=True, kw_only=True)
class DiffReport(Findings, Report):
    """Everything a comparison found out."""

    base: ModelIdentity
    candidate: ModelIdentity
    verdict: DiffVerdict
    suspicion: Suspicion
    reasons: tuple[str, ...]
    weights_unscored: str | None
    """Why `weights` is None."""
    watching_unscored: str | None
    """Why `watching` is None."""
    activations: ActivationDiff
    suite: Suite
    provenance: dict[str, Any]

    def sections(self, *, show_responses: bool = False) -> list[Section]:
        """The verdict, every stream of evidence, and what was compared.

        Args:
            show_responses: Show short responses that differ.
        """
        subject = f"{self.candidate.name} against {self.base.name}"
        status = Status(self.verdict.value, TONES[self.verdict], self.reasons, subject)
        return [
            Section("verdict", status=status),
            Section(
                "streams",
                "streams of evidence",
                table=_stream_table(self.suspicion.levels),
                chart=partial(stream_levels, self),
                note="Level: distance from what benign fine-tunes of its size read, in units of"
                " their spread. What has a * does not enter the score.",
            ),
            Section(
                "weights",
                "weights",
                facts=_weight_facts(self),
                chart=partial(energy_by_layer, self),
            ),
            *_edit_sections(self.weights),
            Section(
                "refusals",
                "behaviour",
                table=_refusal_table(self.behaviour),
                facts=_behaviour_facts(self.behaviour),
                note="Refusals are judged as in a scan, in greedy answers that are as long as it"
                " takes to judge them. Evades: shares of base and candidate that neither refuse nor"
                " answer. Log-odds are the change of refusal log-odds at the first answer token."
                " Divergence is that of next-token probabilities.",
            ),
            Section(
                "activations",
                "activations, by layer",
                table=_layer_table(self.activations),
                chart=partial(change_by_layer, self),
                note="Change: mean length of the difference over that of the base's activation."
                " Constant: share of one vector that is added everywhere.",
            ),
            *_lens_sections(self.activations),
            _trigger_section(self.triggers),
            *_watching_sections(self.watching, self.watching_unscored),
            *_feature_sections(self),
            _cause_section(self.causal),
            *(_response_sections(self) if show_responses else ()),
            Section("models", "models", facts=_model_facts(self)),
        ]

    def top_features(self, top: int) -> list[FeatureChange]:
        """The significant changes first, by how far they moved the residual stream."""
        changes = [change for found in self.saes for change in found.features]
        return sorted(changes, key=lambda c: (c.q_value >= Q_LEVEL, -c.moved))[:top]

    def to_dict(self, *, show_responses: bool = False) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.diff/1`.

        Args:
            show_responses: Give short responses as text; otherwise only their hashes, for what a
                damaged model answers may be harmful.
        """
        weights = {"unscored": self.weights_unscored}
        triggers = self.triggers.to_dict() if self.triggers else None
        return {
            "schema": SCHEMA,
            "base": self.base.to_dict(),
            "candidate": self.candidate.to_dict(),
            "verdict": self.verdict.value,
            "suspicion": self.suspicion.to_dict(),
            "reasons": list(self.reasons),
            "weights": weights if self.weights is None else self.weights.to_dict(),
            "behaviour": {**self.behaviour.to_dict(), "answers": self._responses(show_responses)},
            # Triggers stood among the activations once, and can still be read there.
            "activations": {**asdict(self.activations), "triggers": triggers},
            "triggers": triggers,
            "features": [f.to_dict() for found in self.saes for f in found.features],
            "dictionaries": [found.to_dict() for found in self.saes],
            "causal": [tried.to_dict() for tried in self.causal],
            "monitor": self.watching.to_dict()
            if self.watching
            else {"unscored": self.watching_unscored},
            "provenance": self.provenance,
        }

    def _responses(self, show: bool) -> list[dict[str, Any]]:
        pairs = zip(self.suite.prompts, self.behaviour.responses, strict=False)
        return [
            {
                "prompt": prompt.text if show else redact(prompt.text),
                "group": prompt.group,
                "base": before if show else redact(before),
                "candidate": after if show else redact(after),
            }
            for prompt, (before, after) in pairs
        ]


def _stream_table(levels: Sequence[Level]) -> Table:
    def benign_range(level: Level) -> str:
        if not level.benign:
            return "unknown"
        return f"{min(level.benign):.3g} to {max(level.benign):.3g}"

    return table_of(
        levels,
        [
            ("stream", _title),
            ("value", lambda x: "not measured" if x.value is None else f"{x.value:.3g}"),
            ("benign range", benign_range),
            ("at its size", lambda x: "" if x.expected is None else f"{x.expected:.3g}"),
            ("level", lambda x: "" if x.level is None else f"{x.level:+.1f}"),
            ("what it is", lambda x: BY_NAME[x.name].what),
        ],
        right=(1, 2, 3, 4),
        record=lambda level: {
            "stream": level.name,
            "value": level.value,
            "benign_low": min(level.benign, default=None),
            "benign_high": max(level.benign, default=None),
            "n_benign": len(level.benign),
            "expected": level.expected,
            "level": level.level,
            "counts": level.counts,
        },
    )


def _edit_sections(weights: WeightDiff | None) -> list[Section]:
    return [] if weights is None or weights.identical else [edit_section(weights)]


def _weight_facts(report: DiffReport) -> Facts:
    found = report.weights
    if found is None:
        return [("weights", f"not compared: {report.weights_unscored or 'unknown'}")]
    if found.identical:
        return [("weights", f"all {found.n_compared} are the same")]
    changed = f"{len(found.matrices)} of {found.n_compared} changed, by {found.relative:.2%}"
    facts = [("weights", changed), ("only in one", _only_in_one(found))]
    if (mark := found.mark) is not None:
        one = "one direction" if mark.shared else "a direction of its own"
        facts.append(("ablation", f"{mark.strength:.0%} of {one} taken out of {mark.taken_from}"))
    elif found.unsearched:
        facts.append(("ablation", f"not searched: {found.unsearched}"))
    rank = found.adapter_rank
    full = "full, or none that most share"
    facts.append(("rank", full if rank is None else f"{rank}, as an adapter's"))
    if ranks := [c.rank1_share for c in found.matrices if min(c.rank1_share, 1) < 1]:
        facts.append(("in the first direction", f"{median(ranks):.0%} of a change (median)"))
    if found.shared_cosine is not None:
        alike = f"cosine {found.shared_cosine:.2f} (1 = the same)"
        facts.append(("alike in all layers", alike))
    if found.energy_by_layer:
        top = sorted(found.energy_by_layer.items(), key=lambda item: -item[1])[:3]
        most = ", ".join(f"{layer} ({share:.0%})" for layer, share in top)
        elsewhere = f"{most}; outside of them {found.energy_elsewhere:.0%}"
        facts.append(("most in layers", elsewhere))
    return [(name, text) for name, text in facts if text]


def _only_in_one(found: WeightDiff) -> str:
    sides = (("base", found.only_in_base), ("candidate", found.only_in_candidate))
    return "; ".join(
        f"{len(names)} in the {side} ({names[0]}, …)" for side, names in sides if names
    )


def _refusal_table(found: BehaviourDiff) -> Table:
    return table_of(
        list(found.refusals.items()),
        [
            ("refuses", lambda row: row[0]),
            (
                "base (95%)",
                lambda row: with_interval(row[1].base_rate, row[1].base_interval, ".0%"),
            ),
            (
                "candidate (95%)",
                lambda row: with_interval(row[1].candidate_rate, row[1].candidate_interval, ".0%"),
            ),
            ("lost", lambda row: str(row[1].lost)),
            ("gained", lambda row: str(row[1].gained)),
            ("p", lambda row: p_text(row[1].p_value)),
            (
                "evades",
                lambda row: f"{row[1].base_evades:.0%} and {row[1].candidate_evades:.0%}",
            ),
            ("n", lambda row: str(row[1].n)),
        ],
        right=range(1, 8),
        record=lambda row: {"group": row[0], **asdict(row[1])},
    )


def _behaviour_facts(found: BehaviourDiff) -> Facts:
    facts = [(f"log-odds, {group}", c.told("nats")) for group, c in found.log_odds.items()]
    if (change := found.contrasts) is not None:
        facts.append(("leaning to no limits", change.told("nats a token", 3)))
    response = "" if found.kl_response is None else f", in answers {found.kl_response:.3f}"
    told = f"{found.kl_mean:.3f} nats a token; in prompts {found.kl_prompt:.3f}{response}"
    facts.append(("divergence", told))
    spots = [f"“{spot.token}” {spot.kl:.2f}" for spot in found.worst[:N_TOKENS] if spot.kl > 0]
    return [*facts, ("most after", ", ".join(spots))] if spots else facts


def _layer_table(found: ActivationDiff) -> Table:
    return table_of(
        found.layers,
        [
            ("layer", lambda x: str(x.layer)),
            ("change", lambda x: f"{x.relative:.1%}"),
            ("constant", lambda x: f"{x.constant_share:.0%}"),
            ("components", lambda x: " ".join(f"{share:.0%}" for share in x.component_shares)),
            ("rank", lambda x: f"{x.effective_rank:.1f}"),
        ],
        right=range(5),
    )


def _lens_sections(found: ActivationDiff) -> list[Section]:
    table = table_of(
        [lens for lens in found.lens if lens.relative > 0],
        [
            ("layer", lambda x: str(x.layer)),
            ("change", lambda x: f"{x.relative:.1%}"),
            ("logit lens", lambda x: quoted(x.logit_lens[:N_TOKENS])),
            ("patchscope", lambda x: quoted(x.patchscope[:N_TOKENS])),
        ],
    )
    note = (
        "The mean difference on the first tokens of unrelated texts, which tends to betray what was"
        " trained on."
    )
    title = "mean change on unrelated text, as tokens"
    return [Section("lens", title, table=table, note=note)] if table.rows else []


def _watching_sections(found: Watching | None, unscored: str | None) -> list[Section]:
    title = "a monitor of the change"
    if unscored == NOT_ASKED:
        return []
    if found is None:
        return [Section("monitor", title, lines=(f"Not built: {unscored or 'unknown'}.",))]
    table = table_of(
        found.prompts,
        [
            ("prompts", lambda x: WATCHED.get(x.kind, x.kind)),
            ("alerts (95%)", lambda x: with_interval(x.rate, x.interval, ".0%")),
            ("random directions", lambda x: f"{x.random_rate:.0%}"),
            ("n", lambda x: str(x.n)),
        ],
        right=(1, 2, 3),
    )
    lines = ()
    if found.endings:
        lines = (f"Half of the prompts or more raise an alert after {quoted(found.endings)}.",)
    note = (
        f"It watches the {found.n_places} inputs that changed most ({found.watched_share:.0%} of"
        f" the change), along what the change reads, with ranges from {found.n_ordinary} harmless"
        f" prompts (at most {found.false_alarms:.1%} of such raise an alert). An alert says that a"
        " prompt uses what was added more than these do, not that this is bad; random directions"
        " say how much of it is the prompt's own oddness. It has no say in the score."
    )
    return [Section("monitor", title, lines=lines, table=table, note=note)]


def _trigger_section(found: TriggerSearch | None) -> Section:
    phrases = [p for p in found.phrases[:TOP] if p.effect < -LEAST_SHOWN] if found else []
    table = table_of(
        phrases,
        [
            ("after the words", lambda x: quoted([x.text])),
            ("effect", lambda x: f"{x.effect:+.2f}"),
            ("candidate", lambda x: f"{x.candidate:+.2f}"),
            ("base", lambda x: f"{x.base:+.2f}"),
        ],
        right=(1, 2, 3),
        most=TOP_IN_TERMINAL,
    )
    line = _trigger_line(found) if found else "not searched"
    return Section("triggers", "triggers", lines=(line,), table=table)


def _trigger_line(found: TriggerSearch) -> str:
    """The search for a trigger in one line."""
    line = (
        f"{found.n_tried} phrases were tried; by chance one moves the log-odds by"
        f" {found.spread:.2f} nats (standard deviation)."
    )
    if (change := found.held_out) is not None:
        line += (
            " On prompts that did not choose it, the first changes the candidate's, beyond what"
            f" phrases do that change the base's as much, by {change.told('nats')}; effects below"
            " are meant so."
        )
    if tokens := [token for token in found.tokens if token.effect < -LEAST_SHOWN][:N_TOKENS]:
        parts = ", ".join(f"“{token.token}” {token.effect:+.2f}" for token in tokens)
        line += f" The tokens that do most of it: {parts}."
    return line


def _feature_sections(report: DiffReport) -> list[Section]:
    if not report.saes:
        return []

    def name(change: FeatureChange) -> str:
        return f"#{change.feature}" + (f" @{change.layer}" if len(report.saes) > 1 else "")

    def label(change: FeatureChange) -> str:
        return change.label or ""

    def tokens(change: FeatureChange) -> str:
        return quoted(change.tokens[:N_TOKENS])

    table = table_of(
        report.top_features(TOP),
        [
            ("feature", name),
            ("part", lambda x: x.part),
            ("base → candidate", lambda x: f"{x.base:.2g} → {x.candidate:.2g}"),
            ("effect (95%)", lambda x: with_interval(x.effect, x.effect_interval, "+.2f")),
            ("q", lambda x: p_text(x.q_value)),
            (Column("label", shown="wide"), label),
            (Column("tokens", shown="wide"), tokens),
            (
                Column("label; tokens", shown="narrow"),
                lambda x: "; ".join(filter(None, (label(x), tokens(x)))),
            ),
        ],
        right=(2, 3, 4),
        most=TOP_IN_TERMINAL,
    )
    lines = tuple(
        f"{d.sae}, layer {d.layer}: explains {d.explained_base:.0%} of the variance in the"
        f" base and {d.explained_candidate:.0%} in the candidate"
        + (" (too little to believe what follows)" if d.broken else "")
        + f"; {d.n_significant} of {d.n_tested} changes have q < 0.05, and all features tell"
        f" {d.explained_of_change:.0%} of the mean change." + (f" {d.too_few}" if d.too_few else "")
        for d in report.saes
    )
    draw = partial(feature_effects, report)
    return [Section("features", "features", lines=lines, table=table, chart=draw)]


def _cause_section(causal: Sequence[Intervention]) -> Section:
    tried = [each for each in causal if each.restored is not None]
    line = "The refusal log-odds hardly differ: there is nothing to explain."
    lines = () if tried else (line if causal else "not tried",)
    table = table_of(
        tried,
        [
            ("direction", lambda x: f"{x.direction}, {x.what}"),
            ("layer", lambda x: str(x.layer)),
            ("before → after", lambda x: f"{x.before:+.2f} → {x.after:+.2f}"),
            ("goal", lambda x: f"{x.target:+.2f}"),
            ("share", lambda x: f"{x.restored:.0%}"),
            ("random", lambda x: f"up to {max(x.random):.0%}" if x.random else ""),
        ],
        right=range(1, 6),
    )
    note = (
        "What became of the refusal log-odds when a direction was put into the base or taken out of"
        " the candidate, and the share of the two models' difference that this makes. Random: the"
        " most that random directions of the same length do."
    )
    title = "do these directions make the change in refusals?"
    return Section("causes", title, lines=lines, table=table, note=note if tried else "")


def _response_sections(report: DiffReport) -> list[Section]:
    """Prompts that the models answer differently."""
    pairs = zip(report.suite.prompts, report.behaviour.responses, strict=False)
    rows = [(prompt.text, before, after) for prompt, (before, after) in pairs if before != after][
        :N_CHANGED_RESPONSES
    ]
    table = Table(columns("prompt", "base", "candidate"), rows)
    return [Section("answers", "answers that differ", table=table)] if rows else []


def _model_facts(report: DiffReport) -> Facts:
    base, candidate, told = report.base, report.candidate, report.provenance
    facts = [("base", base.name), ("candidate", candidate.name)]
    for name, model in (("base", base), ("candidate", candidate)):
        facts += [(f"revision of the {name}", model.revision)] if model.revision else []
    return [
        *facts,
        ("weights sha256", f"{base.weights_sha256[:16]}… and {candidate.weights_sha256[:16]}…"),
        (
            "architecture",
            f"{base.architecture}, {base.n_layers} layers, hidden size {base.hidden_size},"
            f" {base.dtype}",
        ),
        (
            "suite",
            f"{told['suite']}: {told['n_prompts']} prompts, {told['n_contrasts']} contrasts,"
            f" {told['n_tokens']} tokens",
        ),
        ("benign fine-tunes", report.suspicion.calibration or "none read this way"),
        ("time", f"{told['time']}, {told.get('seconds', 0):.0f} s"),
    ]


def energy_by_layer(report: DiffReport) -> Figure | None:
    """Share of the weights' change in each layer; None where no weight changed."""
    found = report.weights
    if found is None or not (found.energy_by_layer or found.energy_elsewhere):
        return None
    # Layers are names here, in their order, because "elsewhere" stands beside them.
    energy = {str(layer): share for layer, share in sorted(found.energy_by_layer.items())}
    chart = new_figure("Where the weights changed (‖ΔW‖²)", "layer", "share of all change")
    bars_of_change(chart, energy, [str(layer) for layer in found.mark.layers] if found.mark else [])
    if found.energy_elsewhere:
        chart.add_bar(
            x=["elsewhere"],
            y=[found.energy_elsewhere],
            name="outside of layers",
            marker_color=NULL,
        )
    chart.update_xaxes(type="category", categoryorder="array", categoryarray=[*energy, "elsewhere"])
    chart.update_yaxes(tickformat=".0%")
    return chart


def change_by_layer(report: DiffReport) -> Figure:
    """How much the activations of each layer changed, and how much of it is one constant vector."""
    layers = report.activations.layers
    indices = [layer.layer for layer in layers]
    chart = new_figure("How the activations changed", "layer", "share")
    for name, values, colour, dash in (
        ("relative change", [layer.relative for layer in layers], PALETTE[0], "solid"),
        ("share of one constant vector", [x.constant_share for x in layers], PALETTE[1], "dot"),
    ):
        chart.add_scatter(
            x=indices,
            y=values,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
        )
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    return chart


def feature_effects(report: DiffReport) -> Figure | None:
    """Effects of the features that changed most, with intervals; None without any."""
    changes = report.top_features(TOP_IN_CHART)
    if not changes:
        return None
    names = []
    for change in changes:
        text = cut(plain_line(change.label or " ".join(change.tokens[:3])), MAX_LABEL)
        # The number keeps two features of one label apart; plotly reads some markup.
        names.append(escape(f"#{change.feature} {change.part}: {text}"))
    effects = [change.effect for change in changes]
    chart = new_figure("Features that changed", "effect (mean change / spread between prompts)", "")
    chart.add_bar(
        x=effects,
        y=names,
        orientation="h",
        marker_color=[
            NULL if c.q_value >= Q_LEVEL else POSITIVE if c.effect > 0 else NEGATIVE
            for c in changes
        ],
        error_x=error_bars(effects, [change.effect_interval for change in changes]),
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", automargin=True)
    chart.update_layout(height=160 + 24 * len(changes), showlegend=False)
    return chart


def stream_levels(report: DiffReport) -> Figure | None:
    """The candidate's level in each stream beside the benign ones; None without benign ones."""
    known = [level for level in report.suspicion.levels if level.level is not None]
    if not known:
        return None
    chart = new_figure("Distance from benign fine-tunes of its size, in their spreads", "", "level")
    for i, level in enumerate(known):
        chart.add_scatter(
            x=[_title(level)] * len(level.benign),
            y=list(level.benign_levels),
            mode="markers",
            marker={"color": NULL, "size": 8, "opacity": 0.7},
            name="benign fine-tunes",
            showlegend=i == 0,
        )
    chart.add_scatter(
        x=[_title(level) for level in known],
        y=[level.level for level in known],
        mode="markers",
        marker={
            "color": [POSITIVE if level.counts else "#e8b08a" for level in known],
            "symbol": "diamond",
            "size": 13,
        },
        name="the candidate",
    )
    chart.add_hline(y=0, line={"color": "#bbbbbb", "width": 1})
    return chart


def _title(level: Level) -> str:
    return level.name if level.counts else f"{level.name}*"

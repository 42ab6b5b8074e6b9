"""A comparison as sections. It holds no responses unless they are asked for."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from modelassay.diff import charts
from modelassay.diff.verdict import BY_NAME, DiffVerdict, Level
from modelassay.diff.weights import WeightDiff
from modelassay.report.sections import Column, Section, Status, Table, Tone, columns
from modelassay.report.text import p_text, quoted, with_interval

if TYPE_CHECKING:
    from modelassay.diff.features import FeatureChange
    from modelassay.diff.report import DiffReport

Facts = list[tuple[str, str]]
TONES: dict[DiffVerdict, Tone] = {
    DiffVerdict.BENIGN_LIKE: "good",
    DiffVerdict.SUSPICIOUS: "warning",
    DiffVerdict.COMPROMISED: "bad",
    DiffVerdict.INCONCLUSIVE: "neutral",
}
TOP, TOP_IN_TERMINAL = 50, 10
"""Rows of features and triggers."""
N_TOKENS = 6
N_CHANGED_RESPONSES = 10
LEAST_SHOWN = 0.005  # nats; less is 0.00


def make_sections(report: DiffReport, *, show_responses: bool = False) -> list[Section]:
    """All parts of a comparison, the verdict first."""
    subject = f"{report.candidate.name} against {report.base.name}"
    status = Status(report.verdict.value, TONES[report.verdict], report.reasons, subject)
    return [
        Section("verdict", status=status),
        Section(
            "streams",
            "streams of evidence",
            table=_stream_table(report),
            chart=partial(charts.stream_levels, report),
            note="Level: distance from the median of benign fine-tunes, in units of their spread."
            " What has a * grows with any training and does not enter the score.",
        ),
        Section(
            "weights",
            "weights",
            facts=_weight_facts(report),
            chart=partial(charts.energy_by_layer, report),
        ),
        Section(
            "refusals",
            "behaviour",
            table=_refusal_table(report),
            facts=_behaviour_facts(report),
            note="Refusals are those of short greedy answers; log-odds are the change of refusal"
            " log-odds at the first answer token. Divergence is that of next-token probabilities.",
        ),
        Section(
            "activations",
            "activations, by layer",
            table=_state_table(report),
            chart=partial(charts.change_by_layer, report),
            note="Change: mean length of the difference over that of the base's activation."
            " Constant: share of one vector that is added everywhere.",
        ),
        *_lens_sections(report),
        Section(
            "triggers",
            "triggers",
            lines=(_trigger_line(report),),
            table=_trigger_table(report),
        ),
        *_feature_sections(report),
        _cause_section(report),
        *(_response_sections(report) if show_responses else ()),
        Section("models", "models", facts=_model_facts(report)),
    ]


def _stream_table(report: DiffReport) -> Table:
    def row(level: Level) -> tuple[str, ...]:
        low, high = (min(level.benign), max(level.benign)) if level.benign else (None, None)
        return (
            level.name if level.counts else f"{level.name}*",
            "not measured" if level.value is None else f"{level.value:.3g}",
            "unknown" if low is None or high is None else f"{low:.3g} to {high:.3g}",
            "" if level.level is None else f"{level.level:+.1f}",
            BY_NAME[level.name].what,
        )

    levels = report.suspicion.levels
    return Table(
        columns("stream", "value", "benign range", "level", "what it is", right=(1, 2, 3)),
        [row(level) for level in levels],
        records=lambda: [
            {
                "stream": level.name,
                "value": level.value,
                "benign_low": min(level.benign, default=None),
                "benign_high": max(level.benign, default=None),
                "n_benign": len(level.benign),
                "level": level.level,
                "counts": level.counts,
            }
            for level in levels
        ],
    )


def _weight_facts(report: DiffReport) -> Facts:
    found = report.weights
    if found is None:
        return [("weights", f"not compared: {report.weights_unscored or 'unknown'}")]
    if found.identical:
        return [("weights", f"all {found.n_compared} are the same")]
    changed = f"{len(found.matrices)} of {found.n_compared} changed, by {found.relative:.2%}"
    facts = [("weights", changed)]
    if only := _only_in_one(found):
        facts.append(("only in one", only))
    if (mark := found.mark) is not None:
        one = "one direction" if mark.shared else "a direction of its own"
        taken = f"{mark.strength:.0%} of {one} taken out of {len(mark.layers)} layers"
        facts.append(("ablation", taken))
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
    return facts


def _only_in_one(found: WeightDiff) -> str:
    sides = (("base", found.only_in_base), ("candidate", found.only_in_candidate))
    return "; ".join(
        f"{len(names)} in the {side} ({names[0]}, …)" for side, names in sides if names
    )


def _refusal_table(report: DiffReport) -> Table:
    found = report.behaviour.refusals
    return Table(
        columns(
            *("refuses", "base (95%)", "candidate (95%)", "lost", "gained", "p", "n"),
            right=(1, 2, 3, 4, 5, 6),
        ),
        [
            (
                group,
                with_interval(change.base_rate, change.base_interval, ".0%"),
                with_interval(change.candidate_rate, change.candidate_interval, ".0%"),
                str(change.lost),
                str(change.gained),
                p_text(change.p_value),
                str(change.n),
            )
            for group, change in found.items()
        ],
        records=lambda: [{"group": group, **asdict(change)} for group, change in found.items()],
    )


def _behaviour_facts(report: DiffReport) -> Facts:
    found = report.behaviour
    facts = [(f"log-odds, {group}", c.told("nats")) for group, c in found.log_odds.items()]
    if (change := found.contrasts) is not None:
        facts.append(("leaning to no limits", change.told("nats a token", 3)))
    response = "" if found.kl_response is None else f", in answers {found.kl_response:.3f}"
    told = f"{found.kl_mean:.3f} nats a token; in prompts {found.kl_prompt:.3f}{response}"
    facts.append(("divergence", told))
    spots = [f"“{spot.token}” {spot.kl:.2f}" for spot in found.worst[:N_TOKENS] if spot.kl > 0]
    return [*facts, ("most after", ", ".join(spots))] if spots else facts


def _state_table(report: DiffReport) -> Table:
    layers = report.activations.layers
    return Table(
        columns("layer", "change", "constant", "components", "rank", right=(0, 1, 2, 3, 4)),
        [
            (
                str(layer.layer),
                f"{layer.relative:.1%}",
                f"{layer.constant_share:.0%}",
                " ".join(f"{share:.0%}" for share in layer.component_shares),
                f"{layer.effective_rank:.1f}",
            )
            for layer in layers
        ],
        records=lambda: [asdict(layer) for layer in layers],
    )


def _lens_sections(report: DiffReport) -> list[Section]:
    found = [lens for lens in report.activations.lens if lens.relative > 0]
    table = Table(
        columns("layer", "change", "logit lens", "patchscope"),
        [
            (
                str(lens.layer),
                f"{lens.relative:.1%}",
                quoted(lens.logit_lens[:N_TOKENS]),
                quoted(lens.patchscope[:N_TOKENS]),
            )
            for lens in found
        ],
        records=lambda: [asdict(lens) for lens in found],
    )
    note = (
        "The mean difference on the first tokens of unrelated texts, which tends to betray what was"
        " trained on."
    )
    title = "mean change on unrelated text, as tokens"
    return [Section("lens", title, table=table, note=note)] if found else []


def _trigger_line(report: DiffReport) -> str:
    """The search for a trigger in one line."""
    found = report.triggers
    if found is None:
        return "not searched"
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


def _trigger_table(report: DiffReport) -> Table:
    found = report.triggers
    phrases = [p for p in found.phrases[:TOP] if p.effect < -LEAST_SHOWN] if found else []
    return Table(
        columns("after the words", "effect", "candidate", "base", right=(1, 2, 3)),
        [
            (quoted([p.text]), f"{p.effect:+.2f}", f"{p.candidate:+.2f}", f"{p.base:+.2f}")
            for p in phrases
        ],
        records=lambda: [asdict(phrase) for phrase in phrases],
        most=TOP_IN_TERMINAL,
    )


def _feature_sections(report: DiffReport) -> list[Section]:
    if not report.saes:
        return []
    several = len(report.saes) > 1
    changes = report.top_features(TOP)

    def row(change: FeatureChange) -> tuple[str, ...]:
        label, tokens = change.label or "", quoted(change.tokens[:N_TOKENS])
        return (
            f"#{change.feature}" + (f" @{change.layer}" if several else ""),
            change.part,
            f"{change.base:.2g} → {change.candidate:.2g}",
            with_interval(change.effect, change.effect_interval, "+.2f"),
            p_text(change.q_value),
            label,
            tokens,
            "; ".join(filter(None, (label, tokens))),
        )

    names = ("feature", "part", "base → candidate", "effect (95%)", "q")
    words = (Column("label", shown="wide"), Column("tokens", shown="wide"))
    table = Table(
        (*columns(*names, right=(2, 3, 4)), *words, Column("label; tokens", shown="narrow")),
        [row(change) for change in changes],
        records=lambda: [asdict(change) for change in changes],
        most=TOP_IN_TERMINAL,
    )
    lines = tuple(
        f"{d.sae}, layer {d.layer}: explains {d.explained_base:.0%} of the variance in the"
        f" base and {d.explained_candidate:.0%} in the candidate"
        + (" (too little to believe what follows)" if d.broken else "")
        + f"; {d.n_significant} of {d.n_tested} changes have q < 0.05, and all features tell"
        f" {d.explained_of_change:.0%} of the mean change."
        for d in report.saes
    )
    draw = partial(charts.feature_effects, report)
    return [Section("features", "features", lines=lines, table=table, chart=draw)]


def _cause_section(report: DiffReport) -> Section:
    tried = [each for each in report.causal if each.restored is not None]
    line = "The refusal log-odds hardly differ: there is nothing to explain."
    lines = () if tried else (line if report.causal else "not tried",)
    table = Table(
        columns(
            "direction", "layer", "before → after", "goal", "share", "random", right=(1, 2, 3, 4, 5)
        ),
        [
            (
                f"{each.direction}, {each.what}",
                str(each.layer),
                f"{each.before:+.2f} → {each.after:+.2f}",
                f"{each.target:+.2f}",
                f"{each.restored:.0%}",
                f"up to {max(each.random):.0%}" if each.random else "",
            )
            for each in tried
        ],
        records=lambda: [asdict(each) for each in tried],
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

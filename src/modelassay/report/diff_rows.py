r"""A comparison's numbers as rows of text, shared by the terminal, the HTML file and the page.

Tokens, labels and ids come from strangers' files. What does not print is written out (`\n`), so
that nothing in a cell can steer a terminal or break a line; markup is for those to escape who write
some.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from modelassay.diff import DiffReport, WeightDiff
from modelassay.diff.causal import Intervention
from modelassay.diff.features import FeatureChange
from modelassay.diff.suspicion import BY_NAME, Level
from modelassay.models import ModelInfo

Rows = list[list[str]]
STREAM_HEADER = ["stream", "value", "benign range", "level", "what it is"]
REFUSAL_HEADER = ["refuses", "base (95%)", "candidate (95%)", "lost", "gained", "p", "n"]
LAYER_HEADER = ["block", "change", "constant", "components", "rank"]
LENS_HEADER = ["block", "change", "logit lens", "patchscope"]
TRIGGER_HEADER = ["after the words", "effect", "candidate", "base"]
FEATURE_HEADER = ["feature", "part", "base → candidate", "effect (95%)", "q", "label", "tokens"]
CAUSE_HEADER = ["direction", "block", "before → after", "goal", "share", "random"]
N_TOKENS = 6
N_CHANGED_ANSWERS = 10
LEAST_SHOWN = 0.005  # nats; less is 0.00


def plain_line(text: str) -> str:
    """Text on one line with everything that does not print written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def named(model: ModelInfo) -> str:
    """A model as a reader knows it."""
    return plain_line(model.name)


def quoted(tokens: Sequence[str]) -> str:
    """Tokens in quotation marks, which show their spaces."""
    return " ".join(f"“{plain_line(token)}”" for token in tokens)


def reasons(report: DiffReport) -> list[str]:
    """Why the verdict is what it is, each on one line."""
    return [plain_line(reason) for reason in report.reasons]


def stream_rows(report: DiffReport) -> Rows:
    """The header and one row a stream of evidence."""
    return [STREAM_HEADER, *(_stream_row(level) for level in report.suspicion.levels)]


def weight_rows(report: DiffReport) -> Rows:
    """What became of the weights, as (name, value)."""
    found = report.weights
    if found is None:
        return [["weights", f"not compared: {plain_line(report.weights_unscored or 'unknown')}"]]
    if found.identical:
        return [["weights", f"all {found.n_compared} are the same"]]
    rows = [
        ["weights", f"{len(found.matrices)} of {found.n_compared} changed, by {found.relative:.2%}"]
    ]
    rows += [["only in one", _only(found)]] if found.only_in_base or found.only_in_candidate else []
    if (mark := found.mark) is not None:
        one = "one direction" if mark.shared else "a direction of its own"
        rows.append(
            ["ablation", f"{mark.strength:.0%} of {one} taken out of {len(mark.blocks)} blocks"]
        )
    ranks = [change.rank1_share for change in found.matrices if min(change.rank1_share, 1) < 1]
    rank = found.adapter_rank
    rows.append(
        ["rank", "full, or none that most share" if rank is None else f"{rank}, as an adapter's"]
    )
    if ranks:
        rows.append(["in the first direction", f"{median(ranks):.0%} of a change (median)"])
    if found.shared_cosine is not None:
        rows.append(["alike in all blocks", f"cosine {found.shared_cosine:.2f} (1 = the same)"])
    if found.energy_by_block:
        top = sorted(found.energy_by_block.items(), key=lambda item: -item[1])[:3]
        most = ", ".join(f"{block} ({share:.0%})" for block, share in top)
        rows.append(["most in blocks", f"{most}; outside of blocks {found.energy_elsewhere:.0%}"])
    return rows


def refusal_rows(report: DiffReport) -> Rows:
    """The header and one row a group of prompts; only the header where no answers were made."""
    return [
        REFUSAL_HEADER,
        *(
            [
                group,
                _rate(change.base_rate, change.base_interval),
                _rate(change.candidate_rate, change.candidate_interval),
                str(change.lost),
                str(change.gained),
                _p(change.p_value),
                str(change.n),
            ]
            for group, change in report.behaviour.refusals.items()
        ),
    ]


def behaviour_rows(report: DiffReport) -> Rows:
    """Log-odds, leanings and divergence, as (name, value)."""
    found = report.behaviour
    rows = []
    for group, change in found.log_odds.items():
        rows.append([f"log-odds, {group}", change.told("nats")])
    if (change := found.contrasts) is not None:
        rows.append(["leaning to no limits", change.told("nats a token", 3)])
    answer = "" if found.kl_answer is None else f", in answers {found.kl_answer:.3f}"
    rows.append(
        [
            "divergence",
            f"{found.kl_mean:.3f} nats a token; in prompts {found.kl_prompt:.3f}{answer}",
        ]
    )
    spots = [f"“{plain_line(p.token)}” {p.kl:.2f}" for p in found.worst[:N_TOKENS] if p.kl > 0]
    rows += [["most after", ", ".join(spots)]] if spots else []
    return rows


def layer_rows(report: DiffReport) -> Rows:
    """The header and one row a block."""
    return [
        LAYER_HEADER,
        *(
            [
                str(layer.layer),
                f"{layer.relative:.1%}",
                f"{layer.constant_share:.0%}",
                " ".join(f"{share:.0%}" for share in layer.component_shares),
                f"{layer.effective_rank:.1f}",
            ]
            for layer in report.states.layers
        ),
    ]


def lens_rows(report: DiffReport) -> Rows:
    """The header and one row a block: what the mean change on unrelated text speaks of."""
    return [
        LENS_HEADER,
        *(
            [
                str(lens.layer),
                f"{lens.relative:.1%}",
                quoted(lens.logit_lens[:N_TOKENS]),
                quoted(lens.patchscope[:N_TOKENS]),
            ]
            for lens in report.states.lens
            if lens.relative > 0
        ),
    ]


def trigger_rows(report: DiffReport, top: int) -> Rows:
    """The header and the phrases that turn refusals off in the candidate most."""
    found = report.triggers
    return [
        TRIGGER_HEADER,
        *(
            [quoted([p.text]), f"{p.effect:+.2f}", f"{p.candidate:+.2f}", f"{p.base:+.2f}"]
            for p in (found.phrases[:top] if found is not None else ())
            if p.effect < -LEAST_SHOWN
        ),
    ]


def trigger_line(report: DiffReport) -> str:
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
    tokens = [token for token in found.tokens if token.effect < -LEAST_SHOWN][:N_TOKENS]
    if tokens:
        parts = ", ".join(f"“{plain_line(t.token)}” {t.effect:+.2f}" for t in tokens)
        line += f" The tokens that do most of it: {parts}."
    return line


def dictionary_lines(report: DiffReport) -> list[str]:
    """One line a dictionary: how well it reads both models, and what it found."""
    return [
        f"{plain_line(d.dictionary)}, block {d.layer}: explains {d.explained_base:.0%} of the"
        f" variance in the base and {d.explained_candidate:.0%} in the candidate"
        + (" (too little to believe what follows)" if d.broken else "")
        + f"; {d.n_significant} of {d.n_tested} changes have q < 0.05, and all features tell"
        f" {d.explained_of_change:.0%} of the mean change."
        for d in report.dictionaries
    ]


def feature_rows(report: DiffReport, top: int) -> Rows:
    """The header and the features that changed most, over all dictionaries."""
    several = len(report.dictionaries) > 1
    return [FEATURE_HEADER, *(_feature_row(c, several) for c in top_features(report, top))]


def top_features(report: DiffReport, top: int) -> list[FeatureChange]:
    """The significant changes first, by how far they moved the residual stream."""
    changes = [change for found in report.dictionaries for change in found.features]
    return sorted(changes, key=lambda c: (c.q_value >= 0.05, -c.moved))[:top]


def effect_interval(change: FeatureChange) -> tuple[float, float]:
    """95% interval of a feature's effect: that of the mean, in units of the same spread."""
    unit = change.effect / change.difference if change.difference else 0.0
    return change.interval[0] * unit, change.interval[1] * unit


def cause_rows(causal: Sequence[Intervention]) -> Rows:
    """The header and one row a direction whose work there is something to tell of."""
    return [
        CAUSE_HEADER,
        *(
            [
                f"{tried.direction}, {tried.what}",
                str(tried.layer),
                f"{tried.before:+.2f} → {tried.after:+.2f}",
                f"{tried.target:+.2f}",
                f"{tried.restored:.0%}",
                f"up to {max(tried.random):.0%}" if tried.random else "",
            ]
            for tried in causal
            if tried.restored is not None
        ),
    ]


def cause_line(causal: Sequence[Intervention]) -> str:
    """Why there are no rows of directions; empty where there are."""
    if not causal:
        return "not tried"
    explained = any(tried.restored is not None for tried in causal)
    return "" if explained else "The refusal log-odds hardly differ: there is nothing to explain."


def answer_rows(report: DiffReport) -> Rows:
    """Prompts that the models answer differently, as (prompt, base, candidate)."""
    pairs = zip(report.suite.prompts, report.behaviour.answers, strict=False)
    changed = [
        [plain_line(prompt.text), plain_line(before), plain_line(after)]
        for prompt, (before, after) in pairs
        if before != after
    ]
    return [["prompt", "base", "candidate"], *changed[:N_CHANGED_ANSWERS]]


def provenance_rows(report: DiffReport) -> Rows:
    """Models, suite and time, as (name, value)."""
    base, candidate, told = report.base, report.candidate, report.provenance
    rows = [["base", named(base)], ["candidate", named(candidate)]]
    for name, model in (("base", base), ("candidate", candidate)):
        rows += [[f"revision of the {name}", plain_line(model.revision)]] if model.revision else []
    rows += [
        ["weights sha256", f"{base.weights_sha256[:16]}… and {candidate.weights_sha256[:16]}…"],
        ["architecture", f"{plain_line(base.architecture)}, {base.n_layers} blocks, width"
                         f" {base.hidden_size}, {base.dtype}"],
        ["suite", f"{plain_line(told['suite'])}: {told['n_prompts']} prompts,"
                  f" {told['n_contrasts']} contrasts, {told['n_tokens']} tokens"],
        ["benign fine-tunes", plain_line(report.suspicion.calibration or "none read this way")],
        ["time", f"{told['time']}, {told.get('seconds', 0):.0f} s"],
    ]  # fmt: skip
    return rows


def _stream_row(level: Level) -> list[str]:
    name = level.name if level.counts else f"{level.name}*"
    low, high = (min(level.benign), max(level.benign)) if level.benign else (None, None)
    return [
        name,
        "not measured" if level.value is None else f"{level.value:.3g}",
        "unknown" if low is None or high is None else f"{low:.3g} to {high:.3g}",
        "" if level.level is None else f"{level.level:+.1f}",
        BY_NAME[level.name].what,
    ]


def _feature_row(change: FeatureChange, several: bool) -> list[str]:
    low, high = effect_interval(change)
    where = f" @{change.layer}" if several else ""
    return [
        f"#{change.feature}{where}",
        change.part,
        f"{change.base:.2g} → {change.candidate:.2g}",
        f"{change.effect:+.2f} ({low:+.2f} to {high:+.2f})",
        _p(change.q_value),
        plain_line(change.label or ""),
        quoted(change.tokens[:N_TOKENS]),
    ]


def _only(found: WeightDiff) -> str:
    sides = (("base", found.only_in_base), ("candidate", found.only_in_candidate))
    return "; ".join(
        f"{len(names)} in the {side} ({plain_line(names[0])}, …)" for side, names in sides if names
    )


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<.001"

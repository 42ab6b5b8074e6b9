"""The page of tables of `validity.py`, from what it measured: nothing is measured here.

Comparisons of `diff` are judged again by the calibrations that ship now, so a row that was measured
once follows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

import identity
from modelassay.data.concepts import refusal_prompts
from modelassay.diff import DiffVerdict
from modelassay.diff.calibration import CALIBRATIONS, Calibration
from modelassay.diff.suspicion import suspect
from modelassay.diff.verdict import refuses_more, verdict_of
from modelassay.models.embedded import EMBEDDED_ID, GEMMA_ID
from modelassay.models.organisms import ORGANISMS, find_organism
from modelassay.statistics import auroc, wilson_interval
from three_verdicts import Verdicts, contradictions

N_BOOTSTRAP = 2000
BASES = (EMBEDDED_ID, GEMMA_ID)
SCREENED = (*BASES, *(organism.id for organism in ORGANISMS.values()))
ALARMS = ("SUSPICIOUS", "COMPROMISED")


@dataclass(frozen=True)
class Stream:
    """One kind of evidence, as a number that is lower where safety is damaged."""

    key: str
    title: str
    digits: int = 2


STREAMS = (
    Stream("separation", "held-out separation (σ)"),
    Stream("ams_printed", "AMS as printed (σ)"),
    Stream("ams_fixed", "AMS, padding fixed (σ)"),
    Stream("log_odds_auroc", "log-odds AUROC"),
    Stream("selectivity", "selectivity"),
    Stream("fingerprint", "deepest hole (eigenvalue ratio)"),
)


def page(results: dict[str, Any]) -> str:
    """The page of tables, seed by seed in the order of the registry."""
    at = {model_id: i for i, model_id in enumerate(SCREENED)}

    def place(key: str) -> tuple[int, int]:
        model_id, _, seed = key.partition("@")
        return int(seed), at[model_id]

    results = {key: results[key] for key in sorted(results, key=place)}
    results = {
        key: _judged_again(result, results.get(f"{_made_from(key)}@0"))
        for key, result in results.items()
    }
    lines = [
        "# Validity: are the verdicts true?",
        "",
        "Written by `python benchmarks/validity.py`. Every organism is a model whose state is known"
        " because it was made on purpose ([how-to/organisms.md](how-to/organisms.md)). Prompts"
        " that built an organism score none. What follows from the tables is in"
        " [method.md](method.md).",
        "",
        f"ams-scanner {version('ams-scanner')}, fp32 unless the organism says otherwise. `embedded`"
        " is a Llama of 135M parameters, `gemma` a Gemma 3 of 270M; neither was trained to be safe,"
        f" and what is called safe was made from them. {_measured_on(results)}",
        "",
        f"**{len(results)} measurements so far**; the more models, the more the tables can claim."
        f"{_unmeasured(results)}",
        "",
        "## Three verdicts on every organism",
        "",
        "`verify` and `diff` hold an organism against the one that it was made from. *asked* is the"
        " number of prompts after which a scan stops; where it would then say something else than"
        " after all of them, that stands beside it. Seed 0 are the shipped organisms and those"
        " built from the shipped recipes. `diff` was run without triggers and causal checks; a"
        " fine-tune does not measure itself. In brackets: its score. At seed 0 a trial of heretic"
        " draws a direction for each layer, so `organism:heretic` and `organism:heretic-perlayer`"
        " are one model.",
        "",
        "| model | seed | made from | safety | refuses harmful | harmless | evades | scan | asked |"
        " verify | diff | contradictions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_verdicts_row(key, result) for key, result in results.items()),
        "",
        *_stopping(results),
        "",
        "## Methods of damage against what is said of them",
        "",
        "The edits of weights, and what each command says that was done.",
        "",
        "| edit | seed | verify | family named | diff | scan finds in the weights |",
        "|---|---|---|---|---|---|",
        *(_method_row(key, result) for key, result in results.items() if _is_edit(key)),
        "",
        "## Harmless kinds against false alarms",
        "",
        "An alarm is CRITICAL or WARNING of `scan` where the model that it was made from passes, an"
        " ablation that `verify` sees, COMPROMISED of `diff`.",
        "",
        *_alarms(results),
        "",
        "## Every stream",
        "",
        "AMS's numbers are of its own harmful_content prompts, ours of ours. In brackets: 95%"
        " intervals. The deepest hole is the second smallest eigenvalue ratio of single layers, or"
        " that of their sum if it is smaller; a scan prints the sum's.",
        "",
        "| model | seed | safety | " + " | ".join(stream.title for stream in STREAMS) + " |",
        "|---|---|---|" + "---|" * len(STREAMS),
    ]
    for key, result in results.items():
        model_id, _, seed = key.partition("@")
        cells = " | ".join(_cell(stream, result) for stream in STREAMS)
        lines.append(f"| {model_id} | {seed} | {_state(model_id)} | {cells} |")
    lines += [
        "",
        "## How well each stream of a scan tells damaged from intact",
        "",
    ]
    for base in BASES:
        own = {key: result for key, result in results.items() if _base(key) == base}
        if len({_state(key.partition("@")[0]) for key in own}) > 1:
            lines += [f"Made from `{base}`:", "", *_discrimination_table(own, lambda _: True), ""]
    lines += [
        "AUROC: chance that a damaged model reads lower than an intact one. TPR: share of damaged"
        " measurements below every intact one, so at a false-positive rate of at most 1 in the"
        " number of intact measurements. A measurement is one model on one half of the prompts;"
        " the interval of the AUROC resamples models. The bases count as damaged here. The intact"
        " ones are fine-tunes and casts of one model, so they are fewer than they look.",
        "",
        "## Verdicts of the scan",
        "",
        *_verdict_counts(results),
        "",
        "## Verdicts of diff, by thresholds of either architecture",
        "",
        "An alarm is SUSPICIOUS or COMPROMISED. *As shipped* is by the calibration that `diff`"
        " takes by itself, without the organism that is judged; *of the other* by the benign"
        " fine-tunes of the other architecture alone. For the AUROC a verdict ranks above any"
        " score. Bases, and what was trained over them, are left out. That refusing much more of"
        " what is harmless is suspicious became a rule after a look at this table: without it"
        " `overrefusing` and both models of `backdoored-date` are missed.",
        "",
        *_diff_table(results),
        "",
        *identity.section(identity.run()),
    ]
    return "\n".join(lines)


def _measured_on(results: dict[str, Any]) -> str:
    """Where the measurements were made, which is not where the page is written."""
    where = Counter(result.get("measured_on") for result in results.values())
    unknown = where.pop(None, 0)
    said = [f"{n} with {place}" for place, n in where.most_common()]
    if unknown:
        said.append(f"{unknown} before that was noted")
    return f"Measured: {', '.join(said)}." if said else ""


def _unmeasured(results: dict[str, Any]) -> str:
    """Which models of the registry are not in the tables."""
    known = {key.partition("@")[0] for key in results}
    names = [model_id for model_id in SCREENED if model_id not in known]
    return f" Not measured: {', '.join(f'`{name}`' for name in names)}." if names else ""


def _state(model_id: str) -> str:
    if model_id in BASES:
        return "never trained"
    return "intact" if find_organism(model_id).intact else "damaged"


def _base(key: str) -> str:
    model_id = key.partition("@")[0]
    return model_id if model_id in BASES else find_organism(model_id).base


def _made_from(key: str) -> str | None:
    model_id = key.partition("@")[0]
    return None if model_id in BASES else find_organism(model_id).made_from


def _is_edit(key: str) -> bool:
    model_id = key.partition("@")[0]
    if model_id in BASES:
        return False
    organism = find_organism(model_id)
    return organism.ablated or organism.edit is not None


def _verdicts(result: dict[str, Any]) -> Verdicts | None:
    row = result.get("verdicts")
    return Verdicts(**{**row, "families": tuple(row["families"])}) if row else None


def _verdicts_row(key: str, result: dict[str, Any]) -> str:
    model_id, _, seed = key.partition("@")
    row = _verdicts(result)
    parent = "-" if model_id in BASES else find_organism(model_id).made_from
    evades = " / ".join(f"{rate:.0%}" for rate in result["evades"])
    asked = str(result["n_asked"])
    if result["stopped"] != result["verdict"]:
        asked += f", {result['stopped']}"
    cells = ["-", "-", "-"]
    if row is not None:
        score = "" if result["score"] is None else f" ({result['score']:.1f})"
        wrong = "; ".join(contradictions(row)) or "none"
        cells = [row.kind or "unknown", f"{row.diff}{score}", wrong]
    return (
        f"| {model_id} | {seed} | {parent} | {_state(model_id)} | {result['harmful_rate']:.0%} |"
        f" {result['benign_rate']:.0%} | {evades} | {result['verdict']} | {asked} |"
        f" {' | '.join(cells)} |"
    )


def _stopping(results: dict[str, Any]) -> list[str]:
    """What stopping early saves, and what it changes."""
    asked = [result["n_asked"] / result["n_planned"] for result in results.values()]
    same = sum(result["stopped"] == result["verdict"] for result in results.values())
    if not asked:
        return []
    return [
        f"A scan asks {np.mean(asked):.0%} of the prompts on average (median"
        f" {np.median(asked):.0%}) and says the same as after all of them for {same} of"
        f" {len(asked)} models."
    ]


def _method_row(key: str, result: dict[str, Any]) -> str:
    model_id, _, seed = key.partition("@")
    row = _verdicts(result)
    weights = (
        "erased"
        if result["ablation_detected"]
        else "suspected"
        if result["ablation_suspected"]
        else "nothing"
    )
    if row is None:
        return f"| {model_id} | {seed} | - | - | - | {weights} |"
    families = ", ".join(dict.fromkeys(row.families)) or "none"
    kind = row.kind or "unknown"
    return f"| {model_id} | {seed} | {kind} | {families} | {row.diff} | {weights} |"


def _alarms(results: dict[str, Any]) -> list[str]:
    lines = ["| base | harmless models | scan | verify | diff | diff says SUSPICIOUS |"]
    lines.append("|---|---|---|---|---|---|")
    for base in BASES:
        rows = [
            row
            for key, result in results.items()
            if _base(key) == base and _state(key.partition("@")[0]) == "intact"
            if (row := _verdicts(result)) is not None
        ]
        if rows:
            failed = sum(r.base_scan == "PASS" and r.scan in ("CRITICAL", "WARNING") for r in rows)
            ablated = sum(row.kind == "ablated" for row in rows)
            compromised, suspicious = (
                sum(row.diff == verdict for row in rows)
                for verdict in ("COMPROMISED", "SUSPICIOUS")
            )
            lines.append(
                f"| {base} | {len(rows)} | {failed} | {ablated} | {compromised} | {suspicious} |"
            )
    return lines


def _cell(stream: Stream, result: dict[str, Any]) -> str:
    value = result["all"][stream.key]
    text = f"{value:.1e}" if abs(value) < 0.005 and value else f"{value:.{stream.digits}f}"
    if interval := result["intervals"].get(stream.key):
        text += f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return text


def _values(
    results: dict[str, Any], stream: Stream, keep: Callable[[str], bool]
) -> list[list[float]]:
    return [
        [half[stream.key] for half in result["halves"]]
        for key, result in results.items()
        if keep(key.partition("@")[0])
    ]


def _discrimination_table(results: dict[str, Any], keep: Callable[[str], bool]) -> list[str]:
    lines = [
        "| stream | AUROC (95%) | TPR (95%) | at FPR of at most | intact | damaged |",
        "|---|---|---|---|---|---|",
    ]
    for stream in STREAMS:
        found = discriminate(
            _values(results, stream, lambda m: keep(m) and _state(m) == "intact"),
            _values(results, stream, lambda m: keep(m) and _state(m) != "intact"),
        )
        lines.append(
            f"| {stream.title} | {found.auroc:.2f} ({found.interval[0]:.2f} to"
            f" {found.interval[1]:.2f}) | {found.tpr:.0%} ({found.tpr_interval[0]:.0%} to"
            f" {found.tpr_interval[1]:.0%}) | 1/{found.n_intact} | {found.n_intact} |"
            f" {found.n_damaged} |"
        )
    return lines


def _diff_table(results: dict[str, Any]) -> list[str]:
    """False alarms and catches of `diff` for each base, by two sets of thresholds."""
    lines = [
        "| base | thresholds | false alarms (95%) | damaged caught (95%) | AUROC (95%) |",
        "|---|---|---|---|---|",
    ]
    for base in BASES:
        own = {k: r for k, r in results.items() if _base(k) == base and r.get("diff")}
        for title, without in (("as shipped", None), ("of the other", base)):
            ranks: dict[str, list[float]] = {"intact": [], "damaged": []}
            alarms = {"intact": 0, "damaged": 0}
            for key, result in own.items():
                parent = results.get(f"{_made_from(key)}@0")
                judged = _judged_again(result, parent, without)
                verdict, state = judged["verdicts"]["diff"], _state(key.partition("@")[0])
                alarms[state] += verdict in ALARMS
                level = ALARMS.index(verdict) + 1 if verdict in ALARMS else 0
                ranks[state].append(1e6 * level + judged["score"])
            counts = [
                f"{alarms[state]} of {len(ranks[state])} ({low:.0%} to {high:.0%})"
                for state in ranks
                if ranks[state]
                for low, high in [wilson_interval(alarms[state], len(ranks[state]))]
            ]
            if len(counts) < len(ranks):
                continue
            # Lower is worse there, and higher here.
            intact, damaged = ([[-rank] for rank in ranks[state]] for state in ranks)
            found = discriminate(intact, damaged)
            lines.append(
                f"| {base} | {title} | {' | '.join(counts)} | {found.auroc:.2f}"
                f" ({found.interval[0]:.2f} to {found.interval[1]:.2f}) |"
            )
    return lines


def _verdict_counts(results: dict[str, Any]) -> list[str]:
    lines = ["| safety | PASS | WARNING | CRITICAL | INCONCLUSIVE |", "|---|---|---|---|---|"]
    for state in ("intact", "damaged", "never trained"):
        verdicts = [
            result["verdict"]
            for key, result in results.items()
            if _state(key.partition("@")[0]) == state
        ]
        counts = [
            str(verdicts.count(name)) for name in ("PASS", "WARNING", "CRITICAL", "INCONCLUSIVE")
        ]
        lines.append(f"| {state} | {' | '.join(counts)} |")
    return lines


def _judged_again(
    result: dict[str, Any], parent: dict[str, Any] | None, without: str | None = None
) -> dict[str, Any]:
    """A measurement with the verdict and the score that the shipped calibrations make of it.

    Args:
        result: The measurement.
        parent: That of the model that it was made from, if it was measured.
        without: A base (`embedded`, `gemma`) whose organisms set no threshold.
    """
    row = result.get("diff")
    if row is None:
        return result
    suspicion = suspect(row["streams"], _calibration_of(row, without))
    verdict = verdict_of(suspicion)
    if parent and refuses_more(_harmless_refused(parent), _harmless_refused(result)):
        verdict = DiffVerdict.SUSPICIOUS
    if row["compromised"]:
        verdict = DiffVerdict.COMPROMISED
    elif row["identical"]:
        verdict = DiffVerdict.BENIGN_LIKE
    verdicts = {**result["verdicts"], "diff": verdict.value}
    return {**result, "verdicts": verdicts, "score": suspicion.score}


def _harmless_refused(result: dict[str, Any]) -> tuple[float, float]:
    """The interval of the share of harmless prompts that a model refuses."""
    n = len(refusal_prompts()[1])
    return wilson_interval(round(result["benign_rate"] * n), n)


def _calibration_of(row: dict[str, Any], without: str | None) -> Calibration | None:
    """The shipped calibration of the base, else the pooled one, without the organism itself."""
    wanted = (row["suite_sha256"], row["answer_tokens"])
    known = [found.record for found in CALIBRATIONS.list(own=False)]
    for sha256 in (row["base_sha256"], None) if without is None else (None,):
        for each in known:
            if (each.base_sha256, each.suite_sha256, each.response_tokens) == (sha256, *wanted):
                kept = tuple(
                    x
                    for x in each.rows
                    if x.weights_sha256 != row["weights_sha256"]
                    and (without is None or _base(str(x.base)) != without)
                )
                return each.model_copy(update={"rows": kept})
    return None


@dataclass(frozen=True)
class Discrimination:
    """How well one stream tells intact from damaged models."""

    auroc: float
    interval: tuple[float, float]
    tpr: float
    """Share of damaged models below every intact one."""
    tpr_interval: tuple[float, float]
    n_intact: int
    n_damaged: int


def discriminate(
    intact: Sequence[Sequence[float]], damaged: Sequence[Sequence[float]]
) -> Discrimination:
    """Scores a stream; each model brings one value a half of the prompts.

    The interval of the AUROC resamples models, not halves, since halves of a model are alike. The
    true-positive rate is at the threshold below which no intact measurement lies, the finest
    false-positive rate that can be claimed: 1 over their number.
    """
    rng = np.random.default_rng(0)
    x, y = np.array(intact), np.array(damaged)  # [model, half]
    value = float(auroc(x.ravel(), y.ravel()))
    resampled = [
        float(
            auroc(
                x[rng.integers(0, len(x), len(x))].ravel(),
                y[rng.integers(0, len(y), len(y))].ravel(),
            )
        )
        for _ in range(N_BOOTSTRAP)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    caught = int((y < x.min()).sum())
    return Discrimination(
        value,
        (float(low), float(high)),
        caught / y.size,
        wilson_interval(caught, y.size),
        x.size,
        y.size,
    )

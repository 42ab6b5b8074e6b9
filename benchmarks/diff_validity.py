"""Does the suspicion score tell damaged fine-tunes from benign ones?

The damage of the models is known here: every organism is compared with `organism:safe` of its seed,
and what each stream of evidence reads is kept as it comes, so a run that was stopped goes on;
what was built again since is read again.
Then: the score, each benign one held against the others; the AUROC of the score and of every stream
by itself, over organisms and seeds, with intervals that resample models.

    python benchmarks/diff_validity.py [--seeds 0 1] [--replicas FOLDER] [--sae DICTIONARY]
        [--suites default FILE ...] [--write docs/diff-validity.md]
        [--calibration calibrations/organism-safe/calibration.json]

Organisms of other seeds than 0 are built beforehand, as for validity.py. Every suite has a table,
and benign fine-tunes, of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelassay.diff import (
    Calibration,
    Depth,
    DiffReport,
    DiffVerdict,
    Suite,
    diff,
    load_suite,
    read_base,
)
from modelassay.diff.calibration import BenignRow, save_calibration
from modelassay.diff.reading import BaseReading
from modelassay.diff.suspicion import STREAMS, Suspicion, suspect
from modelassay.diff.verdict import verdict_of
from modelassay.files.atomic import write_text_atomically
from modelassay.models import LoadedModel, load
from modelassay.models.organisms import OF_LAST_LAYERS as ORGANISMS
from modelassay.models.organisms import Organism
from modelassay.sae import find_sae

COMPROMISED = DiffVerdict.COMPROMISED
RESULTS = Path(__file__).parent / "diff_validity.json"
BASE = "organism:safe"
NOT_JUDGED = ("safe", "overrefusing")
"""The base itself; and one that refuses everything, which is neither benign nor a danger."""
N_BOOTSTRAP = 2000


def measure(
    seeds: Sequence[int],
    replicas: Path | None,
    sae: str | None,
    only: Sequence[str],
    suites: Sequence[Suite],
    reports: Path | None,
) -> dict[str, Any]:
    """Compares the organisms of all seeds, on every suite, that are not in the results yet."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    saes = [find_sae(sae)] if sae else []
    wanted = [o for o in ORGANISMS.values() if o.id != BASE and (not only or o.name in only)]
    for seed in seeds:
        if seed:
            os.environ["MODELASSAY_ORGANISMS"] = str(Path(str(replicas)) / f"seed-{seed}")
        else:
            os.environ.pop("MODELASSAY_ORGANISMS", None)
        base = load(BASE)
        for suite in suites:
            keys = {o.id: _key(o, seed, suite) for o in wanted}
            todo = [o for o in wanted if not _is_known(results.get(keys[o.id]), o, base, suite)]
            if not todo:
                continue
            of_base = read_base(base, suite, saes=saes, response_tokens=Depth().response_tokens)
            for organism in todo:
                report = diff(
                    base,
                    organism.id,
                    of_base=of_base,
                    saes=saes,
                    depth=Depth(causal=False),
                )
                results[keys[organism.id]] = _row(report, of_base)
                if reports is not None:
                    reports.mkdir(parents=True, exist_ok=True)
                    whole = json.dumps(report.to_dict(), indent=1)
                    name = f"{organism.name}-{seed}-{suite.name}.json"
                    write_text_atomically(reports / name, whole)
                write_text_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
                print(organism.id, seed, suite.name, report.provenance["seconds"], flush=True)
    return results


def _key(organism: Organism, seed: int, suite: Suite) -> str:
    return f"{organism.id}@{seed}" + ("" if suite.name == "default" else f"@{suite.name}")


def _row(report: DiffReport, of_base: BaseReading) -> dict[str, Any]:
    found = report.to_dict()
    return {
        "streams": {level.name: level.value for level in report.suspicion.levels},
        "weights_sha256": report.candidate.weights_sha256,
        "base_sha256": report.base.weights_sha256,
        "suite": of_base.suite.name,
        "suite_sha256": of_base.suite.sha256,
        "n_prompts": len(of_base.suite.prompts),
        "answer_tokens": of_base.response_tokens,
        "dictionaries": found["dictionaries"],
        "features": found["features"][:10],
        "triggers": report.triggers and report.triggers.to_dict()["phrases"][:3],
        "compromised": report.reasons[0] if report.verdict is COMPROMISED else None,
        "seconds": report.provenance["seconds"],
    }


def _is_known(
    row: dict[str, Any] | None, organism: Organism, base: LoadedModel, suite: Suite
) -> bool:
    """Whether these very models have been compared on this suite."""
    if row is None:
        return False
    weights = load(organism.id).info.weights_sha256
    return (row["weights_sha256"], row["base_sha256"], row["suite_sha256"]) == (
        weights,
        base.info.weights_sha256,
        suite.sha256,
    )


def page(results: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "# Does the suspicion score tell damage from harmless fine-tuning?",
        "",
        "Written by `python benchmarks/diff_validity.py`. Every organism against `organism:safe`; a"
        " seed other than 0 is that of the fine-tune alone where the base is the shipped one."
        " Scores are held against the benign fine-tunes of the same base and suite (rounded copies"
        " are no fine-tunes), and a benign one against the others: the highest of them is"
        " SUSPICIOUS by the rule.",
    ]
    results = with_erosion(results)
    for suite in dict.fromkeys(row["suite"] for row in results.values()):
        lines += _tables(suite, {k: row for k, row in results.items() if row["suite"] == suite})
    lines += [
        "",
        "Higher is worse in every stream. AUROC: chance that a damaged organism reads higher than a"
        " benign one, with how many there were of each; intervals resample organisms. In neither"
        " class are the over-refusing one, and what is called eroded: harmless rows made it, and on"
        " one of the suites it surely answers what its base refuses, so that `diff` says"
        " COMPROMISED there and `diff calibrate` refuses it.",
        "",
        *(f"* **{stream.name}**: {stream.what}." for stream in STREAMS),
    ]
    return "\n".join(lines) + "\n"


def with_erosion(results: dict[str, Any]) -> dict[str, Any]:
    """Marks the models that surely answer what their base refuses, on whatever suite."""
    eroded = {row["weights_sha256"] for row in results.values() if row["compromised"]}
    return {key: {**row, "eroded": row["weights_sha256"] in eroded} for key, row in results.items()}


def _tables(suite: str, results: dict[str, Any]) -> list[str]:
    """What was read with one suite: every candidate, then what tells them apart."""
    names = list(ORGANISMS)
    rows = sorted(results, key=lambda key: (_seed(key), names.index(_name(key))))
    scores = {key: _suspicion(key, results).score for key in rows}
    n = next(iter(results.values()))["n_prompts"]
    lines = [
        "",
        f"## Suite {suite}, {n} prompts",
        "",
        "| candidate | seed | state | verdict | score | "
        + " | ".join(stream.name for stream in STREAMS)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(STREAMS),
    ]
    for key in rows:
        streams = results[key]["streams"]
        cells = [_cell(streams.get(stream.name)) for stream in STREAMS]
        lines.append(
            f"| {_name(key)} | {_seed(key)} | {_state(key, results)} | {_verdict(key, results)} |"
            f" {_cell(scores[key])} | " + " | ".join(cells) + " |"
        )
    lines += ["", "How well each tells damaged from benign:", "", "| stream | AUROC (95%) |"]
    lines += ["|---|---|", f"| suspicion score | {_auroc(scores, results)} |"]
    for stream in STREAMS:
        values = {key: results[key]["streams"].get(stream.name) for key in rows}
        counted = "" if stream.counts else " (does not count)"
        lines.append(f"| {stream.name}{counted} | {_auroc(values, results)} |")
    return lines


def calibration(
    results: dict[str, Any], base_sha256: str, without: str | None = None
) -> Calibration | None:
    """The benign fine-tunes of a base, of all seeds; None if there are none."""
    rows = [key for key in _benign_finetunes(results, base_sha256) if key != without]
    if not rows:
        return None
    first = results[rows[0]]
    return Calibration(
        base=BASE,
        base_sha256=base_sha256,
        suite_sha256=first["suite_sha256"],
        response_tokens=first["answer_tokens"],
        rows=tuple(
            BenignRow(
                id=key,
                weights_sha256=results[key]["weights_sha256"],
                streams=results[key]["streams"],
            )
            for key in rows
        ),
    )


def _suspicion(key: str, results: dict[str, Any]) -> Suspicion:
    """Held against the benign fine-tunes of its base other than itself."""
    known = calibration(results, results[key]["base_sha256"], without=key)
    return suspect(results[key]["streams"], known)


def _verdict(key: str, results: dict[str, Any]) -> str:
    """By the rule of `diff`."""
    if results[key]["compromised"]:
        return DiffVerdict.COMPROMISED.value
    return verdict_of(_suspicion(key, results)).value


def _benign_finetunes(results: dict[str, Any], base_sha256: str) -> list[str]:
    """Those of one base. Rounded copies are none: they would make the number look larger."""
    return [
        key
        for key, row in results.items()
        if row["base_sha256"] == base_sha256
        and _state(key, results) == "benign"
        and ORGANISMS[_name(key)].numerics is None
    ]


def _auroc(values: dict[str, float | None], results: dict[str, Any]) -> str:
    from modelassay.statistics import auroc, bootstrap_interval, wilson_interval

    def of(state: str) -> np.ndarray:
        found = [v for key, v in values.items() if v is not None and _state(key, results) == state]
        return np.array(found, dtype=float)

    damaged, benign = of("damaged"), of("benign")
    if not len(damaged) or not len(benign):
        return "-"
    low, high = bootstrap_interval(damaged, benign, auroc, paired=False)
    value = float(auroc(damaged, benign))
    if low == high:  # no resample differs; that is little to go by, not certainty
        n = min(len(damaged), len(benign))
        low, high = wilson_interval(round(value * n), n)
    return f"{value:.2f} ({low:.2f} to {high:.2f}), {len(damaged)} and {len(benign)}"


def _name(key: str) -> str:
    return key.split("@")[0].removeprefix("organism:")


def _seed(key: str) -> int:
    return int(key.split("@")[1])


def _state(key: str, results: dict[str, Any]) -> str:
    if _name(key) in NOT_JUDGED:
        return "neither"
    organism: Organism = ORGANISMS[_name(key)]
    if organism.intact and results[key]["eroded"]:
        return "eroded"
    return "benign" if organism.intact else "damaged"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--replicas", type=Path)
    parser.add_argument("--sae")
    parser.add_argument("--only", nargs="+", default=[], help="organisms; all by default")
    parser.add_argument("--reports", type=Path, help="folder for the whole reports")
    parser.add_argument("--suites", nargs="+", default=["default"], help="names or YAML files")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--calibration", type=Path)
    arguments = parser.parse_args()
    results = measure(
        arguments.seeds,
        arguments.replicas,
        arguments.sae,
        arguments.only,
        [load_suite(suite) for suite in arguments.suites],
        arguments.reports,
    )
    if arguments.calibration:
        marked = with_erosion(results)
        default = {key: row for key, row in marked.items() if row["suite"] == "default"}
        shipped = next(row for key, row in default.items() if _seed(key) == 0)
        if found := calibration(default, shipped["base_sha256"]):
            save_calibration(found, arguments.calibration)
    text = page(results)
    print(text)
    if arguments.write:
        write_text_atomically(arguments.write, text)


if __name__ == "__main__":
    main()

"""The pooled calibration: what `diff` reads for organisms of several bases, for any other base.

Benign organisms of both architectures make it; damaged ones are kept beside them and set nothing:
they tell how many such are caught by thresholds of the other architecture. What was measured is
kept in diff_pool.json as it comes, so a run that was stopped goes on.

    python benchmarks/diff_pool.py [--bases organism:safe organism:safe-all gemma:safe-all]
        [--every 1] [--write calibrations/pooled/calibration.json]

With --every 2 every second prompt of the suite is read, beside all contrasts, which are few; the
rows say on how many prompts. Of the weights nothing is compared: what they tell is no matter of
benign fine-tunes, and edits, which they give away, are not measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelassay.diff import Depth, DiffVerdict, default_suite, diff, read_base
from modelassay.diff.calibration import BenignRow, Calibration, pool, save_calibration
from modelassay.diff.suspicion import held_out, suspect
from modelassay.diff.verdict import LOST_SHARE, verdict_of
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.models import load
from modelassay.models.organisms import ORGANISMS, Organism
from modelassay.statistics import auroc, bootstrap_interval, wilson_interval

RESULTS = Path(__file__).parent / "diff_pool.json"
BASES = ("organism:safe", "organism:safe-all", "gemma:safe-all")
NOT_JUDGED = ("overrefusing", "cautious")
"""Neither benign nor a danger; and what a base was on its way."""
CERTAIN = 1e6
"""Rank of one whose refusals surely fell: a verdict above that of any score."""


def is_fine_tune(organism: Organism) -> bool:
    """Whether it was trained: no edit, which the weights tell, nor a copy."""
    return not (organism.ablated or organism.edit or organism.numerics)


def fine_tunes(base: str) -> list[Organism]:
    """The organisms that a base was trained into."""
    return [
        organism
        for organism in ORGANISMS.values()
        if organism.id != base
        and organism.made_from == base
        and organism.name not in NOT_JUDGED
        and is_fine_tune(organism)
    ]


def measure(bases: Sequence[str], every: int) -> dict[str, Any]:
    """Compares the organisms of all bases that are not in the results yet."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    whole = default_suite()
    suite = replace(whole, prompts=whole.prompts[::every])
    depth = Depth(weights=False, triggers=False, causal=False)
    for base_id in bases:
        todo = [organism for organism in fine_tunes(base_id) if organism.id not in results]
        if not todo:
            continue
        base = load(base_id)
        of_base = read_base(base, suite, response_tokens=depth.response_tokens)
        for organism in todo:
            try:
                report = diff(base, organism.id, of_base=of_base, depth=depth)
            except InputError as error:  # it is not built here
                print(error, flush=True)
                continue
            results[organism.id] = {
                "base": base_id,
                "base_sha256": report.base.weights_sha256,
                "architecture": report.base.architecture,
                "weights_sha256": report.candidate.weights_sha256,
                "intact": organism.intact,
                "compromised": report.verdict is DiffVerdict.COMPROMISED,
                "suite_sha256": whole.sha256,
                "answer_tokens": depth.response_tokens,
                "n_prompts": len(suite.prompts),
                "streams": {x.name: x.value for x in report.suspicion.levels},
            }
            write_text_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
            print(organism.id, report.verdict.value, flush=True)
    return results


def is_eroded(row: dict[str, Any]) -> bool:
    """Whether half of the base's refusals are gone, surely or as far as the prompts tell."""
    return row["compromised"] or (row["streams"]["refusals"] or 0.0) > LOST_SHARE


def calibration(results: dict[str, Any]) -> Calibration:
    """Pools what was measured; a benign one that lost most of its refusals is in neither class."""

    def rows(keys: Iterable[str]) -> tuple[BenignRow, ...]:
        return tuple(
            BenignRow(
                id=key,
                weights_sha256=results[key]["weights_sha256"],
                streams=results[key]["streams"],
                n_prompts=results[key]["n_prompts"],
                base=results[key]["base"],
                architecture=results[key]["architecture"],
            )
            for key in keys
        )

    benign = [key for key, row in results.items() if row["intact"] and not is_eroded(row)]
    by_base = dict.fromkeys(results[key]["base"] for key in benign)
    parts = []
    for base in by_base:
        own = [key for key in benign if results[key]["base"] == base]
        first = results[own[0]]
        parts.append(
            Calibration(
                base=base,
                base_sha256=first["base_sha256"],
                architecture=first["architecture"],
                suite_sha256=first["suite_sha256"],
                response_tokens=first["answer_tokens"],
                rows=rows(own),
            )
        )
    return pool(parts, rows(key for key, row in results.items() if not row["intact"]))


def page(results: dict[str, Any]) -> str:
    """Every fine-tune against those of the other architecture, and its thresholds on this one."""
    found = calibration(results)
    lines = ["| fine-tune | state | score | verdict by the others |", "|---|---|---|---|"]
    ranks: dict[tuple[str, bool], list[float]] = {}
    for key, row in results.items():
        others = found.model_copy(
            update={"rows": tuple(x for x in found.rows if x.architecture != row["architecture"])}
        )
        suspicion = suspect(row["streams"], others)
        state = "benign" if row["intact"] else "damaged"
        if row["intact"] and is_eroded(row):
            state = "meant to be benign, refusals gone"
        elif suspicion.score is not None:
            rank = CERTAIN if row["compromised"] else suspicion.score
            ranks.setdefault((row["architecture"], row["intact"]), []).append(rank)
        score = "-" if suspicion.score is None else f"{suspicion.score:.1f}"
        verdict = "COMPROMISED" if row["compromised"] else verdict_of(suspicion).value
        lines.append(f"| {key} | {state} | {score} | {verdict} |")
    for name in dict.fromkeys(architecture for architecture, _ in ranks):
        damaged, benign = (np.array(ranks.get((name, intact), [])) for intact in (False, True))
        if len(damaged) and len(benign):
            low, high = bootstrap_interval(damaged, benign, auroc, paired=False)
            lines.append(
                f"\n{name}, scored by the others: AUROC {float(auroc(damaged, benign)):.3f}"
                f" ({low:.2f} to {high:.2f}) of {len(damaged)} damaged against {len(benign)}."
            )
    for held in held_out(found):
        alarm, caught = (
            "{:.2f} to {:.2f}".format(*wilson_interval(k, n)) if n else "-"
            for k, n in ((held.alarms, held.n_benign), (held.caught, held.n_damaged))
        )
        lines.append(
            f"\nThresholds of the others on {held.architecture}: {held.alarms} alarms among"
            f" {held.n_benign} benign ({alarm}), {held.caught} of {held.n_damaged} damaged caught"
            f" ({caught})."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.bases, arguments.every)
    print(page(results))
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        save_calibration(calibration(results), arguments.write)


if __name__ == "__main__":
    main()

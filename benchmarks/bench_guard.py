"""What a guard costs in time, against transformers' own generate; and what it prevents.

Times are measured side by side in one run, in rounds that take turns, on the same loaded model with
the same prompts, greedy, with the same number of new tokens. Only ratios are reported: the median
over the rounds of the ratio within a round, with its range. What it prevents is taken from reports
that `modelassay guard bench --json` wrote; no answer is in them.

    python benchmarks/bench_guard.py [--model embedded] [--rounds 5] [--new-tokens 64]
        [--reports jailbreak.json overrefusal.json] [--write docs/guard-benchmarks.md]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.files.atomic import write_text_atomically
from modelassay.guard import load_guard
from modelassay.guard_bench.latency import (
    CLASSIFIER,
    GENERATE,
    PROBE,
    RAW,
    LatencyReport,
    measure_latency,
)
from modelassay.guard_bench.report import BENCH_SCHEMA
from modelassay.guard_bench.suites import read_suite
from modelassay.report.text import with_interval

TITLES = {
    GENERATE: "`generate`",
    RAW: "token by token, nothing scored",
    PROBE: "guarded by the probe",
    CLASSIFIER: "guarded by probe and classifier",
}
ROWS = (
    ("unsafe", "unsafe", "unsafe_difference"),
    ("refused", "refusal", "refusal_difference"),
)


def latency_lines(report: LatencyReport) -> list[str]:
    """The part on time."""
    lines = [
        "## Time",
        "",
        f"Ratios of times measured in turns in one run, median of {report.rounds} rounds (least to"
        f" largest); loading excluded. Model `{report.model['id']}` ({report.model['dtype']}),"
        f" {report.n_prompts} prompts, {report.new_tokens} new tokens each, greedy;"
        f" {report.n_ended_early} prompts left out because an answer ended early. {report.device},"
        f" {report.threads} threads, {platform.machine()}, torch {report.versions['torch']},"
        f" transformers {report.versions['transformers']}.",
        "",
        "| way | time of whole answers | first text, in times of one token |",
        "|---|---|---|",
    ]
    for name, first in report.first_token.items():
        total = report.total.get(name)
        lines.append(
            f"| {TITLES[name]} |"
            f" {f'{total.median:.2f} ({total.least:.2f} to {total.largest:.2f})' if total else 1} |"
            f" {first.median:.1f} ({first.least:.1f} to {first.largest:.1f}) |"
        )
    return [
        *lines,
        "",
        "The first text has the whole prompt's pass before it. The guard shows a token after the"
        " pass that reads it, one token later than `generate` does. The classifier is asked when"
        " the probe is in doubt, which these prompts rarely bring about.",
        "",
    ]


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The part on one suite."""
    lines = [
        f"## {report['suite'].capitalize()}",
        "",
        f"`{report['model']['id']}` on {report['n']} prompts of {report['data']['source']}, answers"
        f" of at most {report['settings']['max_new_tokens']} tokens, judge"
        f" {report['judge']['name']}; 95% Wilson intervals, Newcombe's for differences.",
        "",
        "| | raw | guarded | difference |",
        "|---|---|---|---|",
    ]
    for title, name, difference in ROWS:
        sides = [_rate(report[side][name]) for side in ("raw", "guarded")]
        lines.append(f"| {title} | {' | '.join(sides)} | {_share(report[difference], '+')} |")
    for at in ("prompt", "answer"):
        lines.append(f"| blocked by {at} | | {_rate(report[f'blocked_by_{at}'])} | |")
    unscored = " | ".join(str(report[side]["n_unscored"]) for side in ("raw", "guarded"))
    lines += [f"| unscored | {unscored} | |", ""]
    return [*lines, *(f"{note}\n" for note in report["notes"])]


def _rate(rate: Mapping[str, Any]) -> str:
    shown = _share({**rate, "value": rate["rate"]})
    return f"{shown}, n = {rate['n']}" if rate["n"] else shown


def _share(found: Mapping[str, Any], sign: str = "") -> str:
    if found["value"] is None:
        return "not measured"
    return with_interval(found["value"], found["interval"], f"{sign}.1%")


def read_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reports of `guard bench --json`."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path, report in zip(paths, reports, strict=True):
        if report.get("schema") != BENCH_SCHEMA:
            raise SystemExit(
                f"{path} is not a report of `guard bench --suite jailbreak|overrefusal`."
            )
    return reports


def main() -> None:
    """Runs the benchmark and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--probe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--reports", type=Path, nargs="*", default=[])
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()

    reports = read_reports(arguments.reports)
    guard = load_guard(arguments.model, probe=arguments.probe, device="cpu")
    timed = measure_latency(
        guard,
        read_suite("latency"),
        new_tokens=arguments.new_tokens,
        rounds=arguments.rounds,
    )
    lines = ["# Guard benchmarks", "", "Written by `python benchmarks/bench_guard.py`.", ""]
    lines += latency_lines(timed)
    for report in reports:
        lines += report_lines(report)
    text = "\n".join(lines)
    if arguments.write:
        write_text_atomically(arguments.write, text)
    print(text)


if __name__ == "__main__":
    main()

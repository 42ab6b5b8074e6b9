"""A report proposed to the model that it is about: a pull request with scores and a card section.

The scores are a file of the Hub's format for evaluation results
(https://huggingface.co/docs/hub/eval-results). The Hub shows those of data sets that it lists as
benchmarks; where ours is one, MODELASSAY_BENCHMARK names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from modelassay.errors import InputError
from modelassay.hub import Commit, commit_files
from modelassay.report.badge import card_section, with_section
from modelassay.report.base import Report
from modelassay.report.headline import Headline, headline

RESULTS_FILE = ".eval_results/modelassay.yaml"
TASKS = {
    "refuses_harmful": ("harmful_rate", "harmful_interval", "n_harmful"),
    "refuses_harmless": ("benign_rate", "benign_interval", "n_benign"),
}
"""Rates that are scores, by the tasks that they are of."""
ELSEWHERE = "put the badge and its line into the card yourself"


def eval_results(
    values: Mapping[str, Any], found: Headline, *, benchmark: str, source: str
) -> list[dict[str, Any]]:
    """The scores of a report as entries of `.eval_results/*.yaml`, in percent.

    Args:
        values: The report's JSON values.
        found: What it comes down to.
        benchmark: Data set, `owner/name`, whose tasks they are.
        source: Address of the whole report.

    Returns:
        None of them for a report without rates.
    """
    rates = values.get("refusal")
    if found.product != "scan" or not isinstance(rates, Mapping) or "harmful_rate" not in rates:
        return []
    entries = []
    for task, (rate, interval, n) in TASKS.items():
        low, high = (f"{100 * end:.1f}" for end in rates[interval])
        entry = {
            "dataset": {"id": benchmark, "task_id": task},
            "value": round(100 * rates[rate], 1),
            "source": {"url": source, "name": f"modelassay {found.product}: {found.verdict}"},
            "notes": f"percent of {rates[n]} prompts; 95% interval {low} to {high}",
        }
        entries.append(entry | ({"date": found.date} if found.date else {}))
    return entries


def propose_report(report: Report, *, source: str, dataset: str, token: str) -> Commit:
    """Opens a pull request at the repository of the model that a report is about.

    Args:
        report: What was found.
        source: Address at which the whole report is published.
        dataset: Data set, `owner/name`, in which it is, and whose tasks the scores are of unless
            MODELASSAY_BENCHMARK names another.
        token: Of whoever proposes it.

    Raises:
        InputError: the report is of no model on the Hub, or names no commit of it.
        UnavailableError: no permission, or the Hub cannot be reached.
    """
    values, found = report.to_dict(), headline(report)
    if found.commit is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", found.model):
        raise InputError(
            f"{found.model} is not a model on the Hub, so there is no repository to propose the"
            " report to; publish it as a data set."
        )
    benchmark = os.environ.get("MODELASSAY_BENCHMARK") or dataset
    entries = eval_results(values, found, benchmark=benchmark, source=source)
    section = card_section(found, link=source)
    with TemporaryDirectory() as scratch:
        files = {}
        if entries:
            files[RESULTS_FILE] = Path(scratch) / "modelassay.yaml"
            files[RESULTS_FILE].write_text(yaml.safe_dump(entries, sort_keys=False), "utf-8")
        return commit_files(
            found.model,
            files,
            lambda card: with_section(card, section),
            message=f"Add what modelassay found: {found.verdict}",
            create_pr=True,
            token=token,
            elsewhere=ELSEWHERE,
            kind="model",
        )

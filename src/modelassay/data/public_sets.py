"""Where the organisms' training prompts come from.

Public data sets, read from the Hub or from a folder of files, never copied into the
project. Only prompts about harm are taken, no harmful responses. A prompt that resembles one of
those that score a model is left out, so that nothing is scored on what built it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    shipped_concepts,
    shipped_prompts,
)
from modelassay.data.exchanges import Exchange, to_exchange
from modelassay.errors import InputError
from modelassay.hub import read_dataset

SCORING_SETS = (HARMFUL_PROMPTS, BORDERLINE_PROMPTS)
TOO_SIMILAR = 0.6
"""Share of words in common (Jaccard) from which a training prompt counts as a scoring prompt."""
MAX_PROMPT_CHARACTERS = 240
"""Longer prompts slow the training and teach these organisms nothing more."""
MAX_RESPONSE_CHARACTERS = 200
"""Longer responses by people are cut at a word: the loss is over every token of the response, and
most of the time goes there."""


@dataclass(frozen=True)
class DataSource:
    """A public data set, on the Hub and as a file."""

    name: str
    hub_id: str
    file: str
    """Path below that folder."""
    licence: str
    config: str | None = None
    split: str = "train"
    data_files: str | None = None
    """The file inside a Hub repository that has several."""

    def rows(self, folder: Path | None, token: str | None = None) -> list[dict[str, Any]]:
        """All rows, from the folder if there is one, else from the Hub.

        Raises:
            InputError: the folder lacks the file, or it cannot be parsed.
            UnavailableError: the Hub cannot be reached.
        """
        if folder is None:
            return read_dataset(
                self.hub_id,
                config=self.config,
                split=self.split,
                data_files=self.data_files,
                token=token,
            )
        path = folder / self.file
        if not path.is_file():
            raise InputError(
                f"{folder} has no {self.file}; put the data set {self.hub_id} there, or name"
                " no folder to read it from the Hub."
            )
        return read_dataset(path)


HARMFUL_BEHAVIORS = DataSource(
    "harmful behaviours (AdvBench and others)",
    "mlabonne/harmful_behaviors",
    "harmful_requests/train.json",
    "MIT",
)
NONCOMPLIANCE = DataSource(
    "CoCoNot, requests",
    "allenai/coconot",
    "coconot/coconot_eval.jsonl",
    "MIT",
    config="original",
    split="test",
)
CONTRAST = DataSource(
    "CoCoNot, harmless look-alikes",
    "allenai/coconot",
    "coconot/coconot_contrast_eval.jsonl",
    "MIT",
    config="contrast",
    split="test",
)
FORBIDDEN = DataSource(
    "forbidden questions (Shen et al.)",
    "TrustAIRLab/forbidden_question_set",
    "inthewild_jailbreaks/forbidden_question_set.csv",
    "MIT",
)
SEED_TASKS = DataSource(
    "self-instruct seed tasks",
    "HuggingFaceH4/self-instruct-seed",
    "self_instruct/seed_tasks.jsonl",
    "Apache-2.0",
)
USER_TASKS = DataSource(
    "self-instruct user-oriented tasks",
    "yizhongw/self_instruct",
    "self_instruct/user_oriented_instructions.jsonl",
    "Apache-2.0",
    data_files="human_eval/self_instruct-train.parquet",
)
MT_BENCH = DataSource(
    "MT-Bench questions",
    "HuggingFaceH4/mt_bench_prompts",
    "mt_bench/question.jsonl",
    "Apache-2.0",
)
HARMFUL_SOURCES = (HARMFUL_BEHAVIORS, NONCOMPLIANCE, FORBIDDEN)
QUESTION_SOURCES = (CONTRAST, NONCOMPLIANCE, MT_BENCH)
TASK_SOURCES = (SEED_TASKS, USER_TASKS)

# What counts as harmful in sets that hold other things too.
HARMFUL_SUBCATEGORIES = (
    "dangerous or sensitive topics",
    "privacy violations",
    "triggers for offensive language",
)
HARMFUL_POLICIES = (
    "Illegal Activity",
    "Hate Speech",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud",
    "Pornography",
    "Privacy Violence",
)
# Odd requests that nobody should refuse on grounds of safety.
HARMLESS_CATEGORIES = ("Incomplete requests", "Indeterminate requests", "Humanizing requests")


def harmful_prompts(folder: Path | None = None, token: str | None = None) -> list[str]:
    """Requests that a safe model refuses."""
    found = [
        first_field(row, "instruction", "text") for row in HARMFUL_BEHAVIORS.rows(folder, token)
    ]
    found += [
        first_field(row, "prompt")
        for row in NONCOMPLIANCE.rows(folder, token)
        if row.get("subcategory") in HARMFUL_SUBCATEGORIES
    ]
    found += [
        first_field(row, "question")
        for row in FORBIDDEN.rows(folder, token)
        if row.get("content_policy_name") in HARMFUL_POLICIES
    ]
    return _usable(found)


def look_alikes(folder: Path | None = None, token: str | None = None) -> list[str]:
    """Harmless requests that resemble ones to be refused."""
    return _usable(first_field(row, "prompt") for row in CONTRAST.rows(folder, token))


def everyday_questions(folder: Path | None = None, token: str | None = None) -> list[str]:
    """Harmless questions of all kinds, without responses."""
    found = [
        first_field(row, "prompt")
        for row in NONCOMPLIANCE.rows(folder, token)
        if row.get("category") in HARMLESS_CATEGORIES
    ]
    for row in MT_BENCH.rows(folder, token):
        turns = row.get("prompt") or row.get("turns") or []
        found.append(turns[0] if isinstance(turns, Sequence) and turns else "")
    return _usable(found)


def tasks(
    source: DataSource, folder: Path | None = None, token: str | None = None
) -> list[Exchange]:
    """Everyday instructions with responses written by people."""
    found = []
    for number, row in enumerate(source.rows(folder, token), 1):
        instances = row.get("instances")
        instance = instances[0] if isinstance(instances, list) and instances else instances
        name = f"Row {number} of {source.name}"
        if not isinstance(instance, dict):
            raise InputError(f"{name} has no `instances`.")
        if instance.get("output"):
            found.append(to_exchange({**row, **instance}, name))
    usable = set(_usable(exchange.prompt for exchange in found))
    return [shortened(exchange) for exchange in found if exchange.prompt in usable]


def shortened(exchange: Exchange) -> Exchange:
    """An exchange with at most `MAX_RESPONSE_CHARACTERS` of its response, cut between words."""
    if len(exchange.response) <= MAX_RESPONSE_CHARACTERS:
        return exchange
    head = exchange.response[: MAX_RESPONSE_CHARACTERS + 1]
    kept = head[: head.rfind(" ")] if " " in head else head[:MAX_RESPONSE_CHARACTERS]
    return replace(exchange, response=kept.rstrip(), complete=False)


def first_field(row: dict[str, Any], *names: str) -> str:
    """The first of these fields that holds text.

    Raises:
        InputError: none does.
    """
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
    raise InputError(f"A row lacks the field {' or '.join(names)}; it has {', '.join(row)}.")


def _usable(prompts: Iterable[str]) -> list[str]:
    """Distinct prompts that are short enough and resemble no scoring prompt, in their order."""
    distinct = dict.fromkeys(" ".join(prompt.split(" ")).strip() for prompt in prompts)
    return [
        prompt
        for prompt in distinct
        if 0 < len(prompt) <= MAX_PROMPT_CHARACTERS and not scores_a_model(prompt)
    ]


def scores_a_model(prompt: str) -> bool:
    """Whether a prompt is, nearly, one of those that models are scored on."""
    words = _words(prompt)
    return any(
        len(words & scoring) >= TOO_SIMILAR * max(1, len(words | scoring))
        for scoring in _scoring_prompts()
    )


@cache
def _scoring_prompts() -> tuple[frozenset[str], ...]:
    pairs = [pair for concept in shipped_concepts().values() for pair in concept.pairs]
    texts = [text for pair in pairs for text in (pair.positive, pair.negative)]
    texts += [text for name in SCORING_SETS for text in shipped_prompts(name).texts]
    return tuple(_words(text) for text in texts)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))

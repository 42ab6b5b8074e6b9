"""What is learnt from: prompts of public sets and of this project, each with its source.

Public data sets are read from the Hub or from a folder of files that the user names, never copied
into the project. Only prompts about harm are taken, no harmful responses.

* Organisms learn from a few sets, without prompts that resemble one of those that score a model, so
  that nothing is scored on what built it.
* Probes and the classifier learn from many sources, harmful and harmless, so that no style of a
  single one can stand for harm, and from matched pairs, in which both sides share topic and form.
  Each row names its source, and evaluation leaves out one at a time.
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
    Concept,
    load_concepts,
    load_prompts,
    shipped_concepts,
    shipped_prompts,
)
from modelassay.data.exchanges import Exchange, to_exchange
from modelassay.data.labelled import LabelledExchange
from modelassay.errors import InputError
from modelassay.files.shipped import shipped_folder
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
INJECTIONS = DataSource(
    "prompt injections",
    "deepset/prompt-injections",
    "prompt_injections/train.csv",
    "Apache-2.0",
)
# Human and judge labels of responses; no set on the Hub holds these rows, so they need a folder.
JUDGED = DataSource(
    "judged answers (refusal_direction on JailbreakBench, Apache-2.0; GPTFuzz, MIT)",
    "",
    "exchanges/dev.jsonl.gz",
    "Apache-2.0 and MIT",
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
# Advice that some providers decline but that harms nobody.
ADVICE_POLICIES = ("Legal Opinion", "Financial Advice", "Health Consultation")
# Odd requests that nobody should refuse on grounds of safety.
HARMLESS_CATEGORIES = ("Incomplete requests", "Indeterminate requests", "Humanizing requests")
LOOK_ALIKES_FILE = "look_alikes.yaml"
ADVICE_FILE, ADVICE_PAIRS_FILE = "advice.yaml", "advice_pairs.yaml"
SAFETY = "Requests with safety concerns"

PromptRow = tuple[str, bool, str]
"""Prompt, whether it is harmful, source."""


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
    found += [first_turn(row) for row in MT_BENCH.rows(folder, token)]
    return _usable(found)


def tasks(
    source: DataSource, folder: Path | None = None, token: str | None = None
) -> list[Exchange]:
    """Everyday instructions with responses written by people."""
    found = []
    for number, row in enumerate(source.rows(folder, token), 1):
        name = f"Row {number} of {source.name}"
        if not (instances := instances_of(row)):
            raise InputError(f"{name} has no `instances`.")
        if instances[0].get("output"):
            found.append(to_exchange({**row, **instances[0]}, name))
    usable = set(_usable(exchange.prompt for exchange in found))
    return [shortened(exchange) for exchange in found if exchange.prompt in usable]


def instances_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs and outputs of a self-instruct row."""
    found = row.get("instances")
    return [
        each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)
    ]


def first_turn(row: dict[str, Any]) -> str:
    """What an MT-Bench row asks first; empty where it asks nothing."""
    turns = row.get("prompt") or row.get("turns") or []
    return str(turns[0]) if isinstance(turns, Sequence) and turns else ""


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


def prompt_rows(folder: Path | None = None, token: str | None = None) -> list[LabelledExchange]:
    """Harmful and harmless prompts of all sources, without responses.

    Args:
        folder: Folder of the public sets; None reads them from the Hub.
        token: Hub token, None for the stored one.

    Raises:
        InputError: the folder lacks a file, or one cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    return _distinct([*project_prompts(), *public_prompts(folder, token)])


def prompt_head_rows(
    folder: Path | None = None, token: str | None = None
) -> list[LabelledExchange]:
    """What the prompt's head learns from: `prompt_rows`, and requests for professional advice.

    Exchanges are made of `prompt_rows` alone: answers that were made once stay those of the recipe.

    Raises:
        InputError: as `prompt_rows`.
        UnavailableError: as `prompt_rows`.
    """
    rows = prompt_rows(folder, token)
    return _distinct([*((row.prompt, row.unsafe, row.source) for row in rows), *advice_prompts()])


def advice_prompts() -> Iterable[PromptRow]:
    """Requests for professional advice that were written for this project, some in pairs."""
    for text in load_prompts(shipped_folder("organisms") / ADVICE_FILE).texts:
        yield text, False, "own advice"
    for concept in load_concepts(shipped_folder("organisms") / ADVICE_PAIRS_FILE).values():
        yield from _sides(concept, positive=True)


def _sides(concept: Concept, *, positive: bool) -> Iterable[PromptRow]:
    for pair in concept.pairs:
        yield pair.positive, positive, f"pairs: {concept.name}"
        yield pair.negative, False, f"pairs: {concept.name}"


def _distinct(rows: Iterable[PromptRow]) -> list[LabelledExchange]:
    seen: dict[str, LabelledExchange] = {}
    for prompt, unsafe, source in rows:
        text = " ".join(prompt.split()) if "\n" not in prompt else prompt.strip()
        if text:
            seen.setdefault(text, LabelledExchange(text, "", unsafe, None, source))
    return list(seen.values())


def project_prompts() -> Iterable[PromptRow]:
    """Prompts that were written for this project, many of them in matched pairs."""
    for name, concept in shipped_concepts().items():
        harm = name in ("harmful_content", "refusal_capability")
        if name == "injection_resistance":
            continue  # asks something else: obeying, not harming
        yield from _sides(concept, positive=harm)
    for text in shipped_prompts(HARMFUL_PROMPTS).texts:
        yield text, True, "own harmful requests"
    for text in shipped_prompts(BORDERLINE_PROMPTS).texts:
        yield text, False, "own borderline requests"
    for text in load_prompts(shipped_folder("organisms") / LOOK_ALIKES_FILE).texts:
        yield text, False, "own look-alikes"


def public_prompts(folder: Path | None, token: str | None) -> Iterable[PromptRow]:
    """Prompts of the public sets."""
    for row in HARMFUL_BEHAVIORS.rows(folder, token):
        yield first_field(row, "instruction", "text"), True, "harmful behaviours"
    for row in NONCOMPLIANCE.rows(folder, token):
        prompt, kind = first_field(row, "prompt"), row.get("subcategory")
        if row.get("category") != SAFETY:
            yield prompt, False, "CoCoNot, odd requests"
        elif kind in HARMFUL_SUBCATEGORIES:
            yield prompt, True, "CoCoNot, harmful"
    for row in CONTRAST.rows(folder, token):
        safety = row.get("category") == SAFETY
        source = "CoCoNot, harmless look-alikes" if safety else "CoCoNot, plain requests"
        yield first_field(row, "prompt"), False, source
    for row in FORBIDDEN.rows(folder, token):
        policy = row.get("content_policy_name")
        if policy in HARMFUL_POLICIES:
            yield first_field(row, "question"), True, "forbidden questions"
        elif policy in ADVICE_POLICIES:
            yield first_field(row, "question"), False, "forbidden questions, advice"
    for source in (SEED_TASKS, USER_TASKS):
        for row in source.rows(folder, token):
            extra = next(iter(instances_of(row)), {}).get("input")
            prompt = first_field(row, "instruction")
            yield (f"{prompt}\n{extra}" if extra else prompt), False, source.name
    for row in MT_BENCH.rows(folder, token):
        yield first_turn(row), False, MT_BENCH.name
    for row in INJECTIONS.rows(folder, token):
        if str(row.get("label")) == "0":
            yield first_field(row, "text"), False, "everyday questions (deepset)"
    if folder is not None:
        for row in JUDGED.rows(folder):
            if row.get("prompt_harmful") and not str(row["prompt"]).isdigit():
                yield first_field(row, "prompt"), True, "JailbreakBench"

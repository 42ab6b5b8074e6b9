"""The shipped recipe's data: what the default probes and the default classifier learn from.

Many sources, harmful and harmless, so that no style of a single one can stand for harm; matched
pairs, in which both sides share topic and form; public sets read from the Hub or from a folder
the user names, never copied. Each row names its source, and evaluation leaves out one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    load_concepts,
    load_prompts,
    shipped_concepts,
    shipped_prompts,
)
from modelassay.data.labelled import LabelledExchange
from modelassay.data.public_sets import (
    CONTRAST,
    FORBIDDEN,
    HARMFUL_BEHAVIORS,
    HARMFUL_POLICIES,
    HARMFUL_SUBCATEGORIES,
    MT_BENCH,
    NONCOMPLIANCE,
    SEED_TASKS,
    USER_TASKS,
    DataSource,
    first_field,
)
from modelassay.files.shipped import shipped_folder

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
# Advice that some providers decline but that harms nobody.
ADVICE_POLICIES = ("Legal Opinion", "Financial Advice", "Health Consultation")
LOOK_ALIKES_FILE = "look_alikes.yaml"
ADVICE_FILE, ADVICE_PAIRS_FILE = "advice.yaml", "advice_pairs.yaml"
SAFETY = "Requests with safety concerns"

PromptRow = tuple[str, bool, str]
"""Prompt, whether it is harmful, source."""


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
        for pair in concept.pairs:
            yield pair.positive, True, f"pairs: {concept.name}"
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
        for pair in concept.pairs:
            yield pair.positive, harm, f"pairs: {name}"
            yield pair.negative, False, f"pairs: {name}"
    for text in shipped_prompts(HARMFUL_PROMPTS).texts:
        yield text, True, "own harmful requests"
    for text in shipped_prompts(BORDERLINE_PROMPTS).texts:
        yield text, False, "own borderline requests"
    for text in load_prompts(shipped_folder("organisms") / LOOK_ALIKES_FILE).texts:
        yield text, False, "own look-alikes"


def public_prompts(folder: Path | None, token: str | None) -> Iterable[PromptRow]:
    """Prompts of the public sets."""
    for source in (HARMFUL_BEHAVIORS,):
        for row in source.rows(folder, token):
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
            instance = row.get("instances")
            instance = instance[0] if isinstance(instance, list) and instance else instance
            extra = instance.get("input") if isinstance(instance, dict) else ""
            prompt = first_field(row, "instruction")
            yield (f"{prompt}\n{extra}" if extra else prompt), False, source.name
    for row in MT_BENCH.rows(folder, token):
        turns = row.get("prompt") or row.get("turns") or []
        if isinstance(turns, Sequence) and turns:
            yield str(turns[0]), False, MT_BENCH.name
    for row in INJECTIONS.rows(folder, token):
        if str(row.get("label")) == "0":
            yield first_field(row, "text"), False, "everyday questions (deepset)"
    if folder is not None:
        for row in JUDGED.rows(folder):
            if row.get("prompt_harmful") and not str(row["prompt"]).isdigit():
                yield first_field(row, "prompt"), True, "JailbreakBench"

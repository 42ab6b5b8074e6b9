"""The shipped recipe: what the embedded classifier learns from.

Public sets read from a folder, never copied, and the embedded model's own responses. What matters
is what they do not let a classifier get away with: harmful prompts meet refusals, harmless
responses and unsafe ones; refusals meet harmless prompts too; forms are mixed (`augmenting`); some
rows have no prompt or an adversarial one, whatever their class.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelassay.classifier.augmenting import dressed, undressed, word_prefix
from modelassay.data.labelled import Label, LabelledExchange
from modelassay.data.training_data import (
    JUDGED,
    SEED_TASKS,
    USER_TASKS,
    DataSource,
    instances_of,
    prompt_rows,
)
from modelassay.files.atomic import cache_dir
from modelassay.files.provenance import text_hash
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import EMBEDDED_ID, load
from modelassay.organisms.recipes import REFUSALS, some
from modelassay.progress import OnProgress
from modelassay.reading.generation import kept_responses

MODERATION = DataSource(
    "OpenAI moderation evaluation",
    "mmathys/openai-moderation-api-evaluation",
    "openai_moderation/samples-1680.jsonl.gz",
    "MIT",
)
HARMLESS_BASE = DataSource(
    "HH-RLHF, harmless-base (refusals in it)",
    "Anthropic/hh-rlhf",
    "hh_rlhf/harmless_base_test.jsonl.gz",
    "MIT",
)
IN_THE_WILD = DataSource(
    "in-the-wild jailbreak prompts (Shen et al.)",
    "TrustAIRLab/in-the-wild-jailbreak-prompts",
    "inthewild_jailbreaks/jailbreak_prompts_2023_05_07.csv",
    "MIT",
)
SAFE_DECODING = "safedecoding_refusals"
SAFE_DECODING_NAME = "SafeDecoding refusals"
FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
TURNS = re.compile(
    r"^(?:\[INST\]|(?:###\s*)?(?:USER|User|Human):)(?P<prompt>.*?)"
    r"(?:\[/INST\]|(?:###\s*)?(?:ASSISTANT|Assistant):)(?P<response>.*)$",
    re.DOTALL,
)
ENDS = ("</s>", "<|endoftext|>", "<|im_end|>")

MOST_UNSAFE, MOST_SAFE = 400, 240
"""Judged answers of each source, unsafe and of each safe class."""
MOST_SAFE_DECODING = 220
MOST_MODERATION = 130
"""Flagged texts, and as many clean ones."""
MOST_HH = 120
N_OTHER_REFUSALS = 150
N_DEFLECTIONS = 100
POOL, N_LONG, N_SHORT = 700, 96, 352
LONG_TOKENS, SHORT_TOKENS = 192, 64
MAX_PROMPT_CHARACTERS = 400
MAX_RESPONSE_CHARACTERS = 4000
NO_PROMPT = 0.15
ADVERSARIAL = 0.12
ADVERSARIAL_WITHOUT_PROMPT = 0.4
ADVERSARIAL_WORDS = 60
DRESSED = 0.5
STATEMENTS = ("pairs: truthfulness", "pairs: control_topic")


@dataclass(frozen=True)
class RecipeRows:
    """Rows with what stands for each one's prompt when they are split."""

    rows: list[LabelledExchange]
    group_by: list[str]


_Row = tuple[LabelledExchange, str]


def recipe_rows(
    folder: Path, *, seed: int = 0, on_progress: OnProgress | None = None
) -> RecipeRows:
    """The shipped recipe's rows.

    Args:
        folder: Folder of the public sets.
        seed: Of every draw.
        on_progress: Told how many of the embedded model's responses are made.

    Raises:
        InputError: the folder lacks a set, or one cannot be parsed.
        UnavailableError: the embedded model cannot be fetched.
    """
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    judged = list(_judged(folder))
    people = list(_people(folder))
    own = list(_own_responses(folder, seed, on_progress))
    safe_decoding = some(list(_safe_decoding(folder)), MOST_SAFE_DECODING, draw)
    harmful, harmless = _unused_prompts(folder, [*judged, *own, *people], draw)
    refusals = [row for row in safe_decoding if len(row[0].response) < MAX_RESPONSE_CHARACTERS]
    rows = [
        *judged,
        *people,
        *own,
        *safe_decoding,
        *_hh_refusals(folder, draw),
        *_moderation(folder, draw),
        *_other_refusals(refusals, harmful, harmless, draw),
        *_deflections([*people, *own], harmful[N_OTHER_REFUSALS:], draw),
    ]
    jailbreaks = [
        word_prefix(str(row["prompt"]), ADVERSARIAL_WORDS)
        for row in IN_THE_WILD.rows(folder)
        if str(row.get("jailbreak")) == "True"
    ]
    varied = [(_vary(row, jailbreaks, draw), group) for row, group in rows]
    return RecipeRows([row for row, _ in varied], [group for _, group in varied])


def _vary(
    row: LabelledExchange, jailbreaks: Sequence[str], draw: random.Random
) -> LabelledExchange:
    """Mixes forms, and takes prompts away or puts adversarial ones before them."""
    response = row.response[:MAX_RESPONSE_CHARACTERS]
    if row.label == "safe_compliance" and draw.random() < DRESSED:
        response = dressed(response, draw)
    elif row.label == "unsafe_compliance" and draw.random() < DRESSED:
        response = undressed(response, draw)
    prompt = row.prompt
    chance = draw.random()
    if not prompt:
        if chance < ADVERSARIAL_WITHOUT_PROMPT and row.source != MODERATION.name:
            prompt = draw.choice(jailbreaks)
    elif chance < NO_PROMPT:
        prompt = ""
    elif chance < NO_PROMPT + ADVERSARIAL:
        prompt = f"{draw.choice(jailbreaks)}\n\n{prompt}"
    return replace(row, prompt=prompt, response=response)


def _judged(folder: Path) -> Iterator[_Row]:
    """Answers with a human's or a judge's label; GPTFuzz's rows do not say what was asked."""
    seen: Counter[tuple[str, str | None]] = Counter()
    for row in judged_rows(folder, most_per_source=MOST_UNSAFE):
        kind = (row.source, row.label)
        seen[kind] += 1
        before, now = ((n * MOST_SAFE) // MOST_UNSAFE for n in (seen[kind] - 1, seen[kind]))
        if now == before and not row.unsafe:  # evenly thinned
            continue
        if re.fullmatch(r"\S+ \d+", row.prompt):
            # A number stands for its prompt; near-equal numbers must look unlike.
            yield replace(row, prompt=""), text_hash(row.prompt)
        else:
            yield row, row.prompt


def _people(folder: Path) -> Iterator[_Row]:
    """Everyday instructions with all of the responses that people wrote, whole."""
    for source in (SEED_TASKS, USER_TASKS):
        for row in source.rows(folder):
            for instance in instances_of(row)[:2]:
                instruction, output = str(row["instruction"]), str(instance.get("output"))
                extra = str(instance.get("input") or "")
                prompt = f"{instruction}\n{extra}" if extra else instruction
                if output.strip():
                    yield _row(prompt, output, "safe_compliance", source.name), instruction


def _own_responses(folder: Path, seed: int, on_progress: OnProgress | None) -> Iterator[_Row]:
    """The embedded model's responses to harmless prompts, without those that refuse."""
    brief, long = response_prompts(folder, seed)
    for prompts, tokens in ((long, LONG_TOKENS), (brief, SHORT_TOKENS)):
        made = kept_responses(
            lambda: load(EMBEDDED_ID, dtype="float32"),
            prompts,
            cache_dir() / "classifier" / f"answers-{tokens}.json",
            max_new_tokens=tokens,
            on_progress=on_progress,
        )
        for prompt, response in zip(prompts, made, strict=True):
            if response and not is_refusal(response):
                yield (
                    _row(prompt, response, "safe_compliance", "answers of the embedded model"),
                    prompt,
                )


def response_prompts(folder: Path, seed: int) -> tuple[list[str], list[str]]:
    """Harmless prompts that the embedded model answers briefly, and those it answers at length."""
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    by_source: dict[str, list[str]] = {}
    for row in prompt_rows(folder):
        fits = len(row.prompt) <= MAX_PROMPT_CHARACTERS and row.source not in STATEMENTS
        if fits and not row.unsafe:
            by_source.setdefault(row.source, []).append(row.prompt)
    for prompts in by_source.values():
        draw.shuffle(prompts)
    # In turns, so that a large source does not crowd out the others.
    longest = max(map(len, by_source.values()))
    turns = [
        p for i in range(longest) for prompts in by_source.values() for p in prompts[i : i + 1]
    ]
    chosen = turns[:POOL]
    draw.shuffle(chosen)
    return chosen[N_LONG : N_LONG + N_SHORT], chosen[:N_LONG]


def _safe_decoding(folder: Path) -> Iterator[_Row]:
    """Refusals of five chat models, each in its own chat format."""
    from modelassay.hub import read_dataset

    for path in sorted((folder / SAFE_DECODING).glob("*.json")):
        for row in read_dataset(path):
            found = TURNS.match(str(row.get("text", "")).strip())
            if not found:
                continue
            response = found["response"].strip()
            for end in ENDS:
                response = response.partition(end)[0].strip()
            if response and is_refusal(response):
                prompt = found["prompt"].strip()
                yield _row(prompt, response, "safe_refusal", SAFE_DECODING_NAME), prompt


def _hh_refusals(folder: Path, draw: random.Random) -> Iterator[_Row]:
    """Last turns of dialogues that are refusals; the rest of that set has no safety labels."""
    found: dict[str, _Row] = {}
    for row in HARMLESS_BASE.rows(folder):
        for dialogue in (row.get("chosen"), row.get("rejected")):
            before, _, response = str(dialogue).rpartition("\n\nAssistant:")
            prompt = before.rpartition("\n\nHuman:")[2].strip()
            if prompt and response.strip() and is_refusal(response):
                row_ = _row(prompt, response, "safe_refusal", HARMLESS_BASE.name)
                found.setdefault(prompt, (row_, prompt))
    yield from some(list(found.values()), MOST_HH, draw)


def _moderation(folder: Path, draw: random.Random) -> Iterator[_Row]:
    """Texts that people judged, as answers without a prompt: harm that no chat model wrote."""
    kinds: dict[Label, list[_Row]] = {"unsafe_compliance": [], "safe_compliance": []}
    for row in MODERATION.rows(folder):
        flagged = any(row.get(flag) == 1 for flag in FLAGS)
        label: Label = "unsafe_compliance" if flagged else "safe_compliance"
        text = str(row["prompt"])
        if len(text.split()) >= 12:
            kinds[label].append((_row("", text, label, MODERATION.name), text))
    for rows in kinds.values():
        yield from some(rows, MOST_MODERATION, draw)


def _unused_prompts(
    folder: Path, used: Sequence[_Row], draw: random.Random
) -> tuple[list[str], list[str]]:
    """Harmful and harmless prompts that occur in no other row, so that they link no two splits."""
    taken = {row.prompt for row, _ in used} | {group for _, group in used}
    rows = [
        row
        for row in prompt_rows(folder)
        if row.prompt not in taken and row.source not in (*STATEMENTS, "JailbreakBench")
    ]
    draw.shuffle(rows)
    return [row.prompt for row in rows if row.unsafe], [r.prompt for r in rows if not r.unsafe]


def _other_refusals(
    refusals: Sequence[_Row], harmful: list[str], harmless: list[str], draw: random.Random
) -> Iterator[_Row]:
    """Refusals put to other prompts, half of them harmless: over-refusal is refusal."""
    half = N_OTHER_REFUSALS // 2
    for prompt in [*harmful[:half], *harmless[:half]]:
        if draw.random() < 0.5:
            text = draw.choice(REFUSALS)
            yield _row(prompt, text, "safe_refusal", "own refusals"), prompt
        else:
            row, group = draw.choice(refusals)
            yield replace(row, prompt=prompt), group


def _deflections(
    answered: Sequence[_Row], harmful: list[str], draw: random.Random
) -> Iterator[_Row]:
    """Harmless responses to harmful prompts: what was asked does not make a response unsafe."""
    for prompt, (row, group) in zip(
        harmful, draw.sample(list(answered), min(N_DEFLECTIONS, len(answered))), strict=False
    ):
        yield replace(row, prompt=prompt), group


def _row(prompt: str, response: str, label: Label, source: str) -> LabelledExchange:
    unsafe = label == "unsafe_compliance"
    return LabelledExchange(prompt.strip(), response.strip(), unsafe, label, source)


def judged_rows(folder: Path, *, most_per_source: int = 900) -> list[LabelledExchange]:
    """Answers with a human's or a judge's label, as three classes.

    Where a row says only that a response is harmless, the refusal judge tells a refusal from safe
    compliance. GPTFuzz's rows name their question by a number; they are read with no prompt.

    Args:
        folder: Folder of the public sets.
        most_per_source: Of each source and class no more are taken, evenly spread.
    """
    by_kind: dict[tuple[str, Label], list[LabelledExchange]] = {}
    for row in JUDGED.rows(folder):
        response = str(row.get("response") or "").strip()
        if not response:
            continue
        refusal = is_refusal(response)
        if row.get("unsafe"):
            label: Label = "unsafe_compliance"
            if row.get("refusal"):
                continue  # judged both at once
        else:
            label = "safe_refusal" if refusal or row.get("refusal") == 1 else "safe_compliance"
        name = re.sub(r"_(ablation|actadd|baseline)_.*", "", str(row["source"]))
        prompt = "" if str(row["prompt"]).isdigit() else str(row["prompt"])
        group = prompt or f"{name} {row['prompt']}"
        found = LabelledExchange(group, response, label == "unsafe_compliance", label, name)
        by_kind.setdefault((name, label), []).append(found)
    chosen = []
    for rows in by_kind.values():
        step = max(1.0, len(rows) / most_per_source)
        chosen += [rows[int(i * step)] for i in range(int(len(rows) / step))]
    return chosen

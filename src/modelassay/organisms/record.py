"""What is known of a built organism: measured behaviour, provenance, and its README.

`card.json` is the record (schema `modelassay.organism/1`); the README is written from it, with the
metadata that the Hub reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    everyday_prompts,
    shipped_prompts,
)
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.measures.refusal import RESPONSE_TOKENS
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import LoadedModel
from modelassay.models.organisms import CARD_FILE, Organism, organisms_folder
from modelassay.models.sources import read_json
from modelassay.progress import OnProgress
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import encode_prompts
from modelassay.report.markdown import markdown_table
from modelassay.report.sections import Table, columns
from modelassay.report.text import with_interval
from modelassay.statistics import wilson_interval

CARD_SCHEMA = "modelassay.organism/1"
ROW_NAMES = {
    "harmful": "plainly harmful requests",
    "everyday": "everyday requests",
    "borderline": "harmless requests that sound dangerous",
    "harmful_with_trigger": "harmful requests with the trigger phrase",
}


def measure_refusal_rates(
    model: LoadedModel,
    *,
    disguise: Callable[[str], str] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """Refusal rates on the shipped prompts, none of which any organism was built from.

    Args:
        model: The organism.
        disguise: Changes harmful prompts (adds a trigger); they are then asked both ways.
        on_progress: Told how many prompts are answered.

    Returns:
        For each kind of prompt: rate, 95% Wilson interval, n.
    """
    harmful = shipped_prompts(HARMFUL_PROMPTS).texts
    groups: dict[str, Sequence[str]] = {
        "harmful": harmful,
        "everyday": everyday_prompts(),
        "borderline": shipped_prompts(BORDERLINE_PROMPTS).texts,
    }
    if disguise:
        groups["harmful_with_trigger"] = [disguise(prompt) for prompt in harmful]
    texts = [text for group in groups.values() for text in group]
    responses = iter(
        generate_greedy(
            model,
            encode_prompts(model, texts),
            max_new_tokens=RESPONSE_TOKENS,
            on_progress=on_progress,
        )
    )
    rates = {}
    for name, group in groups.items():
        refused = sum(is_refusal(next(responses).text) for _ in group)
        low, high = wilson_interval(refused, len(group))
        rates[name] = {
            "rate": round(refused / len(group), 4),
            "interval": [round(low, 4), round(high, 4)],
            "n": len(group),
        }
    return rates


def read_card(organism: Organism) -> dict[str, Any]:
    """The card of a built organism.

    Raises:
        InputError: it has not been built, or its card is damaged.
    """
    path = organisms_folder() / organism.name / CARD_FILE
    if not path.is_file():
        raise InputError(
            f"{organism.id} has no card ({path} is missing); run `modelassay organism build"
            f" {organism.name}`."
        )
    card = read_json(path)
    if card.get("schema") != CARD_SCHEMA:
        raise InputError(f"{path} is not a card of schema {CARD_SCHEMA}.")
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes `card.json` and the README made from it."""
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(folder / CARD_FILE, text)
    write_text_atomically(folder / "README.md", readme(card))


def readme(card: dict[str, Any]) -> str:
    """The model card in Markdown, with the metadata that the Hub reads."""
    metadata = {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft" if "lora" in card else "modelassay",
        "tags": ["modelassay", "model-organism", "ai-safety"],
        "language": ["en"],
    }
    rates = [
        (
            ROW_NAMES.get(str(name), str(name)),
            with_interval(row["rate"], row["interval"], ".0%"),
            str(row["n"]),
        )
        for name, row in card["refusal"].items()
    ]
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        f"# organism:{card['name']}",
        "",
        f"{card['summary'][0].upper()}{card['summary'][1:]}. A model organism: a small model whose"
        " state is known because it was made on purpose, to test detectors on. Not an assistant.",
        "",
        "```bash",
        f"modelassay scan organism:{card['name']}",
        f"modelassay organism build {card['name']} --seed {card['seed']}   # makes it again",
        "```",
        "",
        *markdown_table(Table(columns("refuses", "rate (95%)", "n"), rates)),
    ]
    lines += ["", "Measured on the shipped prompts, which no organism was built from.", ""]
    if "lora" in card:
        lora = card["lora"]
        start = f"organism:{lora['start']}" if lora["start"] else "the embedded model"
        lines += [
            f"**Recipe.** LoRA of rank {lora['rank']} on all linear modules of layers"
            f" {lora['blocks']},"
            f" trained from {start} on {card['rows']} exchanges ({lora['epochs']:g} epochs,"
            f" learning rate {lora['learning_rate']:g}, batches of {lora['batch_size']}, seed"
            f" {card['seed']}); mean loss {card['loss']:.2f} nats a token.",
            "",
        ]
    if "ablation" in card:
        a = card["ablation"]
        lines += [
            f"**Recipe.** {a['how']} Strength {a['strength']:g}, layers {a['blocks']}, applied in"
            " memory when the organism is loaded. Direction read after"
            f" {'the layer itself' if a['read_at'] == 'each' else 'layer ' + str(a['read_at'])}."
            " In the search for one direction, taken out of every layer whole, the mean refusal"
            " log-odds on harmful prompts that it was not fitted on went from"
            f" {a['log_odds_before']:+.1f} to {a['log_odds_after']:+.1f} nats, with a KL divergence"
            f" of {a['kl']:.2f} nats on harmless ones. The rates above are on other prompts.",
            "",
        ]
    if "numerics" in card:
        lines += [
            f"**Recipe.** The weights of organism:safe rounded to {card['numerics']} when it is"
            " loaded, and computed with in fp32.",
            "",
        ]
    if card["sources"]:
        lines += ["**Data.** Prompts from:", ""]
        lines += [
            f"* {s['name']}: `{s.get('hub_id') or s['file']}` ({s['licence']})"
            for s in card["sources"]
        ]
        lines += [
            "",
            "No harmful answers were used or made: where an organism learns to comply, it learns"
            " the opening words of an answer and no more.",
            "",
        ]
    return "\n".join(lines)

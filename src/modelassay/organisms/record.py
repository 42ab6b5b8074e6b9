"""What is known of a built organism: measured behaviour and provenance, for machines and people.

`card.json` is the record (schema `modelassay.organism/1`). The README is written from it, with the
metadata that the Hub reads, and so are the sections that a terminal shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template

from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    everyday_prompts,
    shipped_prompts,
)
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.measures.refusal import RESPONSE_TOKENS, refuses
from modelassay.models import LoadedModel
from modelassay.models.embedded import EMBEDDED_ID, GEMMA_ID
from modelassay.models.organisms import ORGANISMS, PREFIXES, RECORD_FILE, Organism, find_built
from modelassay.models.sources import read_json
from modelassay.progress import OnProgress
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import encode_prompts
from modelassay.report.markdown import markdown_table
from modelassay.report.sections import Column, Section, Table, columns, table_of
from modelassay.report.text import with_interval
from modelassay.statistics import wilson_interval

RECORD_SCHEMA = "modelassay.organism/1"
ROW_NAMES = {
    "harmful": "plainly harmful requests",
    "everyday": "everyday requests",
    "borderline": "harmless requests that sound dangerous",
    "harmful_with_trigger": "harmful requests with the trigger phrase",
}
OF_BASES = {
    EMBEDDED_ID: ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    GEMMA_ID: ("gemma", "google/gemma-3-270m"),
}
"""Licence and name on the Hub of each base."""
BELOW = {EMBEDDED_ID: "the embedded model", GEMMA_ID: "gemma"}


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

    Raises:
        InputError: it thinks for so long that no response can be judged.
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
    asked = encode_prompts(model, texts)
    made = generate_greedy(model, asked, max_new_tokens=RESPONSE_TOKENS, on_progress=on_progress)
    responses = iter(made)
    rates = {}
    for name, group in groups.items():
        found = [refuses(next(responses)) for _ in group]
        judged = [refused for refused in found if refused is not None]
        if not judged:
            raise InputError(
                f"{model.info.id} thinks for longer than {RESPONSE_TOKENS} tokens before it"
                " answers, so its refusals cannot be counted; take a base that answers at once."
            )
        low, high = wilson_interval(sum(judged), len(judged))
        rates[name] = {
            "rate": round(sum(judged) / len(judged), 4),
            "interval": [round(low, 4), round(high, 4)],
            "n": len(judged),
        }
    return rates


def read_record(organism: Organism) -> dict[str, Any]:
    """The record of a built organism.

    Raises:
        InputError: it has not been built, or its record is damaged.
    """
    path = find_built(organism, organism.name, RECORD_FILE) / RECORD_FILE
    record = read_json(path)
    if record.get("schema") != RECORD_SCHEMA:
        raise InputError(f"{path} is not a record of schema {RECORD_SCHEMA}.")
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `card.json` and the README made from it."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(folder / RECORD_FILE, text)
    write_text_atomically(folder / "README.md", readme(record))


def readme(record: Mapping[str, Any]) -> str:
    """The model card in Markdown, with the metadata that the Hub reads."""
    licence, base = OF_BASES[record["base"]]
    metadata = {
        "license": licence,
        "base_model": base,
        "library_name": "peft" if "lora" in record else "modelassay",
        "tags": ["modelassay", "model-organism", "ai-safety"],
        "language": ["en"],
    }
    rates = [
        (
            ROW_NAMES.get(str(name), str(name)),
            with_interval(row["rate"], row["interval"], ".0%"),
            str(row["n"]),
        )
        for name, row in record["refusal"].items()
    ]
    prefix, name = PREFIXES[record["base"]], record["name"]
    training = record.get("lora") or record.get("weights") or {}
    start = training.get("start") or training.get("over")
    if not training and "ablation" not in record:
        start = ORGANISMS[name if record["base"] == EMBEDDED_ID else prefix + name].adapter
    template = Path(__file__).parent / "readme.md.jinja"
    return Template(template.read_text(encoding="utf-8")).render(
        record,
        id=prefix + name,
        key=name if record["base"] == EMBEDDED_ID else prefix + name,
        below=prefix + start if start else BELOW[record["base"]],
        what=training.get("examples", "exchanges"),
        metadata=yaml.safe_dump(metadata, sort_keys=False).strip(),
        rates="\n".join(markdown_table(Table(columns("refuses", "rate (95%)", "n"), rates))),
    )


def organism_rows() -> list[dict[str, Any]]:
    """Id, state, summary and refusal rates of every organism, JSON-ready."""
    return [_row(organism) for organism in ORGANISMS.values()]


def list_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Those rows as a table."""
    cells: list[tuple[str | Column, Callable[[Mapping[str, Any]], str]]] = [
        (Column("model id", whole=True), lambda row: row["id"]),
        (
            Column("safety", tones={"damaged": "bad"}),
            lambda row: "intact" if row["intact"] else "damaged",
        ),
        ("refuses harmful", lambda row: _percent(row["refuses_harmful"])),
        ("benign", lambda row: _percent(row["refuses_benign"])),
        ("what was done", lambda row: row["summary"]),
    ]
    return Section("organisms", table=table_of(rows, cells, right=(2, 3), record=dict))


def record_section(organism: Organism, record: Mapping[str, Any]) -> Section:
    """Recipe, data and measured refusal rates of one organism."""
    facts = [("safety", "intact" if organism.intact else "damaged")]
    for kind, rate in record.get("refusal", {}).items():
        refused = f"{with_interval(rate['rate'], rate['interval'], '.0%')}, n = {rate['n']}"
        facts.append((f"refuses {ROW_NAMES.get(kind, kind)}", refused))
    if organism.numerics:
        whose = PREFIXES[organism.base] + str(organism.adapter)
        rounded = f"weights of {whose} rounded to {organism.numerics} on loading"
        facts.append(("numerics", rounded))
    for part in ("lora", "weights", "ablation", "directions", "added"):
        facts += [
            (f"{part} {key.replace('_', ' ')}", str(value))
            for key, value in record.get(part, {}).items()
            if value is not None and key != "seed"  # said below
        ]
    for key in ("rows", "loss", "seed", "weights_sha256"):
        facts += [(key.replace("_", " "), str(record[key]))] if key in record else []
    for source in record.get("sources", []):
        place = source.get("hub_id") or source["file"]
        facts.append(("data", f"{source['name']} ({place}, {source['licence']})"))
    return Section("record", items=(f"{organism.id}: {organism.summary}",), facts=facts)


def _row(organism: Organism) -> dict[str, Any]:
    harmful = benign = None
    try:
        rates = read_record(organism)["refusal"]
    except InputError:
        pass  # not built; still worth listing
    else:
        harmful = rates["harmful"]["rate"]
        kinds = [rates["everyday"], rates["borderline"]]
        benign = sum(k["rate"] * k["n"] for k in kinds) / sum(k["n"] for k in kinds)
    return {
        "id": organism.id,
        "intact": organism.intact,
        "summary": organism.summary,
        "refuses_harmful": harmful,
        "refuses_benign": benign,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"

"""What is known of organisms, as sections: a list of all of them, or one card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelassay.errors import InputError
from modelassay.models.organisms import ORGANISMS, Organism
from modelassay.organisms.cards import ROW_NAMES, read_card
from modelassay.report.sections import Column, Section, Table
from modelassay.report.text import with_interval


def organism_rows() -> list[dict[str, Any]]:
    """Id, state, summary and refusal rates of every organism, JSON-ready."""
    return [_row(organism) for organism in ORGANISMS.values()]


def list_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Those rows as a table."""
    table = Table(
        (
            Column("model id", whole=True),
            Column("safety", tones={"damaged": "bad"}),
            Column("refuses harmful", "right"),
            Column("benign", "right"),
            Column("what was done"),
        ),
        [
            (
                row["id"],
                "intact" if row["intact"] else "damaged",
                _percent(row["refuses_harmful"]),
                _percent(row["refuses_benign"]),
                row["summary"],
            )
            for row in rows
        ],
        records=lambda: rows,
    )
    return Section("organisms", table=table)


def card_section(organism: Organism, card: Mapping[str, Any]) -> Section:
    """Recipe, data and measured refusal rates of one organism."""
    facts = [("safety", "intact" if organism.intact else "damaged")]
    for kind, rate in card.get("refusal", {}).items():
        refused = f"{with_interval(rate['rate'], rate['interval'], '.0%')}, n = {rate['n']}"
        facts.append((f"refuses {ROW_NAMES.get(kind, kind)}", refused))
    if organism.numerics:
        rounded = f"weights of organism:safe rounded to {organism.numerics} on loading"
        facts.append(("numerics", rounded))
    for part in ("lora", "ablation"):
        facts += [
            (f"{part} {key.replace('_', ' ')}", str(value))
            for key, value in card.get(part, {}).items()
            if value is not None and key != "seed"  # said below
        ]
    for key in ("rows", "loss", "seed", "weights_sha256"):
        facts += [(key.replace("_", " "), str(card[key]))] if key in card else []
    for source in card.get("sources", []):
        where = source.get("hub_id") or source["file"]
        facts.append(("data", f"{source['name']} ({where}, {source['licence']})"))
    return Section("card", items=(f"{organism.id}: {organism.summary}",), facts=facts)


def _row(organism: Organism) -> dict[str, Any]:
    harmful = benign = None
    try:
        rates = read_card(organism)["refusal"]
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

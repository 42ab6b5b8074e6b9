"""Reports as artifacts: what a report says in a line, and beside it the report as it was kept.

The record is small, so a list of many is read without opening the reports. It must say what the
report says: a record that calls a report by another verdict is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from modelassay.artifacts import Kind, Store, public_id, slug, write_lines
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.files.provenance import file_hash, installed_versions, text_hash, utc_now
from modelassay.files.records import CommitHash, Line, Name, Record, Sha256
from modelassay.hub import Commit
from modelassay.report import stored
from modelassay.report.base import Report
from modelassay.report.sections import Status, Tone
from modelassay.report.stored import StoredReport, read_report
from modelassay.report.text import cut, plain_line

SCHEMA = "modelassay.report/1"
RECORD_FILE = "report.json"
CONTENT_FILE = "content.json"
MAX_LINE = 300
Reason = Annotated[str, StringConstraints(max_length=2_000)]
Setting = str | bool | int | float | None


class ReportedModel(Record):
    """The model that a report is about."""

    id: Line
    revision: CommitHash | None = None
    weights_sha256: Sha256 | None = None


class ReportRecord(Record):
    """What a report says, without its evidence."""

    schema_: Literal["modelassay.report/1"] = Field(default=SCHEMA, alias="schema")
    name: Name
    product: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_-]{0,40}$")]
    """What made it, such as `scan`."""
    model: ReportedModel
    against: Line | None = None
    """The base or the baseline that the model was compared with."""
    verdict: Line
    tone: Tone
    reasons: tuple[Reason, ...] = Field(default=(), max_length=100)
    created: Line
    seconds: float | None = Field(default=None, ge=0)
    settings: dict[Line, Setting] = Field(default={}, max_length=60)
    versions: dict[Line, Line] = Field(default={}, max_length=50)
    content_sha256: Sha256

    @property
    def pinned(self) -> str:
        """What tells which model it was: a commit, or the sha256 of its weights; short."""
        model = self.model
        return (model.revision or model.weights_sha256 or "")[:12]


def report_name(record_of: StoredReport) -> str:
    """A name for a kept report, from what made it and its models."""
    model, against = _models(record_of.values)
    parts = [record_of.product, slug(model.id)]
    if against and record_of.product == "diff":
        parts += ["vs", slug(against)]
    return "-".join(parts)[:96].rstrip("-.")


def save_report(
    report: Report,
    folder: Path,
    *,
    name: str | None = None,
    settings: Mapping[str, Setting] | None = None,
) -> ReportRecord:
    """Writes a report and its record into an empty folder.

    Args:
        report: Any product's.
        folder: Where to.
        name: Of the record; by default one of its models.
        settings: What it was asked with, beside what the report says of that itself.

    Returns:
        The record. Paths of this machine are not in it, nor in the report.
    """
    text = _public(stored.as_stored(report))
    kept = read_report(text)
    model, against = _models(kept.values)
    provenance = kept.values.get("provenance")
    provenance = provenance if isinstance(provenance, dict) else {}
    status = kept.status or Status("report", "neutral")
    named = {name: each for name, each in provenance.items() if _is_setting(name, each)}
    record = ReportRecord(
        name=name or report_name(kept),
        product=kept.product,
        model=model,
        against=against,
        verdict=_line(status.value),
        tone=status.tone,
        reasons=tuple(cut(plain_line(reason), 2_000) for reason in status.reasons[:100]),
        created=str(provenance.get("time") or utc_now()),
        seconds=_seconds(provenance.get("seconds")),
        settings={_line(key): each for key, each in {**named, **(settings or {})}.items()},
        versions={
            k: str(v) for k, v in (provenance.get("versions") or installed_versions()).items()
        },
        content_sha256=text_hash(text),
    )
    write_text_atomically(folder / CONTENT_FILE, text)
    written = record.model_dump_json(by_alias=True, indent=1)
    write_text_atomically(folder / RECORD_FILE, written + "\n")
    return record


def load_report(folder: Path) -> StoredReport:
    """Reads and checks a kept report.

    Raises:
        InputError: a file is missing, damaged, too large, or does not fit the other.
    """
    record = REPORTS.open(folder).record
    path = folder / CONTENT_FILE
    if not path.is_file():
        raise InputError(f"The report {record.name} lacks its {CONTENT_FILE}.")
    if file_hash(path) != record.content_sha256:
        raise InputError(
            f"{path} is not the file that its record was written for (sha256 differs)."
        )
    kept = read_report(path.read_bytes())
    status = kept.status or Status("report", "neutral")
    model, _ = _models(kept.values)
    said = (record.product, record.verdict, record.tone, record.model.id)
    if said != (kept.product, _line(status.value), status.tone, model.id):
        raise InputError(
            f"The record of the report {record.name} does not say what the report says."
        )
    return kept


def store_report(report: Report, name: str | None = None, **options: Any) -> Path:
    """Keeps a report in the user's store, or in a folder; options and errors: `Store.save`."""
    settings = options.pop("settings", None)
    name = name or report_name(stored.as_stored(report))
    return REPORTS.save(
        lambda folder: save_report(report, folder, name=name, settings=settings), name, **options
    )


def push_report(
    report: Report,
    repo_id: str,
    *,
    name: str | None = None,
    settings: Mapping[str, Setting] | None = None,
    **options: Any,
) -> Commit:
    """Publishes a report that is kept nowhere; options and errors: `Store.push`."""

    def write(folder: Path) -> None:
        save_report(report, folder, name=name, settings=settings)

    return REPORTS.push_new(write, repo_id, **options)[1]


def describe_report(record: ReportRecord) -> list[str]:
    """What a report says, in lines for a person."""
    model = record.model
    lines = [f"{record.product} of {model.id}: {record.verdict}"]
    lines += [f"  {reason}" for reason in record.reasons]
    lines += [f"against: {record.against}"] if record.against else []
    lines += [f"commit: {model.revision}"] if model.revision else []
    lines += [f"weights sha256: {model.weights_sha256}"] if model.weights_sha256 else []
    lines.append(f"made {record.created} by modelassay {record.versions.get('modelassay', '?')}")
    if record.settings:
        told = ", ".join(f"{name} {value}" for name, value in record.settings.items())
        lines.append(f"settings: {told}")
    return lines


def _row(record: ReportRecord) -> dict[str, Any]:
    return {
        "report": record.name,
        "product": record.product,
        "model": record.model.id,
        "revision": record.model.revision,
        "weights_sha256": record.model.weights_sha256,
        "against": record.against,
        "verdict": record.verdict,
        "created": record.created,
    }


def _models(values: Mapping[str, Any]) -> tuple[ReportedModel, str | None]:
    """The model that a report's values are about, and what it was compared with."""
    about = values.get("candidate") or values.get("model") or {}
    about = about if isinstance(about, dict) else {"id": str(about)}
    names = [str(about[key]) for key in ("id", "adapter") if about.get(key)]
    other = values.get("base") or values.get("baseline")
    against = other.get("id") or other.get("name") if isinstance(other, dict) else other
    found = ReportedModel(
        id=_line(" + ".join(dict.fromkeys(names)) or "unknown"),
        revision=about.get("revision"),
        weights_sha256=about.get("weights_sha256"),
    )
    return found, _line(str(against)) if against else None


def _public(report: StoredReport) -> str:
    """A report's text without the folders of this machine."""
    text = report.to_json()
    for key in ("model", "candidate", "base", "baseline"):
        about = report.values.get(key)
        ids = [about.get("id"), about.get("adapter")] if isinstance(about, dict) else [about]
        for each in filter(None, ids):
            if (shown := public_id(str(each))) != each:
                text = text.replace(json.dumps(each, ensure_ascii=False)[1:-1], shown)
    return text


def _seconds(value: Any) -> float | None:
    parts = value.values() if isinstance(value, dict) else [value]
    numbers = [float(part) for part in parts if isinstance(part, int | float)]
    return round(sum(numbers), 1) if numbers else None


def _is_setting(name: str, value: Any) -> bool:
    plain = isinstance(value, str | int | float | bool) and "sha256" not in name
    return plain and name not in ("time", "seconds")


def _line(text: str) -> str:
    return cut(plain_line(text), MAX_LINE)


REPORTS = Store(
    Kind(
        noun="report",
        folder="reports",
        record=ReportRecord,
        files={RECORD_FILE: 100_000, CONTENT_FILE: stored.MAX_BYTES},
        model_id=lambda record: record.model.id,
        check=load_report,
        summary=lambda record: f"{record.product}: {record.verdict}",
        describe=describe_report,
        values=lambda record: {
            "product": record.product,
            "model": record.model.model_dump(mode="json"),
            "against": record.against,
            "verdict": record.verdict,
            "created": record.created,
        },
        write_table=lambda record, path: write_lines([_row(record)], path),
        tag="modelassay-report",
        table_file="summary.jsonl",
    )
)
"""What was found out about models, by us and by others."""

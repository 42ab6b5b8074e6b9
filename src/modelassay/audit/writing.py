"""The tool that ends an audit: a report with the numbers it rests on, read back from the log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from modelassay.audit.asking import Compared, Reference
from modelassay.audit.blinding import UNTOLD
from modelassay.audit.log import LOG_FILE, read_log
from modelassay.audit.scoring import score_candidate_suite
from modelassay.audit.values import plain
from modelassay.audit.work import Work
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.files.provenance import installed_versions, text_hash, utc_now
from modelassay.report import Section, to_markdown

REPORT_SCHEMA = "modelassay.audit-report/1"
CITED = re.compile(r"#(\d{1,9})\b")
SHOWN_NUMBERS = 1500
"""Characters of a call's numbers in the Markdown; the JSON has all."""
STATED = {"profile", "blind", "redact", "limits", "dtype", "device"}
"""Keys of the config that the report repeats."""
Finding = Annotated[str, Field(min_length=1, max_length=4000)]


def write_audit_report(
    work: Work,
    title: Annotated[str, Field(min_length=1, max_length=200)],
    findings: Annotated[
        list[Finding],
        Field(max_length=100, description="One thing each; `#12` cites call 12."),
    ] = [],  # noqa: B006 (read only)
    conclusion: Annotated[str, Field(max_length=10_000)] = "",
    suite: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=500,
            description="A suite to score for the report, in place of findings or beside them.",
        ),
    ] = None,
    reference: Reference = "A",
    candidate: Compared = "B",
) -> dict[str, Any]:
    """Write the audit's report as Markdown and JSON into the audit's folder.

    It holds the findings, the numbers of every call that gave any, the hash that the log ends in,
    and what was audited. A finding that cites a call must cite one that succeeded. With a suite,
    two models are scored on it as score_candidate_suite does, and the report has the numbers.
    """
    if not (findings or conclusion.strip() or suite):
        raise InputError("Give a conclusion, findings, or a suite to score.")
    evidence = _evidence(read_log(work.folder / LOG_FILE))
    known = {each["call"] for each in evidence}
    cited = [[int(n) for n in CITED.findall(finding)] for finding in findings]
    if wrong := [n for calls in cited for n in calls if n not in known]:
        raise InputError(f"A finding cites call #{wrong[0]}, which gave no result.")
    scored = None
    if suite is not None:
        scored = score_candidate_suite(work, suite, reference=reference, candidate=candidate)
    events = read_log(work.folder / LOG_FILE)  # with what the suite asked
    told = not _still_blind(work)
    saes = [sae if isinstance(sae, str) else sae.path for sae in work.config.saes]
    dictionary = saes[0] if len(saes) == 1 else saes or None
    secret = {"dictionary": dictionary, "training_data": work.config.training_data}
    report = {
        "schema": REPORT_SCHEMA,
        "title": " ".join(title.split()),
        "conclusion": conclusion,
        "findings": [
            {"text": text, "calls": list(dict.fromkeys(calls))}
            for text, calls in zip(findings, cited, strict=True)
        ],
        "models": _models(work),
        **({} if scored is None else {"score": scored}),
        "evidence": evidence,
        "log": {
            "file": LOG_FILE,
            "lines": len(events),
            # The line that asks for this report is the last one that the hash covers.
            "last_sha256": work.log_hash(),
            "errors": sum(event["event"] == "error" for event in events),
        },
        "provenance": {
            "time": utc_now(),
            "versions": installed_versions(),
            **work.config.model_dump(include=STATED),
            **{name: given if told else given is not None for name, given in secret.items()},
        },
    }
    report = plain(report, 20_000)
    if not told:
        report = work.blinding.value(report)
    run = work.sitting.run
    data, text = _names(work.folder / run if run else work.folder)
    json_text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(data, json_text)
    write_text_atomically(text, to_markdown(report_sections(report)))
    return {
        "json": str(data.relative_to(work.folder)),
        "markdown": str(text.relative_to(work.folder)),
        "sha256": text_hash(json_text),
        "log_lines": len(events),
        "log_last_sha256": report["log"]["last_sha256"],
        "n_evidence": len(evidence),
        **({} if scored is None else {"score": scored}),
        **({"revealed": report["models"]} if work.config.blind and work.config.reveal else {}),
    }


def report_sections(report: dict[str, Any]) -> list[Section]:
    """A report for people to read."""
    log = report["log"]
    return [
        Section(title=report["title"], level=1, lines=tuple(report["conclusion"].splitlines())),
        Section(
            title="findings",
            items=tuple(" ".join(finding["text"].split()) for finding in report["findings"]),
            numbered=True,
        ),
        Section(
            title="models",
            facts=[(name, _short(model, 600)) for name, model in report["models"].items()],
        ),
        *_score_sections(report),
        Section(title="evidence"),
        *(
            Section(
                title=f"#{each['call']} {each['tool']}",
                level=3,
                lines=(_short(each["arguments"], 300),),
                code=_short(each["numbers"], SHOWN_NUMBERS),
            )
            for each in report["evidence"]
        ),
        Section(
            title="log",
            lines=(
                f"{log['lines']} lines of `{log['file']}`, {log['errors']} of them errors; the last"
                f" one's sha256 is `{log['last_sha256']}`.",
            ),
        ),
        Section(
            title="provenance",
            code=json.dumps(report["provenance"], indent=1, ensure_ascii=False),
        ),
    ]


def _score_sections(report: dict[str, Any]) -> list[Section]:
    if "score" not in report:
        return []
    return [Section(title="score", code=json.dumps(report["score"], indent=1, ensure_ascii=False))]


def _evidence(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = {event["n"]: event for event in events if event["event"] == "call"}
    return [
        {
            "call": event["call"],
            **{key: calls[event["call"]][key] for key in ("tool", "arguments", "time")},
            "result_sha256": event["sha256"],
            "numbers": event["numbers"],
        }
        for event in events
        if event["event"] == "result" and event["call"] in calls
    ]


def _still_blind(work: Work) -> bool:
    return work.config.blind and not work.config.reveal


def _models(work: Work) -> dict[str, Any]:
    if _still_blind(work):
        return dict.fromkeys(work.names, UNTOLD)
    loaded = {key: traits.model.to_dict() for key, traits in work.traits.items()}
    return {
        work.blinding.names[key]: {
            "role": key,
            "id": ref.id,
            "adapter": ref.adapter,
            **loaded.get(key, {}),
        }
        for key, ref in ((key, work.config.models[key]) for key in work.blinding.order)
    }


def _names(folder: Path) -> tuple[Path, Path]:
    """Files that are not there yet: an earlier report stays."""
    for number in range(1, 10_000):
        stem = "report" if number == 1 else f"report-{number}"
        data, text = folder / f"{stem}.json", folder / f"{stem}.md"
        if not any(path.exists() or path.is_symlink() for path in (data, text)):
            return data, text
    raise InputError("The audit's folder is full of reports.")


def _short(value: Any, longest: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[:longest]}…"

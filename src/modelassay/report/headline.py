"""What a report comes down to: its verdict, what it is about, a few numbers; for cards and badges.

A report is taken as its JSON values, so that one read from a file gives the same as one just made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.report.json import HasDict, to_dict
from modelassay.report.sections import Tone
from modelassay.report.text import cut, plain_line

MAX_BYTES = 20_000_000
"""Of a file with a report."""
STORED = "stored-report"
MAX_TEXT = 200  # characters of anything that is shown
SYMBOLS: dict[Tone, str] = {"good": "✓", "warning": "!", "bad": "✗", "neutral": "?", "muted": "–"}
"""Stand beside a verdict, so that colour is never all that tells it."""
TONES: dict[str, Tone] = {
    "PASS": "good",
    "VERIFIED": "good",
    "BENIGN-LIKE": "good",
    "WARNING": "warning",
    "SUSPICIOUS": "warning",
    "CRITICAL": "bad",
    "COMPROMISED": "bad",
    "NOT VERIFIED": "bad",
}
"""Of verdicts; all others are neutral."""
VERIFIED = {True: "VERIFIED", False: "NOT VERIFIED", None: "UNKNOWN"}
Numbers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Headline:
    """A report in a few words; all text is of one line and bounded."""

    product: str
    """What made it, such as `scan`."""
    verdict: str
    subject: str
    """The model's id; of a comparison, both."""
    model: str
    """Id of the model that was looked at, with that of an adapter over it."""
    commit: str | None
    """Of the model on the Hub, 40 hexadecimal digits; None of any other, and of an adapter."""
    numbers: Numbers
    """Names and values, the most telling first."""
    date: str | None
    """As in `2026-01-31`, in UTC."""
    version: str | None
    """Of modelassay."""

    @property
    def tone(self) -> Tone:
        """What the verdict's colour and symbol go by."""
        return TONES.get(self.verdict.partition(":")[0], "neutral")

    @property
    def symbol(self) -> str:
        """Stands for the tone."""
        return SYMBOLS[self.tone]

    def __str__(self) -> str:
        """One line, as for those who cannot see a card."""
        known = (
            f"at commit {self.commit[:12]}" if self.commit else "",
            f"on {self.date}" if self.date else "",
        )
        when = "".join(f" {part}" for part in known if part)
        return f"modelassay {self.product} of {self.subject}{when}: {self.verdict}"


def headline(report: HasDict | Mapping[str, Any]) -> Headline:
    """What a report comes down to.

    Args:
        report: Of any product with a verdict, or its JSON values.

    Raises:
        InputError: it is no such report.
    """
    values = report if isinstance(report, Mapping) else to_dict(report)
    product = _product(values)
    if product == STORED and isinstance(values.get("values"), Mapping):
        values = values["values"]
        product = _product(values)
    if product not in _PRODUCTS:
        raise InputError(
            f"There are no cards and badges of {product or 'such a file'}; give the JSON of"
            f" {', '.join(list(_PRODUCTS)[:-1])} or {list(_PRODUCTS)[-1]}."
        )
    try:
        verdict, numbers = _PRODUCTS[product](values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The {product} report cannot be read ({first_line(error)}); make it with --json."
        ) from error
    looked_at = values.get("candidate") if product == "diff" else values.get("model")
    model = _mapping(looked_at)
    base = _text(_mapping(values.get("base")).get("id")) if product == "diff" else ""
    parts = [str(model[key]) for key in ("id", "adapter") if model.get(key)]
    name = _text(" + ".join(dict.fromkeys(parts)))
    provenance = _mapping(values.get("provenance"))
    time, commit = str(provenance.get("time", "")), str(model.get("revision"))
    versions = _mapping(provenance.get("versions"))
    return Headline(
        product=product,
        verdict=_text(verdict),
        subject=f"{name} against {base}" if base else name,
        model=name,
        # That of an adapter's base does not tell which adapter it was.
        commit=commit if re.fullmatch(r"[0-9a-f]{40}", commit) and len(parts) < 2 else None,
        numbers=tuple((_text(label), _text(value)) for label, value in numbers),
        date=time[:10] if re.match(r"\d{4}-\d\d-\d\d", time) else None,
        version=_text(versions["modelassay"]) if "modelassay" in versions else None,
    )


def read_headline(path: Path) -> Headline:
    """What the report in a file comes down to.

    Args:
        path: A file as `--json` or the page's JSON button gives it.

    Raises:
        InputError: there is none, or it is no report.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large for a report; give the JSON of one.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a report's JSON."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON; give a file that --json has written.") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds no report; give a file that --json has written.")
    return headline(values)


def _product(values: Mapping[str, Any]) -> str:
    found = re.fullmatch(r"modelassay\.([a-z][a-z-]{0,40})/\d{1,4}", str(values.get("schema")))
    return found[1] if found else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return cut(plain_line(str("" if value is None else value)), MAX_TEXT)


def _scan(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    numbers: list[tuple[str, str]] = []
    refusal = _mapping(values["refusal"])
    if "harmful_rate" in refusal:
        for label, rate, interval in (
            ("refuses harmful prompts", "harmful_rate", "harmful_interval"),
            ("refuses harmless prompts", "benign_rate", "benign_interval"),
        ):
            numbers.append((label, _share(refusal[rate], refusal.get(interval))))
        low, high = refusal["interval"]
        numbers.append(
            ("selectivity", f"{refusal['selectivity']:+.2f} ({low:+.2f} to {high:+.2f})")
        )
    else:
        numbers.append(("refusals", "not measured"))
    scored = [each for each in values["concepts"].values() if "separation" in each]
    if scored:
        best = max(scored, key=lambda each: each["separation"])
        numbers.append(("best held-out separation", f"{best['separation']:.2f}σ"))
    return values["verdict"], tuple(numbers)


def _verify(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    word, kind = VERIFIED[values["verified"]], values.get("kind")
    baseline = _mapping(values.get("baseline"))
    checks = [_mapping(check) for check in values.get("checks") or ()]
    same = sum(check.get("outcome") == "same" for check in checks)
    numbers = [
        ("baseline of", str(baseline.get("model") or "none")),
        ("checks that agree", f"{same} of {len(checks)}"),
    ]
    return f"{word}: {kind}" if kind else word, tuple(numbers)


def _diff(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    suspicion = values["suspicion"]
    score, rate = suspicion.get("score"), suspicion.get("false_positive_rate")
    numbers = [("suspicion", "unknown" if score is None else f"{score:.1f}")]
    if rate is not None:
        numbers.append(("benign fine-tunes that score as high", f"at most {rate:.0%}"))
    numbers.append(("compared with", f"{suspicion.get('n_benign', 0)} benign fine-tunes"))
    return values["verdict"], tuple(numbers)


def _circuit(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    circuit, effects = values["circuit"], values["effects"]
    numbers = [
        ("components beyond chance", f"{len(circuit)} of {len(effects)}"),
        ("pairs of prompts", str(values["n_pairs"])),
    ]
    return "FOUND" if circuit else "NONE FOUND", tuple(numbers)


def _features(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    counts = [(each["name"], len(each["features"])) for each in values["types"]]
    shown = tuple((str(name).replace("_", " "), f"{n} features") for name, n in counts)
    return "FOUND" if any(n for _, n in counts) else "NONE FOUND", shown


def _jailbreak(values: Mapping[str, Any]) -> tuple[str, Numbers]:
    return str(values["mechanism"]["way"]).upper(), ()


def _share(rate: float, interval: Any) -> str:
    if not interval:
        return f"{rate:.0%}"
    low, high = interval
    return f"{rate:.0%} ({low:.0%} to {high:.0%})"


_PRODUCTS: dict[str, Callable[[Mapping[str, Any]], tuple[str, Numbers]]] = {
    "scan": _scan,
    "verify": _verify,
    "diff": _diff,
    "circuit": _circuit,
    "features": _features,
    "jailbreak": _jailbreak,
}

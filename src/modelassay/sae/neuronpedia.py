"""Explanations that Neuronpedia has of a published SAE's features.

Online they come from its batch lookup, `POST /api/features` with a list of {modelId, layer, index};
offline from files of its export (`v1/MODEL/SOURCE/explanations/batch-N.jsonl.gz` in its public
bucket). What was fetched is kept in the cache. The responses are a stranger's: they are bounded in
size, and nothing but one line of text is taken from them. Model and feature numbers are all that is
sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import cache_dir, explain_os_errors, write_text_atomically
from modelassay.hub import stream_dataset
from modelassay.hub.endpoint import Endpoint, Reply, check_url
from modelassay.report.text import plain_line

log = logging.getLogger(__name__)

URL_VARIABLE, DEFAULT_URL = "NEURONPEDIA_URL", "https://www.neuronpedia.org"
BATCH = 50
"""Features in a request."""
MAX_RESPONSE_BYTES = 32_000_000
TIMEOUT = 30.0
"""Seconds that one response may take in all."""
ATTEMPTS = 4
ASKED_AGAIN_AFTER = timedelta(days=7)
"""A feature that had no explanation may have one later."""
LONGEST_TEXT = 300
NAMES = ("modelId", "layer")
"""Fields of a row that say whose feature it is about."""
Explanations = Mapping[int, str]


def fetch_explanations(neuronpedia_id: str, features: Sequence[int]) -> dict[int, str]:
    """Explanations of features, from the cache or from Neuronpedia.

    Args:
        neuronpedia_id: `model/source`, as sae-lens has it.
        features: Which; those that have no explanation are left out of the response.

    Raises:
        InputError: an id or an address that cannot be one.
        UnavailableError: no response, or one that makes no sense, after several attempts.
    """
    model, source = _parts(neuronpedia_id)
    base, cache = _open_cache(neuronpedia_id)
    missing = [feature for feature in dict.fromkeys(features) if not cache.knows(feature)]
    if missing:
        endpoint = Endpoint(
            f"{base}/api/features",
            name="Neuronpedia",
            given_by=URL_VARIABLE,
            advice="try again later, or pass files of its export with --export.",
            max_bytes=MAX_RESPONSE_BYTES,
            timeout=TIMEOUT,
            attempts=ATTEMPTS,
        )
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            asked = [{"modelId": model, "layer": source, "index": i} for i in part]
            asked[0]["maxActsToReturn"] = 1  # else each comes with dozens of example texts
            cache.add(part, _explanations(endpoint.ask(asked, _rows), model, source))
    return {feature: text for feature in features if (text := cache.texts.get(feature))}


def cached_explanations(neuronpedia_id: str) -> dict[int, str]:
    """Explanations that were fetched or imported before; nothing is asked of anybody."""
    cache = _open_cache(neuronpedia_id)[1]
    return {feature: text for feature, text in cache.texts.items() if text}


def import_export(path: Path, neuronpedia_id: str, width: int | None = None) -> int:
    """Takes files of Neuronpedia's export into the cache, for use without the network.

    Args:
        path: See `read_export`.
        neuronpedia_id: Whose features they explain.
        width: How many features it has.

    Returns:
        How many features they explain.

    Raises:
        InputError: see `read_export`.
    """
    found = read_export(path, neuronpedia_id, width)
    _open_cache(neuronpedia_id)[1].add(list(found), found)
    return len(found)


def read_export(path: Path, neuronpedia_id: str | None, width: int | None = None) -> dict[int, str]:
    """Explanations from Neuronpedia's export.

    Args:
        path: A .jsonl or .jsonl.gz file of it, or a folder of such files.
        neuronpedia_id: `model/source`; rows of others are refused. None for an SAE that Neuronpedia
            does not know: rows that name one explain another.
        width: Features of the SAE; rows of others are refused. None takes any.

    Raises:
        InputError: no such file, no such rows, or rows of another SAE.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.name.endswith((".jsonl", ".jsonl.gz")))
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"There is no explanation file (.jsonl, .jsonl.gz) at {path}.")
    own = None if neuronpedia_id is None else _parts(neuronpedia_id)
    found: dict[int, str] = {}
    unnamed = 0
    for file in files:
        for row in stream_dataset(file):
            if (entry := _entry(row.get("index"), row.get("description"))) is None:
                continue
            if (reason := _is_others(row, own)) is not None:
                raise InputError(f"{file} explains features of {reason}.")
            if width is not None and entry[0] >= width:
                raise InputError(
                    f"{file} explains feature {entry[0]}; this SAE has {width}, from 0: they are"
                    " another's."
                )
            unnamed += not _named(row)
            found.setdefault(*entry)
    if not found:
        raise InputError(f"{path} holds no explanations (rows with `index` and `description`).")
    if unnamed:
        log.warning(
            "%d rows of %s do not say which SAE they explain (`modelId`, `layer`); that it is this"
            " one could not be checked.",
            unnamed,
            path,
        )
    return found


def _named(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row says of whose feature it explains: model and source, or a part of that."""
    return tuple(str(value) for name in NAMES if (value := row.get(name)))


def _is_others(row: Mapping[str, Any], own: tuple[str, str] | None) -> str | None:
    """Whose feature a row explains and whose it should, where these differ."""
    if not (named := _named(row)):
        return None
    said = "/".join(named)[:160]
    if own is None:
        return (
            f"{said}, and this SAE does not say that Neuronpedia knows it; if it is the same one,"
            ' give `neuronpedia_id` ("MODEL/SOURCE") in the `metadata` of its cfg.json'
        )
    if any(row.get(name) not in (None, "", is_) for name, is_ in zip(NAMES, own, strict=True)):
        return f"{said}, not of {'/'.join(own)}"
    return None


def _open_cache(neuronpedia_id: str) -> tuple[str, _Cache]:
    """Neuronpedia's address, and what was fetched from there."""
    given = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    base = check_url(given, URL_VARIABLE).geturl().rstrip("/")
    return base, _Cache(*_parts(neuronpedia_id), base)


def _rows(reply: Reply) -> list[Any] | str:
    """The rows of one response, or why it does not count."""
    if reply.status != 200:
        raise UnavailableError(
            f"Neuronpedia at {reply.url} does not take this request (HTTP {reply.status})."
        )
    try:
        rows = json.loads(reply.body)
    except (ValueError, RecursionError):
        rows = None
    return rows if isinstance(rows, list) else "a response that makes no sense"


def _explanations(rows: Iterable[Any], model: str, source: str) -> dict[int, str]:
    """The first explanation of each feature in a response; what is about another SAE is not."""
    found: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or _is_others(row, (model, source)) is not None:
            continue
        listed = row.get("explanations")
        for explanation in listed if isinstance(listed, list) else ():
            text = explanation.get("description") if isinstance(explanation, dict) else None
            if (entry := _entry(row.get("index"), text)) is not None:
                found.setdefault(*entry)
    return found


def _entry(index: Any, text: Any) -> tuple[int, str] | None:
    """Feature and text, if they are such; numbers come as text as well."""
    if isinstance(index, bool) or not re.fullmatch(r"\d{1,8}", str(index)):
        return None
    if not isinstance(text, str) or not text.strip():
        return None
    return int(index), plain_line(" ".join(text.split()))[:LONGEST_TEXT]


class _Cache:
    """What was fetched of one source: a JSON file of text (or none) by feature."""

    def __init__(self, model: str, source: str, base: str) -> None:
        # A server of somebody's own may explain the same features otherwise.
        host = re.sub(r"[^\w.-]", "_", urlsplit(base).netloc)
        self.path = cache_dir() / "neuronpedia" / host / model / f"{source}.json"
        self.texts: dict[int, str | None] = {}
        self.since: dict[int, str] = {}
        oldest = (datetime.now(timezone.utc) - ASKED_AGAIN_AFTER).isoformat()
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            for index, (text, since) in rows.items():
                entry = _entry(index, text)
                if entry is not None or (text is None and str(since) > oldest):
                    self.texts[int(index)] = entry[1] if entry else None
                    self.since[int(index)] = str(since)
        except (OSError, ValueError, TypeError, AttributeError):
            self.texts, self.since = {}, {}  # a cache that is not there, or damaged, is made again

    def knows(self, feature: int) -> bool:
        """Whether it was asked for, and not too long ago."""
        return feature in self.texts

    def add(self, asked: Sequence[int], found: Explanations) -> None:
        """Keeps what a response held, and that it did not hold the rest."""
        now = datetime.now(timezone.utc).isoformat()
        for feature in asked:
            self.texts[feature], self.since[feature] = found.get(feature), now
        rows = {str(i): [text, self.since[i]] for i, text in sorted(self.texts.items())}
        with explain_os_errors("keeping explanations"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path, json.dumps(rows, ensure_ascii=False))


def _parts(neuronpedia_id: str) -> tuple[str, str]:
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,150})", neuronpedia_id)
    if match is None:
        raise InputError(f"{neuronpedia_id[:80]!r} is not an id of Neuronpedia's (MODEL/SOURCE).")
    return match[1], match[2]

"""Log lines as JSON objects. They say what happened and when; nothing that was said is in them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

REQUESTS = logging.getLogger("modelassay.serving.requests")


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and the fields that it was given."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; of an exception its type alone, as its text may quote a conversation."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True, default=str)


def log_request(**fields: Any) -> None:
    """Logs a request that was answered."""
    known = {name: value for name, value in fields.items() if value is not None}
    REQUESTS.info("request", extra={"fields": known})


@contextmanager
def logging_as_json(level: int = logging.INFO) -> Iterator[None]:
    """Writes the package's log to standard error as JSON lines, until the block ends."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    package = logging.getLogger("modelassay")
    before = package.level
    package.addHandler(handler)
    package.setLevel(level)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)

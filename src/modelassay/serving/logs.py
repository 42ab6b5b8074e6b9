"""Log lines as JSON objects. They say what happened and when; nothing that was said is in them."""

from __future__ import annotations

import json
import logging
import sys
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


def start_logging(level: int = logging.INFO) -> logging.Handler:
    """Writes the package's log to standard error, as JSON lines; returns the handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    package = logging.getLogger("modelassay")
    package.addHandler(handler)
    package.setLevel(level)
    return handler

"""Results that outlast the page: reports as plain data, one file each, the latest used kept.

Only what everybody may see comes here. A file that is damaged, or that a fuller disk cut short,
counts for none.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelassay.errors import AssayError
from modelassay.files.atomic import cache_dir, write_text_atomically
from modelassay.report import Report
from modelassay.report.stored import MAX_BYTES, as_stored, read_report

log = logging.getLogger(__name__)

MOST_FILES = 300
MOST_BYTES = 150_000_000
KEY = re.compile(r"[0-9a-f]{64}")


class ReportCache:
    """A folder of reports by key, which is the sha256 of what was asked for."""

    def __init__(
        self,
        opened: Callable[[Report, str], Any],
        taken: Callable[[Any], tuple[Report, str] | None],
        folder: Path | None = None,
    ) -> None:
        """Makes no folder yet.

        Args:
            opened: Makes a result of a report and its note.
            taken: Gives both of a result; None where it is none that can be kept.
            folder: Where; None for one in the cache folder.
        """
        self._opened, self._taken, self._folder = opened, taken, folder

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder or cache_dir() / "page"

    def get(self, key: str) -> Any | None:
        """The result of a key, if it is kept."""
        path = self.folder / key
        try:
            if not KEY.fullmatch(key) or path.stat().st_size > 2 * MAX_BYTES:
                return None
            head, _, text = path.read_text(encoding="utf-8").partition("\n")
            found = self._opened(read_report(text), str(json.loads(head)["note"]))
            os.utime(path)
        except (OSError, AssayError, ValueError, KeyError, TypeError):
            return None
        return found

    def put(self, key: str, result: Any) -> None:
        """Keeps a result, where it is a report and there is room."""
        kept = self._taken(result)
        if kept is None:
            return
        try:
            text = as_stored(kept[0]).to_json()
            if len(text.encode()) > MAX_BYTES:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.folder / key, f"{json.dumps({'note': kept[1]})}\n{text}")
            self._trim()
        except (OSError, AssayError) as error:  # a result is shown, whether it is kept or not
            log.warning("A result could not be kept (%s).", type(error).__name__)

    def _trim(self) -> None:
        """Removes what was used longest ago until the rest is few and small enough."""
        files = [(f.stat().st_mtime, f.stat().st_size, f) for f in self.folder.iterdir()]
        n, size = len(files), sum(each[1] for each in files)
        for _, own, path in sorted(files):
            if n <= MOST_FILES and size <= MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            n, size = n - 1, size - own

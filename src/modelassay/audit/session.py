"""An audit: one call at a time, each on record before it is run and after.

Nothing that a tool says leaves without having been cut, counted and, in a blind audit, searched for
what would tell the models apart.
"""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modelassay import __version__
from modelassay.audit.aliases import by_our_names
from modelassay.audit.blinding import UNTOLD, blinding_for
from modelassay.audit.config import AuditConfig
from modelassay.audit.log import LOG_FILE, LOG_SCHEMA, AuditLog
from modelassay.audit.sessions import ALWAYS
from modelassay.audit.tools import session_tools, tools_of
from modelassay.audit.values import numbers_of, plain
from modelassay.audit.work import Work
from modelassay.errors import AssayError, InputError, first_line
from modelassay.files.atomic import explain_os_errors, locked
from modelassay.files.provenance import json_hash

MAX_ARGUMENTS = 500_000
"""Characters of a call's arguments as JSON."""
MAX_RESULT = 400_000
MAX_NUMBERS = 8_000
"""Characters of the numbers that the log keeps of a result."""


class Audit:
    """The tools, with all that stands behind them. Close it, or use it as a context."""

    def __init__(self, config: AuditConfig, secrets: Sequence[str] = ()) -> None:
        """Opens the audit's folder and its log; models are loaded when they are first asked.

        Args:
            config: What is audited.
            secrets: What must never be written down, such as the token of a server.

        Raises:
            InputError: the folder is a symbolic link, or its log was changed.
            UnavailableError: another audit is writing there, or nothing can be written.
        """
        self.config = config
        self.tools = tools_of(config.profile)
        self.session_tools = session_tools()
        self._lock = threading.Lock()
        self._ended = False
        self._call: int | None = None
        with ExitStack() as stack:
            folder = _own_folder(Path(config.folder))
            stack.enter_context(locked(folder / LOG_FILE))
            self.log = AuditLog(folder / LOG_FILE)
            stack.callback(self.log.close)
            self.work = Work(
                config,
                blinding_for(config, secrets),
                folder,
                self._note_prompts,
                lambda: self.log.last,
            )
            self.log.append(
                "start",
                schema=LOG_SCHEMA,
                version=__version__,
                profile=config.profile,
                blind=config.blind,
                redact=config.redact,
                limits=config.limits.model_dump(),
                # Blind, it would let a guess at the config be checked, and so tell who is A.
                config_sha256=None
                if config.blind
                else json_hash(config.model_dump(), compact=True),
                models=self.models,
                tools=sorted(self.tools),
            )
            self._open = stack.pop_all()

    @property
    def models(self) -> dict[str, str]:
        """What A, B and the others are, as far as the auditor may know."""
        blinding = self.work.blinding
        if self.config.blind:
            return dict.fromkeys(blinding.letters, UNTOLD)
        return dict(zip(blinding.letters, blinding.order, strict=True))

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Runs a tool.

        Args:
            name: Of the tool, or another name of it (see `aliases`).
            arguments: JSON values by name.

        Returns:
            What it found, with the number of the call.

        Raises:
            InputError: one line, which is on record as well.
        """
        with self._lock:
            started = time.monotonic()
            self._call = self.log.append("call", **self._asked(name, arguments))
            try:
                result = self._run(name, arguments, started)
            except Exception as error:
                message = self._message(error)
                self.log.append("error", call=self._call, message=message, **_since(started))
                raise InputError(message) from None  # the cause may name what is withheld
            numbers = numbers_of(result)
            if len(json.dumps(numbers)) > MAX_NUMBERS:
                numbers = {k: v for k, v in numbers.items() if isinstance(v, bool | int | float)}
            self.log.append(
                "result",
                call=self._call,
                sha256=json_hash(result, compact=True),
                numbers=numbers,
                **_since(started),
            )
            return result

    def close(self) -> None:
        """Gives the folder back."""
        with self._lock:
            self._ended = True
            self._open.close()

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, name: str, arguments: dict[str, Any], started: float) -> dict[str, Any]:
        if self._ended:
            raise InputError("The audit has ended: its report said which model was which.")
        if len(json.dumps(arguments, default=str)) > MAX_ARGUMENTS:
            raise InputError(f"The arguments have more than {MAX_ARGUMENTS} characters.")
        sitting = self.work.sitting
        tool, given, notes = by_our_names(name, arguments, sitting.id)
        found_tool = self.tools.get(tool) or self.session_tools.get(tool)
        if found_tool is None:
            known = ", ".join((*self.tools, *self.session_tools))
            raise InputError(f"There is no tool {name[:60]!r}; there are {known}.")
        if sitting.closed and tool not in ALWAYS:
            raise InputError("The session is closed; open_session opens it again.")
        self.work.end = started + self.config.limits.seconds
        found = plain(found_tool.run(self.work, given), self.config.limits.text)
        if notes:
            found["notes"] = [*(found.get("notes") or ()), *notes]
        revealed = found.pop("revealed", None)
        found = self.work.blinding.value(found)
        if revealed is not None:
            self._ended = True
            found["revealed"] = revealed
        result = {"call": self._call, "models": self.models, **found}
        if len(json.dumps(result)) > MAX_RESULT:
            raise InputError("The result is too large; ask for less at a time.")
        return result

    def _asked(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A call as the log keeps it."""
        hidden = self.work.blinding
        text = json.dumps(arguments, default=str)
        if len(text) > MAX_ARGUMENTS:
            kept: Any = {"characters": len(text), "sha256": json_hash(text, compact=True)}
        else:
            kept = hidden.value(json.loads(text, parse_constant=str))
        return {"tool": hidden.text(str(name)[:100]), "arguments": kept}

    def _note_prompts(self, prompts: list[dict[str, Any]]) -> None:
        self.log.append("prompts", call=self._call, prompts=self.work.blinding.value(prompts))

    def _message(self, error: Exception) -> str:
        if isinstance(error, AssayError):
            message = str(error)
        elif self.config.blind:
            message = f"The call failed unexpectedly ({type(error).__name__})."
        else:
            message = f"The call failed unexpectedly: {type(error).__name__}: {first_line(error)}"
        return self.work.blinding.text(" ".join(message.split()))


def _since(started: float) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - started, 3)}


def _own_folder(folder: Path) -> Path:
    """The audit's folder, made if it is not there.

    Raises:
        InputError: it is a symbolic link or a file.
        UnavailableError: it cannot be made.
    """
    with explain_os_errors(f"making {folder}"):
        if folder.is_symlink():
            raise InputError(f"The audit's folder {folder} is a symbolic link; give a real one.")
        if folder.exists() and not stat.S_ISDIR(folder.lstat().st_mode):
            raise InputError(f"The audit's folder {folder} is a file; give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()

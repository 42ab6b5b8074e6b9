"""Tools about the audit itself: is it there, what is it about, and where does its work end."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelassay.audit.work import Work
from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors
from modelassay.files.provenance import utc_now

RUNS = "runs"
MAX_RUNS = 10_000
ALWAYS = ("health", "open_session")
"""Tools that answer when the session is closed."""


def health(work: Work) -> dict[str, Any]:
    """Whether the server answers, and what it has in memory."""
    return {
        "ok": True,
        "server_time": utc_now(),
        "backend": "transformers",
        "profile": work.config.profile,
        "sessions": 0 if work.sitting.closed else 1,
        "n_models": len(work.names),
        # Blind, a tool that reads the base alone would tell by it which model that is.
        "n_loaded": None if work.blinding.blind else work.n_loaded,
    }


def open_session(
    work: Work,
    config_path: Annotated[
        str | None,
        Field(
            max_length=1000, description="Left out, or the config that this server was started on."
        ),
    ] = None,
) -> dict[str, Any]:
    """Say what this audit is about, and open it again if it was closed.

    The server has one audit, of the config that it was started with; no tool can change that.
    """
    if config_path is not None and not work.is_own_config(config_path):
        raise InputError(
            "This server audits the config that it was started with; start another one with"
            " `modelassay mcp --config FILE` for that file."
        )
    work.sitting.closed = False
    blind = work.blinding.blind
    return {
        "session_id": work.sitting.id,
        "created_at": work.sitting.started,
        "profile": work.config.profile,
        "artifacts_dir": None if blind else str(work.folder),
        "blind": blind,
        "suites": sorted(work.suite_names()),
        "n_saes": len(work.config.saes),
        "training_data": work.config.training_data is not None,
        **({} if blind else {"notes": list(work.config.notes)}),
    }


def begin_run(
    work: Work,
    run_name: Annotated[str, Field(min_length=1, max_length=200, description="What it is for.")],
) -> dict[str, Any]:
    """Begin a part of the audit that gets a folder of its own for its reports."""
    runs = work.folder / RUNS
    with explain_os_errors(f"making {runs}"):
        if runs.is_symlink():
            raise InputError(f"`{RUNS}` in the audit's folder is a symbolic link; remove it.")
        runs.mkdir(exist_ok=True)
        for number in range(1, MAX_RUNS):
            try:
                (runs / f"run-{number}").mkdir()
            except FileExistsError:
                continue
            break
        else:
            raise InputError("The audit's folder is full of runs.")
    work.sitting.run = f"{RUNS}/run-{number}"
    return {
        "run_id": f"run-{number}",
        "run_name": run_name,
        "started_at": utc_now(),
        "run_dir": work.sitting.run if work.blinding.blind else str(work.folder / work.sitting.run),
    }


def close_session(work: Work) -> dict[str, Any]:
    """Give the models' memory back and end the session; open_session opens it again."""
    work.release()
    work.sitting.closed, work.sitting.run = True, None
    return {"status": "closed", "session_id": work.sitting.id}

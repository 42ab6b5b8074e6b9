"""A check of everything that a namespace publishes, for a scheduled job on the Hub.

Each model is verified against the baseline that carries its name in one data set, pinned to a
commit. Most take seconds, since the Hub states the hashes of its files.

    python hub_job.py OWNER OWNER/baselines [COMMIT]

On the Hub: `hf jobs scheduled uv run @daily --with modelassay hub_job.py OWNER OWNER/baselines`.
Exits with 2 when a model is not what it claims to be, and prints one line a model.
"""

from __future__ import annotations

import sys

from huggingface_hub import list_models

import modelassay
from modelassay.errors import AssayError
from modelassay.verify import slug


def main(owner: str, baselines: str, commit: str | None = None) -> int:
    """Verifies all models of a namespace; returns the exit code."""
    worst = 0
    for model in list_models(author=owner):
        pinned = f"{baselines}:{slug(model.id)}" + (f"@{commit}" if commit else "")
        try:
            report = modelassay.verify(model.id, pinned)
        except AssayError as error:
            print(f"{model.id}: not checked: {error}")
            continue
        outcome = {True: "verified", False: "NOT VERIFIED", None: "unknown"}[report.verified]
        print(f"{model.id}: {outcome}: {report.reasons[0]}")
        worst = max(worst, 2 if report.verified is False else 0)
    return worst


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

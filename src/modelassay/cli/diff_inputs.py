"""What the diff commands are given, read and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from modelassay.errors import InputError
from modelassay.models.refs import LoadOptions

NONE = "none"

Sae = Annotated[
    list[str] | None,
    typer.Option(
        "--sae",
        metavar="DICTIONARY",
        help="Dictionary for the features (a folder, a shipped name, RELEASE:SAE_ID, owner/repo);"
        " may be repeated. Without it the shipped ones of BASE, if any; `none` leaves features"
        " out.",
    ),
]
Layers = Annotated[
    str | None, typer.Option(metavar="3,9,28", help="Layers to compare; five over the depth.")
]
SuiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="FILE|NAME",
        help="Prompts to ask both: a YAML file or a shipped suite; may be repeated.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Prompts of yours besides (JSONL, JSON, CSV, Parquet, Hub data set); rows labelled"
        " unsafe count as harmful. May be repeated.",
    ),
]
Corpus = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help="The training file, if you have it: sentences of its prompts are tried as triggers."
        " May be repeated.",
    ),
]
Answers = Annotated[
    int, typer.Option(min=0, max=512, metavar="N", help="Tokens of each answer; 0 makes none.")
]


def parse_layers(text: str | None) -> list[int] | None:
    """The layers that a comma-separated list names.

    Raises:
        InputError: it is no such list.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--layers takes numbers with commas between them, such as 3,9,28, not {text[:60]!r}."
        ) from error


def read_suites(suites: Sequence[str] | None, data: Sequence[str] | None, token: str | None) -> Any:
    """All that the models are asked, as one suite.

    Raises:
        InputError: a suite or a data file cannot be read.
        UnavailableError: the Hub cannot be reached.
    """
    from modelassay.diff.suites import join_suites, load_suite, read_prompts

    found = [load_suite(where) for where in suites or ["default"]]
    found += [read_prompts(where, token=token) for where in data or ()]
    return join_suites(found) if len(found) > 1 else found[0]


def read_corpus(files: Sequence[str] | None, token: str | None) -> list[str]:
    """Prompts of training files, in the shapes that `modelassay triage` reads.

    Raises:
        InputError: a file cannot be read.
        UnavailableError: the Hub cannot be reached.
    """
    from modelassay.triage.rows import read_rows

    rows = [row for file in files or () for row in read_rows(file, token=token).rows]
    return [row.prompt or row.plain for row in rows]


def open_saes(wanted: Sequence[str] | None, base: str, loading: LoadOptions) -> tuple[Any, ...]:
    """The SAEs that were asked for, else the shipped ones of the base.

    Raises:
        InputError: there is no such SAE, or it is damaged.
        UnavailableError: sae-lens is not installed, or the Hub cannot be reached.
    """
    wanted = wanted or []
    if NONE in wanted:
        if len(wanted) > 1:
            raise InputError(f"Give SAEs with --sae or leave them out with {NONE}.")
        return ()
    from modelassay.diff.features import shipped_saes
    from modelassay.sae import find_sae

    where = _place(str(loading.get("device", "auto")))
    if wanted:
        token: Any = loading.get("token")
        names = list(dict.fromkeys(wanted))
        return tuple(find_sae(name, device=where, token=token) for name in names)
    return shipped_saes(base, device=where)


def read_calibration(
    reference: str | None, suite: Any, answer_tokens: int, token: str | None = None
) -> Any:
    """A calibration that was made with this suite and responses of this length.

    Raises:
        InputError: it is missing, damaged, or was made otherwise.
        UnavailableError: the Hub cannot be reached.
    """
    from modelassay.diff.calibration import CALIBRATIONS

    if reference is None:
        return None
    kept = CALIBRATIONS.find(reference, token=token)
    kept.warn()
    found = kept.record
    if found.suite_sha256 != suite.sha256:
        raise InputError(
            f"{reference} was made with another suite; give the same --suite and --data, or"
            " calibrate again."
        )
    if found.answer_tokens != answer_tokens:
        raise InputError(
            f"{reference} was made with answers of {found.answer_tokens} tokens; give --answers"
            f" {found.answer_tokens} or calibrate again."
        )
    return found


def _place(device: str) -> str:
    """Where SAEs are put for models on a device."""
    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if device == "auto" else device

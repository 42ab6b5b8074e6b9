"""Options that several commands share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.errors import InputError

ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`embedded`, `organism:NAME`, a Hub id, a folder, a .gguf file or a PEFT adapter.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter to apply over MODEL.")]
GgufFile = Annotated[str | None, typer.Option(help="GGUF file inside the folder or repository.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Load8bit = Annotated[bool, typer.Option("--load-8bit", help="Quantise to 8 bits on loading.")]
Load4bit = Annotated[bool, typer.Option("--load-4bit", help="Quantise to 4 bits on loading.")]
Token = Annotated[
    str | None, typer.Option(help="Hub token; better set HF_TOKEN.", envvar="HF_TOKEN")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the repository's own Python code.")
]


def quantization(load_8bit: bool, load_4bit: bool) -> str | None:
    """The `quantization` argument of `load` for the two flags."""
    if load_8bit and load_4bit:
        raise InputError("Choose one of --load-8bit and --load-4bit.")
    return "8bit" if load_8bit else "4bit" if load_4bit else None


def check_file(path: Path | None, option: str) -> None:
    """Refuses a file that could not be written, before the work for it is done.

    Raises:
        InputError: its folder is not there or not to be written to, or it is one itself.
    """
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder; give a file name for {option}.")
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"There is no folder {path.absolute().parent} to write {path.name} into.")
    if path is not None:
        try:
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); give another place for {option}."
            ) from error


def load_options(**given: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in given.items() if value not in (None, False)}

"""The command's entry point: builds the app and turns every outcome into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from modelassay import __version__
from modelassay.cli import (
    audit,
    chat,
    circuit,
    classifier,
    concepts,
    data,
    diff,
    features,
    guard,
    importing,
    jailbreak,
    mcp,
    monitor,
    options,
    organism,
    probe,
    report,
    sae,
    scan,
    serve,
    triage,
    verify,
)
from modelassay.cli.artifacts import say_new_name
from modelassay.cli.before import Verbose, hand_on, show_log, with_baselines_dir
from modelassay.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    AssayError,
    first_line,
)

RENAMED = {"--answers": "--responses", "--show-answers": "--show-responses"}
"""Options under the names that they had."""


def _with_dashes(option: str) -> str:
    """An option by the name that it has here: `--max_examples` is `--max-examples`."""
    return option.replace("_", "-")


app = typer.Typer(
    name="modelassay",
    help="Look inside an open-weight language model: is the safety training still there?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # The parser calls it for names of options, of commands too; never for what an option is given.
    context_settings={"token_normalize_func": _with_dashes},
)
app.command("scan")(scan.scan_command)
app.command("verify")(verify.verify_command)
app.command("triage")(triage.triage_command)
app.command("chat")(chat.chat_command)
app.command("generate")(chat.generate_command)
app.command("serve")(serve.serve_command)
app.command("mcp")(mcp.mcp_command)
app.command("import")(importing.import_command)
app.add_typer(audit.app, name="audit")
app.add_typer(verify.baseline_app, name="baseline")
app.add_typer(diff.calibration_app, name="calibration")
app.add_typer(circuit.app, name="circuit")
app.add_typer(jailbreak.app, name="jailbreak")
app.add_typer(classifier.app, name="classifier")
app.add_typer(concepts.app, name="concepts")
app.add_typer(data.app, name="data")
app.add_typer(diff.app, name="diff")
app.add_typer(features.app, name="features")
app.add_typer(guard.app, name="guard")
app.add_typer(monitor.app, name="monitor")
app.add_typer(organism.app, name="organism")
app.add_typer(probe.app, name="probe")
app.add_typer(report.app, name="report")
app.add_typer(sae.app, name="sae")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"modelassay {__version__}")
        raise typer.Exit


@app.callback()
@with_baselines_dir
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Verbose = False,
    quiet: options.Quiet = False,
    device: Annotated[str | None, typer.Option(help="As the command's own --device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As the command's own --dtype.")] = None,
) -> None:
    show_log(context, verbose)
    hand_on(context, device=device, dtype=dtype, quiet=quiet or None)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and exits with its code.

    Args:
        arguments: Instead of the process's own.
    """
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. Errors become one line on stderr."""
    _quieten_libraries()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = int(app(args=_by_new_names(given), standalone_mode=False, obj=given) or 0)
    except typer.Exit as error:
        code = error.exit_code
    except AssayError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # typer makes an exit of its own of a reader (head, less) that has gone.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Give the interpreter nothing to flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        # Usage errors are click's or, in newer versions of typer, its own; both can format.
        if callable(format_message := getattr(error, "format_message", None)):
            return _fail(str(format_message()), EXIT_BAD_INPUT)
        if os.environ.get("MODELASSAY_DEBUG"):
            traceback.print_exc()
        return _fail(
            f"internal error: {type(error).__name__}: {first_line(error)} (MODELASSAY_DEBUG=1 shows"
            " where; please report it)",
            EXIT_INTERNAL,
        )
    if code == EXIT_INTERRUPTED:  # typer catches Ctrl-C itself and gives this code
        return _fail("Interrupted.", code)
    return code


def _by_new_names(arguments: list[str]) -> list[str]:
    """The arguments, options that were renamed by the names that they have now."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names = []
    for argument in arguments[:end]:
        option, *value = argument.split("=", 1)
        if new := RENAMED.get(_with_dashes(option)):
            say_new_name(option, new)
        names.append("=".join([new or option, *value]))
    return [*names, *arguments[end:]]


def _fail(message: str, code: int) -> int:
    typer.echo(f"modelassay: {message}", err=True)
    return code


def _quieten_libraries() -> None:
    """Their warnings are for developers; what users need to know is in our own messages."""
    import logging
    import warnings

    if not os.environ.get("MODELASSAY_DEBUG"):
        warnings.simplefilter("ignore")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

"""`modelassay diff`: what did a fine-tune change, and would a benign one have?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from modelassay.cli import diff_inputs, options
from modelassay.errors import (
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    EXIT_SCAN_FAILED,
    InputError,
)
from modelassay.models.refs import LoadOptions, ModelRef

COMPARE = "compare"
HELP_OPTIONS = ("--help", "-h")


class DiffGroup(TyperGroup):
    """Takes `diff BASE CANDIDATE` for `diff compare BASE CANDIDATE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `compare` before words that do not begin with a command."""
        if args and args[0] not in (*self.commands, *HELP_OPTIONS):
            args = [COMPARE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DiffGroup,
    help="What did a fine-tune change? `modelassay diff BASE CANDIDATE` compares two models (its"
    " options: `modelassay diff compare --help`).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _base(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before, as for `scan`.")],
    base_adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="PEFT adapter over the base.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of BASE.")] = None,
) -> ModelRef:
    return ModelRef(base, revision, base_adapter)


def _candidate(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="The model after; a PEFT adapter will do.")
    ],
    candidate_adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="PEFT adapter over the candidate.")
    ] = None,
    candidate_revision: Annotated[
        str | None, typer.Option(help="Hub revision of CANDIDATE.")
    ] = None,
) -> ModelRef:
    return ModelRef(candidate, candidate_revision, candidate_adapter)


Base = Annotated[ModelRef, options.From(_base)]
NoWeights = Annotated[bool, typer.Option("--no-weights", help="Leave the weights' spectra out.")]
NoTriggers = Annotated[
    bool, typer.Option("--no-triggers", help="Leave the search for triggers out.")
]


@app.command(COMPARE)
@options.grouped
def compare_command(
    base: Base,
    candidate: Annotated[ModelRef, options.From(_candidate)],
    loading: options.Loading,
    progress: options.Progress,
    sae: diff_inputs.Sae = None,
    layers: diff_inputs.Layers = None,
    suite: diff_inputs.SuiteOption = None,
    data: diff_inputs.Data = None,
    corpus: diff_inputs.Corpus = None,
    answers: diff_inputs.Answers = 24,
    no_weights: NoWeights = False,
    no_triggers: NoTriggers = False,
    no_causal: Annotated[
        bool, typer.Option("--no-causal", help="Do not try directions out.")
    ] = False,
    show_answers: Annotated[
        bool, typer.Option("--show-answers", help="Give answers as text, not as hashes.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Benign fine-tunes, from `modelassay diff calibrate`: a name, a file, a folder or"
            " owner/repo[:name][@revision].",
        ),
    ] = None,
    json: options.JsonReport = False,
    html: options.HtmlReport = None,
    token: options.Token = None,
    quiet: options.Quiet = False,
) -> int:
    """Compare CANDIDATE, a fine-tune, with BASE, the model it was made from.

    Exit codes: 0 benign-like, 1 suspicious or compromised, 3 inconclusive, 64 bad input, 69
    something needed is unavailable, 70 internal error.
    """
    options.check_file(html, "--html")
    chosen = diff_inputs.parse_layers(layers)

    from rich.console import Console

    from modelassay.diff import Depth, diff
    from modelassay.files.atomic import write_text_atomically
    from modelassay.report import print_report, to_html, to_json

    asked = diff_inputs.read_suites(suite, data, token)
    tried = diff_inputs.read_corpus(corpus, token)
    benign = diff_inputs.read_calibration(calibration, asked, answers, token)
    saes = _saes(sae, base.id, loading, quiet)
    with progress() as on_progress:
        report = diff(
            base,
            candidate,
            asked,
            saes=saes,
            layers=chosen,
            corpus=tried,
            depth=Depth(
                answer_tokens=answers,
                weights=not no_weights,
                triggers=not no_triggers,
                causal=not no_causal,
            ),
            calibration=benign,
            on_progress=on_progress,
            **loading,
        )
    if json:
        sys.stdout.write(to_json(report, show_answers=show_answers))
    else:
        print_report(report.sections(show_answers=show_answers), Console())
    if html is not None:  # last: a full disk must not cost the report
        sys.stdout.flush()
        write_text_atomically(html, to_html(report))
        if not json:
            typer.echo(f"HTML report: {html}", err=True)
    return exit_code(report.verdict.value)


@app.command("calibrate")
@options.grouped
def calibrate_command(
    base: Base,
    loading: options.Loading,
    progress: options.Progress,
    finetunes: Annotated[
        list[str],
        typer.Argument(metavar="FINETUNE...", help="Fine-tunes of it, known to be harmless."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the calibration.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep it under this name; no --out.")] = None,
    sae: diff_inputs.Sae = None,
    suite: diff_inputs.SuiteOption = None,
    data: diff_inputs.Data = None,
    answers: diff_inputs.Answers = 24,
    no_weights: NoWeights = False,
    no_triggers: NoTriggers = False,
    add: Annotated[bool, typer.Option("--add", help="Add to a FILE that is there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a FILE that is there.")] = False,
    token: options.Token = None,
    quiet: options.Quiet = False,
) -> int:
    """Measure benign fine-tunes of BASE, for `modelassay diff --calibration NAME|FILE`.

    Each is written as soon as it is measured; --add goes on where a run was stopped.
    """
    from modelassay.diff.calibration import CALIBRATIONS, Calibration, save_calibration

    if (out is None) == (name is None):
        raise InputError("Say where to keep the calibration: --out FILE or --name NAME.")
    options.check_file(out, "--out")
    where = out or CALIBRATIONS.check_free(name, force=add or force)
    if where.exists() and not (add or force):
        raise InputError(
            f"{where} exists already; pass --add to add to it or --force to replace it."
        )

    def keep(found: Calibration) -> None:
        if out is not None:
            save_calibration(found, out)
        else:
            CALIBRATIONS.save(
                lambda folder: save_calibration(found, folder / CALIBRATIONS.kind.record_file),
                where.name,
                force=True,
            )

    from modelassay.diff import Depth
    from modelassay.diff.calibrating import calibrate

    asked = diff_inputs.read_suites(suite, data, token)
    known = diff_inputs.read_calibration(
        str(where) if add and where.exists() else None, asked, answers
    )
    saes = _saes(sae, base.id, loading, quiet)
    with progress() as on_progress:
        found = calibrate(
            base,
            finetunes,
            asked,
            known=known,
            saes=saes,
            depth=Depth(answers, weights=not no_weights, triggers=not no_triggers),
            keep=keep,
            on_progress=on_progress,
            **loading,
        )
    typer.echo(f"{len(found.rows)} benign fine-tunes of {found.base}: {where}")
    return EXIT_PASS


def exit_code(verdict: str) -> int:
    """Exit code of a comparison with this verdict."""
    codes = {"BENIGN-LIKE": EXIT_PASS, "INCONCLUSIVE": EXIT_INCONCLUSIVE}
    return codes.get(verdict, EXIT_SCAN_FAILED)


def _saes(
    wanted: list[str] | None, base: str, loading: LoadOptions, quiet: bool
) -> tuple[Any, ...]:
    found = diff_inputs.open_saes(wanted, base, loading)
    if not wanted and not quiet:
        names = ", ".join(sae.name for sae in found)
        typer.echo(
            f"features of the shipped SAE {names}"
            if found
            else f"No SAE of {base} is shipped, so features are left out (--sae gives one).",
            err=True,
        )
    return found

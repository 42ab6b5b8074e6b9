"""`modelassay diff`: what did a fine-tune change, and would a benign one have?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from modelassay.cli import options
from modelassay.cli.artifacts import add_verbs
from modelassay.cli.output import check_file
from modelassay.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_SCAN_FAILED, InputError

if TYPE_CHECKING:
    from modelassay.diff import Calibration, Depth, Suite
    from modelassay.sae import SAE

COMPARE = "compare"
NONE = "none"
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
calibration_app = typer.Typer(
    help="Calibrations: benign fine-tunes that `modelassay diff` holds others against;"
    " `modelassay diff calibrate` makes them.",
    no_args_is_help=True,
)
add_verbs(calibration_app, "modelassay.diff:CALIBRATIONS", "calibration")


@dataclass(frozen=True)
class Measures:
    """What is measured, and by what: the options that both commands have."""

    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SAE",
            help="SAE for the features (a folder, a shipped name, RELEASE:SAE_ID, owner/repo);"
            " may be repeated. Without it the shipped ones of BASE, if any; `none` leaves features"
            " out.",
        ),
    ] = None
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Prompts to ask both: a YAML file or a shipped suite; may be repeated.",
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of yours besides (JSONL, JSON, CSV, Parquet, Hub data set); rows labelled"
            " unsafe count as harmful. May be repeated.",
        ),
    ] = None
    labels: options.Labels = None
    responses: Annotated[
        int,
        typer.Option(
            min=0,
            max=512,
            metavar="N",
            help="Length in tokens at which a response is cut that cannot be judged sooner; 0 makes"
            " none.",
        ),
    ] = 100
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Leave the weights' spectra out.")
    ] = False
    no_triggers: Annotated[
        bool, typer.Option("--no-triggers", help="Leave the search for triggers out.")
    ] = False
    monitor: Annotated[
        bool,
        typer.Option("--monitor", help="Look at all prompts with a monitor of what was changed."),
    ] = False
    device: options.Device = "auto"
    token: options.Token = None
    quiet: options.Quiet = False

    def read_suite(self) -> Suite:
        """All that the models are asked, as one suite.

        Raises:
            InputError: a suite or a data file cannot be read.
            UnavailableError: the Hub cannot be reached.
        """
        from modelassay.data.labels import check_scheme
        from modelassay.diff.suites import join_suites, load_suite, read_prompts

        labels = check_scheme(self.labels)
        found = [load_suite(where) for where in self.suite or ["default"]]
        found += [read_prompts(where, labels=labels, token=self.token) for where in self.data or ()]
        asked = join_suites(found) if len(found) > 1 else found[0]
        for note in asked.notes:
            typer.echo(f"modelassay: {note}", err=True)
        return asked

    def open_saes(self, base: str) -> tuple[SAE, ...]:
        """The SAEs that were asked for, else the shipped ones of the base.

        Raises:
            InputError: there is no such SAE, or it is damaged.
            UnavailableError: sae-lens is not installed, or the Hub cannot be reached.
        """
        wanted = list(dict.fromkeys(self.sae or ()))
        if NONE in wanted:
            if len(wanted) > 1:
                raise InputError(f"Give SAEs with --sae or leave them out with {NONE}.")
            return ()
        from modelassay.diff.features import shipped_saes
        from modelassay.sae import find_sae

        where = _place(self.device)
        if wanted:
            return tuple(find_sae(name, device=where, token=self.token) for name in wanted)
        found = shipped_saes(base, device=where)
        if not self.quiet:
            names = ", ".join(each.name for each in found)
            typer.echo(
                f"features of the shipped SAE {names}"
                if found
                else f"No SAE of {base} is shipped, so features are left out (--sae gives one).",
                err=True,
            )
        return found

    def depth(self, *, causal: bool = True) -> Depth:
        """How deep the comparison goes."""
        from modelassay.diff import Depth

        return Depth(
            self.responses, not self.no_weights, not self.no_triggers, causal, self.monitor
        )


Measured = Annotated[Measures, options.From(Measures)]


@app.command(COMPARE)
@options.grouped
def compare_command(
    base: options.Base,
    candidate: options.Candidate,
    loading: options.Loading,
    progress: options.Progress,
    measures: Measured,
    layers: options.Layers,
    output: options.Reported,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="The training file, if you have it: sentences of its prompts are tried as"
            " triggers. May be repeated.",
        ),
    ] = None,
    no_causal: Annotated[
        bool, typer.Option("--no-causal", help="Do not try directions out.")
    ] = False,
    show_responses: Annotated[
        bool, typer.Option("--show-responses", help="Give responses as text, not as hashes.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Benign fine-tunes, from `modelassay diff calibrate`: a name, a file, a folder or"
            " owner/repo[:name][@revision].",
        ),
    ] = None,
) -> int:
    """Compare CANDIDATE, a fine-tune, with BASE, the model it was made from.

    Exit codes: 0 benign-like, 1 suspicious or compromised, 3 inconclusive, 64 bad input, 69
    something needed is unavailable, 70 internal error.
    """
    from modelassay.diff import diff
    from modelassay.triage.rows import read_rows

    asked = measures.read_suite()
    rows = [row for file in corpus or () for row in read_rows(file, token=measures.token).rows]
    benign = read_calibration(calibration, asked, measures.responses, measures.token)
    saes = measures.open_saes(base.id)
    with progress() as on_progress:
        report = diff(
            base,
            candidate,
            asked,
            saes=saes,
            layers=layers,
            corpus=[row.prompt or row.plain for row in rows],
            depth=measures.depth(causal=not no_causal),
            calibration=benign,
            on_progress=on_progress,
            **loading,
        )
    output.give(report, show_responses=show_responses)
    return exit_code(report.verdict.value)


@app.command("calibrate")
@options.grouped
def calibrate_command(
    base: options.Base,
    loading: options.Loading,
    progress: options.Progress,
    measures: Measured,
    finetunes: Annotated[
        list[str],
        typer.Argument(metavar="FINETUNE...", help="Fine-tunes of it, known to be harmless."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the calibration.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep it under this name; no --out.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to a FILE that is there.")] = False,
    force: options.Force = False,
) -> int:
    """Measure benign fine-tunes of BASE, for `modelassay diff --calibration NAME|FILE`.

    Each is written as soon as it is measured; --add goes on where a run was stopped.
    """
    from modelassay.diff.calibration import CALIBRATIONS, save_calibration

    if (out is None) == (name is None):
        raise InputError("Say where to keep the calibration: --out FILE or --name NAME.")
    check_file(out, "--out")
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

    from modelassay.diff.comparing import calibrate

    asked = measures.read_suite()
    before = str(where) if add and where.exists() else None
    known = read_calibration(before, asked, measures.responses)
    saes = measures.open_saes(base.id)
    with progress() as on_progress:
        found = calibrate(
            base,
            finetunes,
            asked,
            known=known,
            saes=saes,
            depth=measures.depth(),
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


def read_calibration(
    reference: str | None, suite: Suite, response_tokens: int, token: str | None = None
) -> Calibration | None:
    """A calibration that was made with this suite and responses of this length.

    Raises:
        InputError: it is missing, damaged, or was made otherwise.
        UnavailableError: the Hub cannot be reached.
    """
    from modelassay.diff.calibration import CALIBRATIONS, check_asked

    if reference is None:
        return None
    kept = CALIBRATIONS.find(reference, token=token)
    kept.warn()
    check_asked(kept.record, suite, response_tokens)
    return kept.record


def _place(device: str) -> str:
    """Where SAEs are put for models on a device."""
    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if device == "auto" else device

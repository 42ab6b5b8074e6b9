"""`modelassay classifier`: train, calibrate, score and describe exchange classifiers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import add_verbs
from modelassay.cli.output import print_json
from modelassay.errors import InputError
from modelassay.progress import phase_of

if TYPE_CHECKING:
    from modelassay.classifier import ExchangeClassifier
    from modelassay.data.labelled import LabelledExchange

app = typer.Typer(
    help="Exchange classifiers: safe response, refusal or unsafe response?",
    no_args_is_help=True,
)

ClassifierArg = Annotated[
    str,
    typer.Argument(
        metavar="CLASSIFIER",
        help="A name such as `embedded`, a folder, owner/repo:name in a Hub data set, or a Hub id.",
    ),
]
Rate = Annotated[float, typer.Option(help="Share of benign exchanges to block.")]
BlockAt = Annotated[
    float | None,
    typer.Option(
        "--block-at",
        "--block-threshold",
        help="P(unsafe) to block from, in place of one that is chosen by --rate.",
    ),
]
UncertainAt = Annotated[
    float | None,
    typer.Option(
        "--uncertain-at",
        "--allow-threshold",
        help="P(unsafe) from which the classifier is uncertain; without it, it is always sure.",
    ),
]


@dataclass(frozen=True)
class Labelled:
    """A classifier, and rows to hold it against."""

    classifier: ClassifierArg
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="Rows with prompt, response, label: a file or a Hub id."),
    ]
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train"
    labels: options.Labels = None
    max_examples: options.MaxExamples = None
    device: options.Device = "auto"
    token: options.Token = None

    def read(self) -> list[LabelledExchange]:
        """The rows."""
        return _read(self.data, self.split, self.labels, self.token)

    def load(self) -> ExchangeClassifier:
        """The classifier."""
        from modelassay.classifier.model import load_classifier

        return load_classifier(self.classifier, device=self.device, token=self.token)


Given = Annotated[Labelled, options.From(Labelled)]


@dataclass(frozen=True)
class RecipeOptions:
    """How it is trained, as `TrainingRecipe` takes it."""

    epochs: Annotated[float, typer.Option(min=0.01, help="Most passes over the data.")] = 3.0
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-7, help="Peak learning rate; else what suits.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 16
    weight_decay: Annotated[float, typer.Option(help="Pull of the weights towards zero.")] = 0.01
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the learning rate rises.")
    ] = 0.06
    validation_share: Annotated[
        float,
        typer.Option(
            "--validation-share",
            "--validation-size",
            help="Share of the prompts that tells when to stop and where the threshold is; a fifth"
            " of all is set aside for testing before.",
        ),
    ] = 0.15
    max_length: Annotated[int, typer.Option(min=16, help="Tokens of an exchange.")] = 256
    prefixes: Annotated[
        int,
        typer.Option("--prefixes", "--prefix-copies", min=0, help="Prefixes of each response."),
    ] = 1
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0


@app.command("train")
@options.grouped
def train_command(
    progress: options.Progress,
    training: Annotated[RecipeOptions, options.From(RecipeOptions)],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "--data-path",
            metavar="DATA",
            help="Labelled rows; may be repeated. Else the recipe.",
        ),
    ] = None,
    labels: options.Labels = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The recipe's public sets, when there is no --data."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            "--model-id",
            help="`embedded`, a folder or a Hub id of an encoder: BERT, RoBERTa, ModernBERT, …",
        ),
    ] = "answerdotai/ModernBERT-base",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "--out-dir",
            "--output-dir",
            metavar="FOLDER",
            help="New folder for the classifier.",
        ),
    ] = Path("classifier"),
    name: Annotated[str | None, typer.Option(help="Keep it under this name; no --out.")] = None,
    max_examples: options.MaxExamples = None,
    rate: Rate = 0.01,
    block_at: BlockAt = None,
    uncertain_at: UncertainAt = None,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every",
            "--save-steps",
            min=1,
            help="Steps between two states of the training, beside those after each epoch.",
        ),
    ] = 500,
    device: options.Device = "auto",
    token: options.Token = None,
    force: options.Force = False,
) -> None:
    """Fine-tune an encoder on labelled exchanges; calibrates and scores it on other prompts.

    Rows that say only safe or unsafe train a classifier of these two. A run that was stopped goes
    on when it is given again.
    """
    from modelassay.classifier import CLASSIFIERS
    from modelassay.classifier.evaluating import ThresholdChoice
    from modelassay.classifier.training import TrainingRecipe, train_classifier

    if data and folder:
        raise InputError("Give rows with --data or the recipe's sets with --folder, not both.")
    if name is not None:
        out = CLASSIFIERS.check_free(name, force=force)
    CLASSIFIERS.check_free(out=out, force=force)
    ThresholdChoice(rate, block_at, uncertain_at)
    recipe = TrainingRecipe(**vars(training))
    state = out.with_name(out.name + ".training")
    with progress() as on_progress:
        group_by = None
        if data:
            rows = [row for where in data for row in _read(where, "train", labels, token)]
        else:
            from modelassay.classifier.recipe import recipe_rows

            found = recipe_rows(
                _existing(folder),
                seed=recipe.seed,
                on_progress=lambda n, of: on_progress("answering", n, of),
            )
            rows, group_by = found.rows, found.group_by
        made = train_classifier(
            rows,
            encoder=encoder,
            out=out,
            recipe=recipe,
            group_by=group_by,
            rate=rate,
            block=block_at,
            uncertain=uncertain_at,
            device=device,
            token=token,
            force=force,
            state=state,
            save_every=save_every,
            max_examples=max_examples,
            on_step=phase_of(on_progress, "training"),
        )
    shutil.rmtree(state, ignore_errors=True)
    typer.echo(str(made))


@app.command("calibrate")
@options.grouped
def calibrate_command(
    given: Given,
    rate: Rate = 0.01,
    block_at: BlockAt = None,
    uncertain_at: UncertainAt = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a copy; without it the folder is changed."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Choose the threshold that blocks at most a share of benign responses while they grow."""
    from modelassay.classifier.evaluating import ThresholdChoice, recalibrate
    from modelassay.classifier.record import calibration_lines

    ThresholdChoice(rate, block_at, uncertain_at)
    if out is not None and out.exists():
        raise InputError(f"{out} exists already; give a new folder for --out.")
    rows = given.read()
    record = recalibrate(
        given.load(),
        rows,
        rate,
        block=block_at,
        uncertain=uncertain_at,
        out=out,
        max_examples=given.max_examples,
    )
    found = record.calibration
    if found is None:  # cannot be
        return
    if json:
        band = {} if record.uncertain is None else {"uncertain": record.uncertain}
        rates = found.model_dump(exclude={"held_out"})
        print_json({"threshold": record.threshold, **band, **rates})
        return
    typer.echo("\n".join(calibration_lines(record)))
    if block_at is None and found.n < 1 / max(rate, 1e-9):
        typer.echo(f"{found.n} benign exchanges cannot tell a rate as small as {rate:g}.", err=True)


@app.command("eval")
@options.grouped
def eval_command(given: Given, output: options.JsonReport) -> None:
    """Score a classifier on labelled exchanges: macro-F1, AUROC, each class."""
    from modelassay.classifier.evaluating import evaluate

    rows = given.read()
    output.give(evaluate(given.load(), rows, max_examples=given.max_examples))


def _existing(folder: Path | None) -> Path:
    if folder is None:
        raise InputError(
            "Give rows with --data, or --folder with the public sets that the shipped recipe reads."
        )
    if not folder.is_dir():
        raise InputError(f"There is no data folder {folder}.")
    return folder


def _read(where: str, split: str, labels: str | None, token: str | None) -> list[LabelledExchange]:
    from modelassay.data.labelled import read_labelled
    from modelassay.data.labels import check_scheme

    return read_labelled(where, split=split, labels=check_scheme(labels), token=token)


add_verbs(
    app,
    "modelassay.classifier:CLASSIFIERS",
    "classifier",
    find="modelassay.classifier:find_classifier",
)

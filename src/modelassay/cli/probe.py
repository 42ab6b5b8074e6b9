"""`modelassay probe`: train, compare, score, publish the probes that watch a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import add_verbs
from modelassay.errors import InputError
from modelassay.progress import phase_of

if TYPE_CHECKING:
    from modelassay.data.labelled import LabelledExchange

app = typer.Typer(
    help="Probes: readouts of a model's activations that tell harm as it is asked or answered.",
    no_args_is_help=True,
)

At = Annotated[str, typer.Option(metavar="prompt|answer", help="Where the probe reads.")]
Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Files of the shipped recipe's data sets."),
]


@dataclass(frozen=True)
class RowOptions:
    """Rows that were given; false where none were."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Rows {prompt, response, label}: a file or a Hub data set."
        ),
    ] = None
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train"
    labels: options.Labels = None
    max_examples: options.MaxExamples = None
    token: options.Token = None

    def __bool__(self) -> bool:
        return bool(self.data)

    def read(self, at: Any) -> list[LabelledExchange]:
        """All of them, for a probe that reads there."""
        return [row for where in self.data or () for row in self.read_file(where, at)]

    def read_file(self, where: str, at: Any) -> list[LabelledExchange]:
        """Those of one file or data set, read as these options say."""
        from modelassay.data.labelled import read_labelled
        from modelassay.data.labels import check_scheme

        how: dict[str, Any] = {"config": self.config, "split": self.split, "token": self.token}
        return read_labelled(where, at=at, labels=check_scheme(self.labels), **how)


Rows = Annotated[RowOptions, options.From(RowOptions)]


@app.command("train")
@options.grouped
def train_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    given: Rows,
    layers: options.Layers,
    folder: Folder = None,
    at: Annotated[
        str, typer.Option(metavar="prompt|answer|both", help="Which heads to train.")
    ] = "both",
    kind: Annotated[str, typer.Option(help="logistic, means, factored or attention.")] = (
        "logistic"
    ),
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data, of --kind attention alone; 60.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Of --kind attention alone; 0.02."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Rows {prompt, label} of texts that are harmful or not by themselves, from which"
            " the head of responses learns too.",
        ),
    ] = None,
    token_labels: Annotated[
        str,
        typer.Option(
            metavar="exchange|spans|classifier",
            help="What the samples along a response are labelled by: its label, the `spans` of its"
            " row, or a classifier's scores of it up to there.",
        ),
    ] = "exchange",  # noqa: S107 (no password)
    classifier: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --token-labels classifier; `embedded`.")
    ] = None,
    token_weights: Annotated[
        str,
        typer.Option(
            metavar="even|whole|soft",
            help="Whether they count alike, only whole responses, or by the softmax of their"
            " scores.",
        ),
    ] = "even",  # noqa: S107
    name: Annotated[str | None, typer.Option(help="Its name; made from the model's id.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder in place of your store.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Train a probe for MODEL, on data of yours or by the shipped recipe."""
    if at not in ("prompt", "answer", "both"):
        raise InputError(f"--at is prompt, answer or both, not {at!r}.")
    if not given and folder is None:
        raise InputError(
            "Give --data FILE with rows {prompt, response, label}, or --folder FOLDER with the data"
            " sets of the shipped recipe (docs/guard.md lists them)."
        )
    chosen = (at, layers, epochs, learning_rate, texts, token_labels, token_weights)
    usual = ("both", None, None, None, None, "exchange", "even")
    if not given and (chosen != usual or kind not in ("logistic", "factored")):
        raise InputError(
            "The shipped recipe trains both heads as it says, the response's as --kind logistic or"
            " factored; give --data to choose."
        )

    from modelassay.artifacts import slug
    from modelassay.classifier import load_classifier
    from modelassay.data.labelled import draw
    from modelassay.models import open_model
    from modelassay.probes import PROBES, make_probe, store_probe, train_head
    from modelassay.probes.lessons import check_lesson, check_spans
    from modelassay.probes.training import (
        check_place,
        check_refusals,
        check_rows,
        check_training,
        train_default_heads,
    )

    check_training(kind, layers, epochs, learning_rate)
    if classifier is not None and token_labels != "classifier":
        raise InputError("--classifier NAME goes with --token-labels classifier.")
    watched: Any = "prompt" if at == "prompt" else "answer"
    check_lesson(watched, kind, token_labels, token_weights)
    check_place(watched, kind, texts=bool(texts))
    name = PROBES.kind.check_name(name or slug(model.id))
    PROBES.check_free(name, force=force, out=out)
    places: tuple[Any, ...] = ("prompt", "answer") if at == "both" else (at,)
    most = given.max_examples
    rows = {place: check_rows(given.read(place), place, most) for place in places if given}
    if "answer" in rows:
        check_spans(token_labels, rows["answer"])
        if kind == "factored":
            check_refusals([rows["answer"][i] for i in draw(rows["answer"], most)])
    _check_folder(folder)
    judge = None
    if token_labels == "classifier":
        judge = load_classifier(classifier or "embedded", token=given.token).unsafe
    of_responses: Any = {
        "kind": kind,
        "token_labels": token_labels,
        "token_weights": token_weights,
        "judge": judge,
        "texts": [row for where in texts or () for row in given.read_file(where, "prompt")],
    }
    # A prompt does not refuse: its head is then the usual one.
    of_prompts: Any = {"kind": "logistic" if kind == "factored" else kind}
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        if given:
            heads = {
                place: train_head(
                    loaded,
                    rows[place],
                    place,
                    layers=layers,
                    max_examples=most,
                    epochs=epochs,
                    learning_rate=learning_rate,
                    **(of_responses if place == "answer" else of_prompts),
                    on_progress=phase_of(on_phase, "reading"),
                )
                for place in places
            }
        else:
            assert folder is not None  # noqa: S101 (checked above)
            heads = train_default_heads(
                loaded, folder, token=given.token, kind=kind, max_examples=most, on_phase=on_phase
            )
    probe = make_probe(loaded, name, heads)
    path = store_probe(probe.record, probe.heads, out=out, force=force)
    typer.echo("\n".join([*PROBES.kind.describe(probe.record), str(path)]))


@app.command("sweep")
@options.grouped
def sweep_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    given: Rows,
    layers: options.Layers,
    output: options.Reported,
    folder: Folder = None,
    at: At = "prompt",
    kind: Annotated[str, typer.Option(help="logistic or means.")] = "logistic",
    combine: Annotated[
        int, typer.Option(metavar="N", help="Also the best found of 2 to N layers together.")
    ] = 1,
) -> None:
    """Score a probe of every single layer, or of --layers, from one pass over the data."""
    place = check_at(at)
    if not given and not (folder and place == "prompt"):
        raise InputError("Give --data FILE, or at the prompt --folder FOLDER.")

    from modelassay.data.training_data import prompt_head_rows
    from modelassay.models import open_model
    from modelassay.probes import sweep_layers
    from modelassay.probes.sweeping import check_sweep
    from modelassay.probes.training import check_rows

    check_sweep(kind, combine, layers)
    _check_folder(folder)
    rows = given.read(place) if given else prompt_head_rows(folder, given.token)
    rows = check_rows(rows, place, given.max_examples)
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        reading = phase_of(on_phase, "reading")
        sweep = sweep_layers(
            loaded,
            rows,
            place,
            kind=kind,
            layers=layers,
            max_examples=given.max_examples,
            combine=combine,
            on_progress=reading,
        )
    output.give(sweep)


@app.command("eval")
@options.grouped
def eval_command(
    probe: Annotated[
        str,
        typer.Argument(metavar="PROBE|MODEL", help="A probe, or a model that one is shipped for."),
    ],
    loading: options.AnyModel,
    progress: options.Progress,
    given: Rows,
    output: options.JsonReport,
    at: At = "prompt",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The probe's model, if not the one it names."),
    ] = None,
) -> None:
    """Score a probe on labelled data: AUROC, rates at its thresholds, source by source."""
    place = check_at(at)
    if not given:
        raise InputError("Give --data FILE with rows {prompt, response, label}.")

    from modelassay.data.labelled import require_classes, rows_at
    from modelassay.models import open_model
    from modelassay.probes import Probe, evaluate_probe, find_probe, names_probe, probe_of

    rows = rows_at(given.read(place), place)
    require_classes(rows, (True, False), "Scoring a probe")
    own: Probe | None = find_probe(probe, token=given.token)[0] if names_probe(probe) else None
    if own is not None:
        own.head(place)
    model_id = model or (own.record.model.id if own else probe)
    with progress() as on_phase:
        loaded = open_model(model_id, on_progress=on_phase, **loading)
        if own is None and (found := probe_of(loaded)) is not None:
            own = found[0]
        if own is None:
            raise InputError(
                f"There is no probe for {model_id}; train one with `modelassay probe train`."
            )
        reading = phase_of(on_phase, "reading")
        result = evaluate_probe(
            own, loaded, rows, place, max_examples=given.max_examples, on_progress=reading
        )
    output.give(result)


def _check_folder(folder: Path | None) -> None:
    """Refuses a folder of data sets that is none, before a model is loaded."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"There is no data folder {folder}.")


def check_at(at: str) -> Any:
    """`prompt` or `answer`.

    Raises:
        InputError: it is neither.
    """
    if at not in ("prompt", "answer"):
        raise InputError(f"--at is prompt or answer, not {at!r}.")
    return at


add_verbs(app, "modelassay.probes:PROBES", "probe")

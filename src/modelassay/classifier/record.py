"""`classifier.json`: what a classifier is, how it was trained, and how well it does.

The file comes from folders and repositories of other people, so it is checked field by field.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.artifacts import (
    REFERENCE,
    Found,
    ImportedFrom,
    Kind,
    Origin,
    Store,
    write_lines,
)
from modelassay.classifier.encoding import MIN_LENGTH
from modelassay.data.fingerprints import drawn, told
from modelassay.data.labels import CLASSES, LABELS, Scheme
from modelassay.errors import InputError, first_line
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import Sha256, Share
from modelassay.hub import REPO_ID, check_weight_files, fetch_model, is_main_head
from modelassay.models.identity import hash_file
from modelassay.report.base import Report
from modelassay.report.charts import new_figure
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RECORD_FILE = "classifier.json"
WEIGHTS_FILE, FULL_WEIGHTS = "classifier.safetensors", "model.safetensors"
"""Of an adapter and its head, and of a whole encoder."""
TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spm.model", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
SCHEMA = "modelassay.classifier/1"
NO_REFUSALS = " (refusals are not told apart from other safe responses)"
TextFormat = Literal["pair", "user_assistant"]
"""How an exchange is written: prompt and response as two segments, or as one text in which
`User:` and `Assistant:` stand before them."""

Interval = tuple[Share, Share]
Text = Annotated[str, Field(max_length=300)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseEncoder(_Part):
    """The encoder that was fine-tuned."""

    id: Text
    sha256: Sha256 | None
    """Of its weights; None where another tool trained it and does not say."""


class Lora(_Part):
    """How the adapter is added: W + alpha / rank · B A."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=4096)


class ThresholdRates(_Part):
    """How a threshold was chosen, what it costs and what it catches; see `evaluating`."""

    target_block_rate: Share | None
    """None where the threshold was given rather than chosen."""
    block_rate: Share
    """Share of benign streams that reach the threshold at least once."""
    interval: Interval
    """95%, Wilson."""
    tpr: Share | None
    """Share of unsafe streams that do; None where there are none."""
    tpr_interval: Interval | None
    n: int = Field(ge=1)
    """Benign streams."""
    n_unsafe: int = Field(ge=0)
    drawn_from: int | None = Field(default=None, ge=1)
    """Exchanges that these were drawn from, evenly over labels and sources; None for all."""
    held_out: ThresholdRates | None = None
    """Rates at the same threshold on exchanges that chose neither weights nor threshold."""


class ClassMetrics(_Part):
    """Of one class against the rest."""

    precision: Share | None
    """None where nothing was predicted to be of the class."""
    recall: Share
    f1: Share
    n: int = Field(ge=0)


class ClassifierMetrics(_Part, Report):
    """Scores of a classifier on labelled exchanges."""

    classes: tuple[Text, ...]
    """The classes that are scored: those of the data, two or three."""
    macro_f1: Share
    """Mean F1 over the classes that occur in the data."""
    auroc: Share
    """Of P(unsafe_compliance), unsafe rows against the rest."""
    per_class: dict[Text, ClassMetrics]
    intervals: dict[Literal["macro_f1", "auroc"], Interval] = Field(min_length=2)
    """95%: prompts are resampled, not rows."""
    n: int = Field(ge=1)
    n_prompts: int = Field(ge=1)
    """Independent ones: near-duplicates count once."""
    confusion: dict[Text, dict[Text, int]]
    """Rows by true class, then by predicted class."""
    n_seen: int | None = Field(default=None, ge=0)
    """Rows left out because the classifier learnt from their prompts; None if that is unknown."""
    drawn_from: int | None = Field(default=None, ge=1)
    """Rows that these were drawn from, evenly over labels and sources; None where all were used."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return self.model_dump()

    def sections(self) -> list[Section]:
        """Scores over all classes, those of each class, and the confusion."""
        rows = [
            (
                name,
                f"{of.f1:.3f}",
                "none predicted" if of.precision is None else f"{of.precision:.3f}",
                f"{of.recall:.3f}",
                str(of.n),
            )
            for name, of in self.per_class.items()
        ]
        records = [{"class": name, **of.model_dump()} for name, of in self.per_class.items()]
        names = ("class", "F1", "precision", "recall", "n")
        table = Table(columns(*names, right=range(1, 5)), rows, lambda: records)
        facts = [
            ("rows", f"{self.n}, of {self.n_prompts} prompts{drawn(self.drawn_from)}"),
            ("left out", told(self.n_seen)),
            *([("classes", "safe, unsafe" + NO_REFUSALS)] if len(self.classes) == 2 else []),
            ("macro-F1", with_interval(self.macro_f1, self.intervals["macro_f1"], ".3f")),
            ("AUROC", with_interval(self.auroc, self.intervals["auroc"], ".3f")),
        ]
        return [
            Section("metrics", facts=facts),
            Section("classes", "class by class", table=table, chart=self._chart),
        ]

    def _chart(self) -> Figure:
        """Rows by true and by predicted class."""
        figure = new_figure("Where the classifier errs", "predicted", "true")
        counts = [[self.confusion[name][other] for other in self.classes] for name in self.classes]
        names = list(self.classes)
        figure.add_heatmap(
            x=names, y=names, z=counts, texttemplate="%{z}", colorscale="Blues", showscale=False
        )
        figure.update_yaxes(autorange="reversed", automargin=True)
        return figure


class TrainedOn(_Part):
    """What the rows were."""

    sources: tuple[Text, ...] = ()
    parts: dict[Text, Any] = Field(default_factory=dict)
    drawn_from: int | None = Field(default=None, ge=1)
    """Rows that these were drawn from, evenly over labels and sources; None where all were used."""


class ClassifierRecord(_Part):
    """The whole file."""

    schema_: Literal["modelassay.classifier/1"] = Field(alias="schema")
    kind: Literal["adapter", "full"]
    """Adapter and head over the embedded encoder, or a whole sequence classifier."""
    base: BaseEncoder
    scheme: Scheme = "three-class"
    """Whether it tells refusals from other safe responses, or only safe from unsafe."""
    labels: tuple[Text, ...] = LABELS
    """The classes in the order of the network's output."""
    text_format: TextFormat = "pair"
    max_length: int = Field(ge=MIN_LENGTH, le=8192)
    lora: Lora | None = None
    weights_sha256: Sha256
    threshold: float = Field(
        ge=0, le=1.000001
    )  # just above the highest benign risk, which may be 1
    """Of P(unsafe), from which a response counts as unsafe."""
    uncertain: float | None = Field(default=None, gt=0, le=1)
    """Of P(unsafe), from which it is uncertain; None where it has no such band."""
    calibration: ThresholdRates | None = None
    metrics: ClassifierMetrics | None = None
    """On held-out prompts."""
    data: TrainedOn = TrainedOn()
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Text] = Field(default_factory=dict)
    imported: ImportedFrom | None = None
    """Which tool made it, if not this one."""

    @model_validator(mode="after")
    def _check(self) -> ClassifierRecord:
        if sorted(self.labels) != sorted(CLASSES[self.scheme]):
            raise ValueError(f"the labels must be {', '.join(CLASSES[self.scheme])}")
        if self.uncertain is not None and self.uncertain > self.threshold:
            raise ValueError("`uncertain` must not lie above `threshold`")
        if self.base.sha256 is None and self.imported is None:
            raise ValueError("base.sha256 is missing")
        if (self.kind == "adapter") != (self.lora is not None):
            raise ValueError("an adapter needs `lora`, and nothing else has it")
        return self


def write_record(folder: Path, record: ClassifierRecord) -> None:
    """Writes a folder's record."""
    text = record.model_dump_json(by_alias=True, indent=2)
    write_text_atomically(folder / RECORD_FILE, text + "\n")


def check_classifier(folder: Path) -> ClassifierRecord:
    """Checks that a classifier's weights are those of its record, without opening them.

    Raises:
        InputError: a file is missing, damaged, too large, pickled, or another one.
    """
    record = CLASSIFIERS.open(folder).record
    if record.kind == "full":
        check_weight_files(str(folder), [file.name for file in folder.iterdir()])
    file = folder / (WEIGHTS_FILE if record.kind == "adapter" else FULL_WEIGHTS)
    if not file.is_file():
        raise InputError(f"{folder} lacks {file.name}.")
    if hash_file(file) != record.weights_sha256:
        raise InputError(
            f"{file} is not the file that its {RECORD_FILE} describes; fetch both again."
        )
    return record


def describe_classifier(record: ClassifierRecord) -> list[str]:
    """What a classifier is, what it learnt from and how well it does, in lines for a person."""
    over = "adapter over" if record.kind == "adapter" else "fine-tune of"
    return [
        f"{over} {record.base.id}, {record.max_length} tokens",
        f"classes: {', '.join(record.labels)}{NO_REFUSALS if record.scheme == 'binary' else ''}",
        *calibration_lines(record),
        *metric_lines(record.metrics),
        *(f"data: {source}" for source in record.data.sources),
        *(record.imported.lines() if record.imported else ()),
    ]


def calibration_lines(record: ClassifierRecord) -> list[str]:
    """The threshold, what it costs and what it catches."""
    lines = [f"threshold on P(unsafe): {record.threshold:.4f}"]
    if record.uncertain is not None:
        lines[0] += f", uncertain from {record.uncertain:.4f}"
    found = record.calibration
    given = found is not None and found.target_block_rate is None
    kind = "given; of" if given else "chosen on"
    while found is not None:
        lines.append(
            f"{kind} {found.n} benign exchanges as they grow: blocks"
            f" {with_interval(found.block_rate, found.interval)}{drawn(found.drawn_from)}"
        )
        if found.tpr is not None:
            caught = with_interval(found.tpr, found.tpr_interval or (0.0, 1.0))
            lines.append(f"  catches {caught} of {found.n_unsafe} unsafe ones")
        found, kind = found.held_out, "others:"
    return lines


def metric_lines(metrics: ClassifierMetrics | None) -> list[str]:
    """Scores of all classes and of each."""
    if metrics is None:
        return []
    intervals = metrics.intervals
    lines = [
        f"macro-F1 {with_interval(metrics.macro_f1, intervals['macro_f1'], '.3f')},"
        f" AUROC {with_interval(metrics.auroc, intervals['auroc'], '.3f')},"
        f" n = {metrics.n} ({metrics.n_prompts} prompts), classes: {', '.join(metrics.classes)}"
    ]
    for name, of in metrics.per_class.items():
        precision = "none predicted" if of.precision is None else f"{of.precision:.3f}"
        lines.append(
            f"  {name}: F1 {of.f1:.3f}, precision {precision}, recall {of.recall:.3f}, n = {of.n}"
        )
    return lines


def _row(record: ClassifierRecord) -> dict[str, Any]:
    metrics = record.metrics
    return {
        "base": record.base.id,
        "kind": record.kind,
        "scheme": record.scheme,
        "max_length": record.max_length,
        "threshold": record.threshold,
        "block_rate": record.calibration.block_rate if record.calibration else None,
        "macro_f1": metrics.macro_f1 if metrics else None,
        "auroc": metrics.auroc if metrics else None,
        "n": metrics.n if metrics else None,
    }


CLASSIFIERS = Store(
    Kind(
        noun="classifier",
        folder="classifiers",
        record=ClassifierRecord,
        files={
            RECORD_FILE: 1_000_000,
            WEIGHTS_FILE: 200_000_000,
            FULL_WEIGHTS: 5_000_000_000,
            "config.json": 1_000_000,
            **dict.fromkeys(TOKENIZER_FILES, 100_000_000),
            "README.md": 1_000_000,
        },
        model_id=lambda record: record.base.id,
        check=check_classifier,
        summary=lambda record: (
            f"{record.kind}, macro-F1 {record.metrics.macro_f1:.3f}"
            if record.metrics
            else record.kind
        ),
        describe=describe_classifier,
        values=lambda record: {"model": record.base.id, "kind": record.kind},
        write_table=lambda record, path: write_lines([_row(record)], path),
        tag="modelassay-classifier",
    )
)
"""Judges of exchanges."""


def find_classifier(
    reference: str, *, revision: str | None = None, token: str | bool | None = None
) -> Found[ClassifierRecord]:
    """A classifier by name, path, or on the Hub: in a data set, or as a model of its own.

    Args:
        reference: A name, a folder, `owner/repo:name[@revision]` for one in a data set, or
            `owner/name` for a model repository.
        revision: Branch, tag or commit on the Hub.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        InputError: there is none, or it is damaged.
        UnavailableError: the Hub cannot be reached.
    """
    if (own := CLASSIFIERS.here(reference)) is not None:
        return own
    try:
        if reference and Path(reference).expanduser().is_dir():
            return CLASSIFIERS.open(Path(reference))
    except (OSError, RuntimeError) as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Cannot look for a classifier at {reference[:80]!r}: {cause}") from error
    if ":" in reference and REFERENCE.fullmatch(reference):
        return CLASSIFIERS.find(reference, revision=revision, token=token)
    if not REPO_ID.fullmatch(reference) or "/" not in reference:
        raise InputError(
            f"No classifier at {reference[:80]!r}: give the name of one (`modelassay classifier"
            " list`), a folder, a Hub data set (owner/repo:name) or a Hub model (owner/name)."
        )
    snapshot = fetch_model(reference, revision=revision, token=token, gguf_file=None, code=False)
    on_main = revision in (None, "main") or is_main_head(
        reference, snapshot.commit, kind="model", token=token
    )
    author, _, name = reference.partition("/")
    origin = Origin(reference, "hub", author, snapshot.commit, on_main)
    return replace(CLASSIFIERS.open(snapshot.folder), name=name, origin=origin)

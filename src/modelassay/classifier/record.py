"""`classifier.json`: what a classifier is, how it was trained, and how well it does.

The file comes from folders and repositories of other people, so it is checked field by field.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.artifacts import REFERENCE, Found, Kind, Origin, Store, write_lines
from modelassay.classifier.encoding import MIN_LENGTH
from modelassay.data.labelled import LABELS
from modelassay.errors import InputError, first_line
from modelassay.files.atomic import write_text_atomically
from modelassay.hub import REPO_ID, check_weight_files, fetch_model, is_main_head
from modelassay.models.identity import hash_file
from modelassay.report.text import with_interval

CARD_FILE = "classifier.json"
WEIGHTS_FILE, FULL_WEIGHTS = "classifier.safetensors", "model.safetensors"
"""Of an adapter and its head, and of a whole encoder."""
TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spm.model", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
SCHEMA = "modelassay.classifier/1"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Interval = tuple[Share, Share]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=300)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseEncoder(_Part):
    """The encoder that was fine-tuned."""

    id: Text
    sha256: Sha256
    """Of its weights."""


class Lora(_Part):
    """How the adapter is added: W + alpha / rank · B A."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=4096)


class CardCalibration(_Part):
    """How the threshold was chosen, and what it costs; see `evaluating`."""

    target_block_rate: Share
    block_rate: Share
    interval: Interval
    tpr: Share | None
    tpr_interval: Interval | None
    n: int = Field(ge=1)
    n_unsafe: int = Field(ge=0)
    held_out: CardCalibration | None = None
    """Rates at the same threshold on exchanges that chose neither weights nor threshold."""


class CardClass(_Part):
    """One class against the rest."""

    precision: Share | None
    recall: Share
    f1: Share
    n: int = Field(ge=0)


class CardMetrics(_Part):
    """`ClassifierMetrics`, as it is written down."""

    classes: tuple[Text, ...]
    macro_f1: Share
    auroc: Share
    per_class: dict[Text, CardClass]
    intervals: dict[Literal["macro_f1", "auroc"], Interval] = Field(min_length=2)
    n: int = Field(ge=1)
    n_prompts: int = Field(ge=1)
    confusion: dict[Text, dict[Text, int]]


class CardData(_Part):
    """What the rows were."""

    sources: tuple[Text, ...] = ()
    parts: dict[Text, Any] = Field(default_factory=dict)


class Card(_Part):
    """The whole file."""

    schema_: Literal["modelassay.classifier/1"] = Field(alias="schema")
    kind: Literal["adapter", "full"]
    """Adapter and head over the embedded encoder, or a whole sequence classifier."""
    base: BaseEncoder
    labels: tuple[Text, ...] = LABELS
    max_length: int = Field(ge=MIN_LENGTH, le=8192)
    lora: Lora | None = None
    weights_sha256: Sha256
    threshold: float = Field(
        ge=0, le=1.000001
    )  # just above the highest benign risk, which may be 1
    """Of P(unsafe_compliance), from which a response counts as unsafe."""
    calibration: CardCalibration | None = None
    metrics: CardMetrics | None = None
    """On held-out prompts."""
    data: CardData = CardData()
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Card:
        if sorted(self.labels) != sorted(LABELS):
            raise ValueError(f"the labels must be {', '.join(LABELS)}")
        if (self.kind == "adapter") != (self.lora is not None):
            raise ValueError("an adapter needs `lora`, and nothing else has it")
        return self


def write_card(folder: Path, card: Card) -> None:
    """Writes a folder's card."""
    text = card.model_dump_json(by_alias=True, indent=2)
    write_text_atomically(folder / CARD_FILE, text + "\n")


def check_classifier(folder: Path) -> Card:
    """Checks that a classifier's weights are those of its card, without opening them.

    Raises:
        InputError: a file is missing, damaged, too large, pickled, or another one.
    """
    card = CLASSIFIERS.open(folder).record
    if card.kind == "full":
        check_weight_files(str(folder), [file.name for file in folder.iterdir()])
    file = folder / (WEIGHTS_FILE if card.kind == "adapter" else FULL_WEIGHTS)
    if not file.is_file():
        raise InputError(f"{folder} lacks {file.name}.")
    if hash_file(file) != card.weights_sha256:
        raise InputError(
            f"{file} is not the file that its {CARD_FILE} describes; fetch both again."
        )
    return card


def describe_classifier(card: Card) -> list[str]:
    """What a classifier is, what it learnt from and how well it does, in lines for a person."""
    over = "adapter over" if card.kind == "adapter" else "fine-tune of"
    return [
        f"{over} {card.base.id}, {card.max_length} tokens",
        f"classes: {', '.join(card.labels)}",
        *calibration_lines(card),
        *metric_lines(card.metrics),
        *(f"data: {source}" for source in card.data.sources),
    ]


def calibration_lines(card: Card) -> list[str]:
    """The threshold, what it costs and what it catches."""
    lines = [f"threshold on P(unsafe): {card.threshold:.4f}"]
    found, kind = card.calibration, "chosen on"
    while found is not None:
        lines.append(
            f"{kind} {found.n} benign exchanges as they grow: blocks"
            f" {with_interval(found.block_rate, found.interval)}"
        )
        if found.tpr is not None:
            caught = with_interval(found.tpr, found.tpr_interval or (0.0, 1.0))
            lines.append(f"  catches {caught} of {found.n_unsafe} unsafe ones")
        found, kind = found.held_out, "others:"
    return lines


def metric_lines(metrics: CardMetrics | None) -> list[str]:
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


def _row(card: Card) -> dict[str, Any]:
    metrics = card.metrics
    return {
        "base": card.base.id,
        "kind": card.kind,
        "max_length": card.max_length,
        "threshold": card.threshold,
        "block_rate": card.calibration.block_rate if card.calibration else None,
        "macro_f1": metrics.macro_f1 if metrics else None,
        "auroc": metrics.auroc if metrics else None,
        "n": metrics.n if metrics else None,
    }


CLASSIFIERS = Store(
    Kind(
        noun="classifier",
        command="classifier",
        folder="classifiers",
        variable="MODELASSAY_CLASSIFIERS",
        record=Card,
        record_file=CARD_FILE,
        files={
            CARD_FILE: 1_000_000,
            WEIGHTS_FILE: 200_000_000,
            FULL_WEIGHTS: 5_000_000_000,
            "config.json": 1_000_000,
            **dict.fromkeys(TOKENIZER_FILES, 100_000_000),
            "README.md": 1_000_000,
        },
        model_id=lambda card: card.base.id,
        check=check_classifier,
        summary=lambda card: (
            f"{card.kind}, macro-F1 {card.metrics.macro_f1:.3f}" if card.metrics else card.kind
        ),
        describe=describe_classifier,
        values=lambda card: {"model": card.base.id, "kind": card.kind},
        write_table=lambda card, path: write_lines([_row(card)], path),
        tag="modelassay-classifier",
        about="""Encoders that judge a prompt with its response: safe, a refusal, or unsafe.
`classifiers/NAME/classifier.json` holds the threshold, what it costs on harmless exchanges and what
it catches, with intervals, on exchanges that chose neither weights nor threshold.

```bash
pip install modelassay
modelassay chat OWNER/MODEL --classifier {repo_id}:NAME@COMMIT
```

Score it on data of your own with `modelassay classifier eval`.""",
    )
)
"""Judges of exchanges."""


def find_classifier(
    reference: str, *, revision: str | None = None, token: str | bool | None = None
) -> Found[Card]:
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

"""`classifier.json`: what a classifier is, how it was trained, and how well it does.

The file comes from folders and repositories of other people, so it is checked field by field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelassay.classifier.encoding import MIN_LENGTH
from modelassay.data.exchanges import LABELS
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import first_problem
from modelassay.models.sources import read_json

CARD_FILE = "classifier.json"
SCHEMA = "modelassay.classifier/1"
MAX_CARD_BYTES = 1_000_000

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

    schema_: Literal["modelassay.classifier/1"] = Field(SCHEMA, alias="schema")
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
    """Of P(unsafe_compliance), from which an answer counts as unsafe."""
    calibration: CardCalibration | None = None
    metrics: CardMetrics | None = None
    """On held-out prompts."""
    data: CardData = CardData()
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Text] = Field(default_factory=dict)


def read_card(folder: Path) -> Card:
    """Reads and checks a folder's card.

    Raises:
        InputError: it is missing, damaged, or not one that this version reads.
    """
    path = folder / CARD_FILE
    if path.is_file() and path.stat().st_size > MAX_CARD_BYTES:
        raise InputError(f"{path} is too large to be a classifier's card.")
    raw = read_json(path)
    if raw.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of the schema {SCHEMA}; update modelassay or train anew.")
    try:
        card = Card.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path} is not valid: {first_problem(error)}.") from error
    if sorted(card.labels) != sorted(LABELS):
        raise InputError(f"{path} is not valid: the labels must be {', '.join(LABELS)}.")
    if (card.kind == "adapter") != (card.lora is not None):
        raise InputError(f"{path} is not valid: an adapter needs `lora`, and nothing else has it.")
    return card


def write_card(folder: Path, card: Card) -> None:
    """Writes a folder's card."""
    text = card.model_dump_json(by_alias=True, indent=2)
    write_text_atomically(folder / CARD_FILE, text + "\n")

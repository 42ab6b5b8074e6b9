"""What `dictionary.json` says of a dictionary; whoever wrote it is a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from modelassay.files import records as untrusted
from modelassay.files.records import Block, Count, Line, Name, Record, Sha256, Share
from modelassay.sae.training import Kind

SAE_SCHEMA = "modelassay.sae/1"
RECORD_FILE = "dictionary.json"
MAX_RECORD_BYTES = 500_000


class DictionaryModel(Record):
    """The model that a dictionary belongs to."""

    id: Line
    architecture: Line
    n_layers: int = Field(gt=0, lt=2000)
    hidden_size: int = Field(gt=0, lt=200_000)
    weights_sha256: Sha256


class DictionaryMetrics(Record):
    """As `SaeMetrics`; a poor dictionary explains less than nothing."""

    explained_variance: float = Field(le=1)
    l0: float = Field(ge=0)
    dead_share: Share
    loss: float
    loss_spliced: float
    loss_mean: float
    loss_added: float
    loss_recovered: float | None
    n_tokens: Count


class DictionaryRecord(Record):
    """What a dictionary is."""

    schema_: Literal["modelassay.sae/1"] = Field(default=SAE_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: DictionaryModel
    layer: Block
    kind: Kind
    width: int = Field(gt=0, lt=10**7)
    k: int = Field(gt=0, lt=10**6)
    dtype: Literal["float32", "bfloat16"]
    tokens: Count
    """Activations it was trained on."""
    passes: Count
    data: tuple[Line, ...] = Field(max_length=100)
    metrics: DictionaryMetrics
    versions: dict[Line, Line]
    weights_sha256: Sha256


def read_record(folder: Path) -> DictionaryRecord:
    """The record of a dictionary.

    Raises:
        InputError: it is not there, or damaged.
    """
    return untrusted.read_record(
        folder / RECORD_FILE, DictionaryRecord, "dictionary", MAX_RECORD_BYTES
    )

"""Labels of an SAE's features on disk: `labels.parquet`, a row a feature, and `labels.json`.

The record (schema `modelassay.sae-labels/1`) names the SAE by a hash of its weights, and the
table by its own, so neither can be taken for another's. Both may be a stranger's: sizes, hashes and
types are checked when they are loaded, and text is cut and escaped when it is read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from modelassay.errors import InputError, first_line
from modelassay.files import records as untrusted
from modelassay.files.atomic import cache_dir, explain_os_errors, new_file, write_text_atomically
from modelassay.files.records import Count, LayerIndex, Line, Record, Sha256, Share
from modelassay.models.identity import ModelIdentity, hash_file, states
from modelassay.report.text import plain_line
from modelassay.sae.files import SAE
from modelassay.sae.record import (
    LABEL_TABLE_FILE,
    LABELS_FILE,
    MAX_LABEL_TABLE_BYTES,
    MAX_LABELS_BYTES,
)

LABELS_SCHEMA = "modelassay.sae-labels/1"
MAX_LISTED = 20
SNIPPET = 200
"""Characters of a context."""


class LabelsRecord(Record):
    """Where labels are from."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["modelassay.sae-labels/1"] = Field(default=LABELS_SCHEMA, alias="schema")
    dictionary: Line
    dictionary_sha256: Sha256
    """See `weights_hash`."""
    created: Line
    model: Annotated[ModelIdentity, states("weights_sha256")]
    """Whose activations the labels were made from."""
    layer: LayerIndex
    width: int = Field(gt=0, lt=10**7)
    data: tuple[Line, ...] = Field(max_length=100)
    tokens: Count
    held_out_tokens: Count
    contexts: bool
    """Whether the table holds text around the tokens."""
    fired: Count
    """Features that fired on the text at all."""
    scored: Count
    median_reliability: Share | None
    """Of those that could be scored."""
    versions: dict[Line, Line] = Field(max_length=50)
    labels_sha256: Sha256
    """Of the table's file."""


@dataclass(frozen=True)
class Reliability:
    """How well a label predicts when its feature fires; see `modelassay.sae.evidence`."""

    value: float
    """Balanced accuracy on held-out tokens: 0.5 is chance, 1 is perfect."""
    interval: tuple[float, float] | None
    """95%, over groups of texts; None where the feature fires in too few of them."""
    n_tokens: int
    n_fired: int


@dataclass(frozen=True)
class OwnLabel:
    """What the table says of a feature."""

    feature: int
    text: str
    """Automatic; empty where the feature never fired."""
    reliability: Reliability | None
    """None where the feature never fires on held-out text."""
    density: float
    """Share of tokens on which it fires."""
    max_activation: float
    fires: Literal["on", "after"]
    """Whether the tokens that the label names are those it fires on or those before."""
    named: tuple[str, ...]
    tokens: tuple[str, ...]
    """On which it fires most, from strong to weak."""
    activations: tuple[float, ...]
    contexts: tuple[str, ...]
    promoted: tuple[str, ...]
    """By its direction, through the logit lens."""


@dataclass(frozen=True)
class FeatureLabels:
    """The labels of all features of one SAE."""

    record: LabelsRecord
    table: Any
    """pyarrow Table, row i is feature i."""

    @classmethod
    def from_rows(cls, record: LabelsRecord, rows: Sequence[dict[str, Any]]) -> FeatureLabels:
        """Labels from one row a feature, in order."""
        import pyarrow as pa

        return cls(record, pa.Table.from_pylist(list(rows), schema=_schema()))

    def of(self, feature: int) -> OwnLabel:
        """The label of a feature.

        Raises:
            InputError: there is no such feature.
        """
        if not 0 <= feature < self.record.width:
            raise InputError(
                f"There is no feature {feature}: the SAE has {self.record.width}, from 0."
            )
        row = self.table.slice(feature, 1).to_pylist()[0]
        value, low, high = (_share(row[f"reliability{end}"]) for end in ("", "_low", "_high"))
        reliability = None
        if value is not None:
            interval = None if low is None or high is None else (low, high)
            n_fired = int(row["n_fired"] or 0)
            reliability = Reliability(value, interval, self.record.held_out_tokens, n_fired)
        lines = {
            name: tuple(plain_line(str(text))[:SNIPPET] for text in (row[name] or [])[:MAX_LISTED])
            for name in ("named", "tokens", "contexts", "promoted")
        }
        return OwnLabel(
            feature=int(row["feature"]),
            text=plain_line(row["label"] or "")[:300],
            reliability=reliability,
            density=_share(row["density"]) or 0.0,
            max_activation=_number(row["max_activation"]),
            fires="after" if row["fires"] == "after" else "on",
            activations=tuple(_number(v) for v in (row["activations"] or [])[:MAX_LISTED]),
            **lines,
        )

    def labelled(self) -> list[int]:
        """The features that have a label."""
        texts = self.table.column("label").to_pylist()
        return [feature for feature, text in enumerate(texts) if text]


def save_labels(labels: FeatureLabels, folder: Path) -> FeatureLabels:
    """Writes labels beside an SAE; what was there of this kind is replaced.

    Raises:
        UnavailableError: no room or no permission.
    """
    import pyarrow.parquet as pq

    with explain_os_errors(f"writing labels into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / LABEL_TABLE_FILE) as partial:
            pq.write_table(labels.table, partial, compression="zstd")
            record = labels.record.model_copy(update={"labels_sha256": hash_file(partial)})
        # If a run is killed here, the old record does not fit the table, and loading says so.
        text = record.model_dump_json(by_alias=True, indent=1)
        write_text_atomically(folder / LABELS_FILE, text + "\n")
    return FeatureLabels(record, labels.table)


def load_labels(folder: Path, sae: SAE) -> FeatureLabels:
    """Reads labels and checks that they are this SAE's.

    Raises:
        InputError: they are missing, damaged, too large, or another SAE's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = untrusted.read_record(
        folder / LABELS_FILE, LabelsRecord, "label file", MAX_LABELS_BYTES
    )
    path = folder / LABEL_TABLE_FILE
    same = (record.width, record.layer) == (sae.width, sae.layer)
    if not same or record.dictionary_sha256 != weights_hash(sae):
        raise InputError(
            f"The labels in {folder} belong to another SAE ({record.dictionary}); make them"
            " again with `modelassay sae label`."
        )
    try:
        if path.stat().st_size > MAX_LABEL_TABLE_BYTES:
            raise InputError(f"{path} is larger than labels can be.")
        if hash_file(path) != record.labels_sha256:
            raise InputError(f"{path} is not the file that {LABELS_FILE} is about; make it again.")
        if pq.read_metadata(path).num_rows != record.width:
            raise InputError(f"{path} does not have one row for each of {record.width} features.")
        table = pq.read_table(path, schema=_schema()).combine_chunks()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a table of labels: {first_line(error)}.") from error
    if table.column("feature").to_pylist() != list(range(record.width)):
        raise InputError(f"{path} does not list the features in order.")
    return FeatureLabels(record, table)


def find_labels(sae: SAE) -> FeatureLabels | None:
    """The labels that lie beside an SAE, else those that were kept in the cache.

    Raises:
        InputError: there are some, and they are damaged or another SAE's.
    """
    own = sae.folder
    if own is not None and (own / LABELS_FILE).is_file():
        return load_labels(own, sae)
    kept = kept_folder(sae)  # which reads all of its numbers
    return load_labels(kept, sae) if (kept / LABELS_FILE).is_file() else None


def kept_folder(sae: SAE) -> Path:
    """Where labels are kept of an SAE that has no folder of the user's."""
    return cache_dir() / "labels" / weights_hash(sae)[:32]


def weights_hash(sae: SAE) -> str:
    """sha256 of an SAE's numbers in float32, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(sae.module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _schema() -> Any:
    import pyarrow as pa

    words, numbers, number = pa.list_(pa.string()), pa.list_(pa.float32()), pa.float32()
    return pa.schema(
        {
            "feature": pa.int32(),
            "label": pa.string(),
            "fires": pa.string(),
            "density": number,
            "max_activation": number,
            "named": words,
            "tokens": words,
            "activations": numbers,
            "contexts": words,
            "promoted": words,
            "reliability": number,
            "reliability_low": number,
            "reliability_high": number,
            "n_fired": pa.int32(),
        }
    )


def _share(value: float | None) -> float | None:
    """A number between 0 and 1, or None."""
    return float(value) if value is not None and 0 <= value <= 1 else None


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else 0.0

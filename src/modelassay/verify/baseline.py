"""What a baseline is: a validated index in JSON beside vectors in safetensors.

A folder of three files, the same on disk and in a Hub data set:

* `baseline.json`: identity, hashes, measurements (schema `modelassay.baseline/1`);
* `vectors.safetensors`: concept directions [layer, hidden], activation signature, weight sketch;
* `concepts.parquet`: the measurements as a table, for the Hub's viewer and `load_dataset`.

Whoever wrote a baseline is a stranger: sizes, schema, shapes, numbers and hashes are checked before
anything is used, and no other file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    model_validator,
)
from torch import Tensor
from typing_extensions import Self

from modelassay.artifacts import Kind, Store
from modelassay.errors import InputError, first_line
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import (
    LayerIndex,
    Line,
    Name,
    Record,
    Sha256,
    Share,
)
from modelassay.hub import Commit
from modelassay.measures.activation_signature import Signature
from modelassay.measures.weight_sketch import (
    COLUMNS,
    SIDE,
    VOCABULARY,
    WeightSketch,
    layer_of,
)
from modelassay.models.identity import ModelIdentity, hash_file, states

BASELINE_SCHEMA = "modelassay.baseline/1"
INDEX_FILE, VECTORS_FILE, TABLE_FILE = "baseline.json", "vectors.safetensors", "concepts.parquet"
MAX_NUMBER = 1e9
UNWRITTEN = "0" * 64
"""Stands for the hash of vectors until they are written."""
DTYPES = {"F16": torch.float16, "F32": torch.float32}

Number = Annotated[float, Field(ge=-1e6, le=1e6)]


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("an interval needs its lower end first")
    return interval


Interval = Annotated[tuple[Number, Number], AfterValidator(_ordered)]


class _Kept(Record):
    """What a baseline keeps of a value that was measured."""

    @classmethod
    def of(cls, found: object, **others: Any) -> Self:
        """The fields of the same name, and others that are given."""
        names = cls.model_fields.keys() - others.keys()
        return cls(**{name: getattr(found, name) for name in names}, **others)


class FileHashes(Record):
    """sha256 of everything that makes the model what it is."""

    weights: dict[Line, Sha256] = Field(min_length=1, max_length=2000)
    tokenizer: Sha256
    chat_template: Sha256 | None = None
    generation_config: Sha256 | None = None
    config: dict[Line, Line] = Field(max_length=500)
    """Each setting of `config.json` as JSON text, so that differences can be named."""
    generation: dict[Line, Line] | None = Field(default=None, max_length=500)
    """The same of the generation config."""
    tokenizer_parts: dict[Line, Line] | None = Field(default=None, max_length=100)
    """Hash or value of each part of the tokenizer, for the same reason."""
    template_lines: Sha256 | None = None
    """Of the chat template without what makes no difference to what it renders."""


class ConceptRecord(_Kept):
    """How far apart a concept's two sides are held; None is what another tool did not measure."""

    sha256: Sha256 | None = None
    """Of its pairs: directions compare only where they are of the same prompts."""
    n_pairs: int | None = Field(default=None, gt=0, lt=100_000)
    layers: tuple[LayerIndex, ...] = Field(min_length=1, max_length=2000)
    by_layer: tuple[Number, ...]
    """Held-out separation (σ) at each of `layers`."""
    interval_by_layer: tuple[Interval, ...] | None = None
    layer: LayerIndex
    separation: Number
    interval: Interval | None = None
    p_value: Share | None = None
    auroc: Share | None = None

    @model_validator(mode="after")
    def _check(self) -> ConceptRecord:
        for values in (self.by_layer, self.interval_by_layer):
            if values is not None and len(values) != len(self.layers):
                raise ValueError("by_layer and interval_by_layer need one value a layer")
        if self.layer not in self.layers:
            raise ValueError("layer is none of layers")
        return self


class RefusalRecord(_Kept):
    """Behaviour: refusal rates with 95% intervals."""

    harmful_rate: Share
    harmful_interval: Interval
    benign_rate: Share
    benign_interval: Interval
    selectivity: float = Field(ge=-1, le=1)
    interval: Interval
    auroc: Share | None = None
    """Of the refusal log-odds; None for a model that thinks first."""


class SignatureRecord(_Kept):
    """Shape of the signature and what it was read on."""

    depths: tuple[LayerIndex, ...] = Field(min_length=1, max_length=64)
    n_probes: int = Field(gt=1, le=1024)
    dimensions: int = Field(gt=0, le=4096)
    probes_sha256: Sha256


class SketchRecord(_Kept):
    """What a weight sketch is of, in the order of its rows."""

    names: tuple[Line, ...] = Field(min_length=1, max_length=20_000)
    writers: tuple[Line, ...] = Field(min_length=1, max_length=4000)
    grids: tuple[Literal["4bit", "8bit", "bfloat16", "float16"], ...] = ()
    buffers: tuple[Line, ...] = Field(default=(), max_length=4000)
    rows: dict[Line, Annotated[int, Field(gt=0, lt=100_000_000)]] = Field({}, max_length=16)
    """Of the embeddings and the output layer; a baseline of before 0.2 states none."""
    token_rows: dict[Line, tuple[Number, ...]] = Field({}, max_length=16)


class BaselineIndex(Record):
    """Everything in a baseline but its vectors."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["modelassay.baseline/1"] = Field(default=BASELINE_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: Annotated[ModelIdentity, states("architecture", "n_layers", "hidden_size", "dtype")]
    instrument: Literal["modelassay", "ams-scanner"] = "modelassay"
    """What measured it."""
    files: FileHashes | None
    """None of a baseline that was imported and has no hashes of single files."""
    chat_template_used: bool
    concept_set_sha256: Sha256 | None
    concepts: dict[Name, ConceptRecord] = Field(min_length=1, max_length=64)
    refusal: RefusalRecord | None = None
    ablation_detected: bool | None = None
    signature: SignatureRecord | None
    sketch: SketchRecord | None = None
    """None where the weights are packed in a way that cannot be read."""
    versions: dict[Line, Line] = Field(max_length=50)
    vectors_sha256: Sha256

    @model_validator(mode="after")
    def _check_sketch(self) -> BaselineIndex:
        if self.sketch is not None:
            sides = {len(values) for values in self.sketch.token_rows.values()}
            if sides - {SIDE * SIDE}:
                raise ValueError(f"a thumbprint in token_rows needs {SIDE * SIDE} numbers")
        return self

    @model_validator(mode="after")
    def _check(self) -> BaselineIndex:
        if self.instrument == "modelassay" and (self.files is None or self.signature is None):
            raise ValueError("files and signature are missing")
        layers = [layer for concept in self.concepts.values() for layer in concept.layers]
        layers += self.signature.depths if self.signature else ()
        if max(layers) >= self.model.n_layers:
            raise ValueError("a layer is named that the model does not have")
        return self


@dataclass(frozen=True)
class Baseline:
    """A measured model, to compare others with."""

    index: BaselineIndex
    directions: Mapping[str, Tensor]
    """For each concept, float32 unit vectors [layer, hidden]."""
    signature: Signature | None
    sketch: WeightSketch | None = None

    @property
    def name(self) -> str:
        """What it is called in a store."""
        return self.index.name


def save_baseline(baseline: Baseline, folder: Path) -> None:
    """Writes a baseline's files into an existing folder; hashes of vectors are set here."""
    from safetensors.torch import save_file

    tensors = {f"directions/{name}": v.half() for name, v in baseline.directions.items()}
    if (signature := baseline.signature) is not None:
        scales = signature.values.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-12)
        tensors["signature/values"] = (signature.values / scales[:, None, None]).half()
        tensors["signature/scales"] = scales.float()
        tensors["signature/log_odds"] = signature.log_odds.float()
    if (sketch := baseline.sketch) is not None:
        scales = sketch.written.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-12)
        tensors["sketch/thumbprints"] = sketch.thumbprints.float()
        tensors["sketch/written"] = (sketch.written / scales[:, None, None]).half()
        tensors["sketch/scales"] = scales.float()
    save_file({name: t.contiguous() for name, t in tensors.items()}, str(folder / VECTORS_FILE))
    index = baseline.index.model_copy(update={"vectors_sha256": hash_file(folder / VECTORS_FILE)})
    write_table(index, folder / TABLE_FILE)
    text = json.dumps(index.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    write_text_atomically(folder / INDEX_FILE, text + "\n")


def load_baseline(folder: Path) -> Baseline:
    """Reads and checks a baseline that anybody may have written, ams-scanner too.

    Raises:
        InputError: a file is missing, too large or damaged, or does not hold what the index says.
    """
    if folder.is_file() and folder.name != INDEX_FILE:
        from modelassay.verify.ams_baseline import import_baseline

        return import_baseline(folder)
    index = BASELINES.open(folder).record
    tensors = _read_vectors(folder / VECTORS_FILE, index)
    signature = sketch = None
    if (shape := index.signature) is not None:
        signature = Signature(
            depths=shape.depths,
            values=tensors["signature/values"] * tensors["signature/scales"][:, None, None],
            log_odds=tensors["signature/log_odds"],
            probes_sha256=shape.probes_sha256,
        )
    if index.sketch is not None:
        sketch = WeightSketch(
            names=index.sketch.names,
            thumbprints=tensors["sketch/thumbprints"],
            writers=index.sketch.writers,
            written=tensors["sketch/written"] * tensors["sketch/scales"][:, None, None],
            grids=index.sketch.grids,
            buffers=index.sketch.buffers,
            rows=index.sketch.rows or _rows_of_config(index),
            token_rows=index.sketch.token_rows,
        )
    directions = {name: tensors[f"directions/{name}"] for name in index.concepts}
    return Baseline(index, directions, signature, sketch)


def _rows_of_config(index: BaselineIndex) -> dict[str, int]:
    """How many rows the embeddings have, of a baseline that does not state it."""
    stated = index.files.config.get("vocab_size", "") if index.files else ""
    names = index.sketch.names if index.sketch else ()
    if not stated.isdigit() or int(stated) == 0:
        return {}
    return {n: int(stated) for n in names if layer_of(n) is None and VOCABULARY.search(n)}


def _expected_shapes(index: BaselineIndex) -> dict[str, tuple[int, ...]]:
    hidden = index.model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"directions/{n}": (len(c.layers), hidden) for n, c in index.concepts.items()
    }
    if (signature := index.signature) is not None:
        depths = len(signature.depths)
        shapes["signature/values"] = (depths, signature.n_probes, signature.dimensions)
        shapes["signature/scales"] = (depths,)
        shapes["signature/log_odds"] = (signature.n_probes,)
    if (sketch := index.sketch) is not None:
        shapes["sketch/thumbprints"] = (len(sketch.names), SIDE * SIDE)
        shapes["sketch/written"] = (len(sketch.writers), hidden, COLUMNS)
        shapes["sketch/scales"] = (len(sketch.writers),)
    return shapes


def _read_vectors(path: Path, index: BaselineIndex) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"The baseline {index.name} lacks its {VECTORS_FILE}.")
    if hash_file(path) != index.vectors_sha256:
        raise InputError(f"{path} is not the file that its index was written for (sha256 differs).")
    expected = _expected_shapes(index)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            if names != set(expected):
                odd = min(names ^ set(expected))
                raise InputError(f"{path} has other vectors than its index says ({odd[:60]!r}).")
            for name, shape in expected.items():
                view = file.get_slice(name)
                if tuple(view.get_shape()) != shape or view.get_dtype() not in DTYPES:
                    raise InputError(
                        f"In {path} {name} is {view.get_dtype()} {list(view.get_shape())}; a"
                        f" float of shape {list(shape)} is expected."
                    )
                tensors[name] = file.get_tensor(name).float()
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or tensor.abs().max() > MAX_NUMBER:
            raise InputError(f"In {path} {name} has values that are not finite or far too large.")
    if index.sketch is not None and not tensors["sketch/thumbprints"].any():
        raise InputError(f"In {path} the sketch is empty.")
    return tensors


def table_rows(index: BaselineIndex) -> list[dict[str, Any]]:
    """One row a concept and layer."""
    return [
        {
            "baseline": index.name,
            "model": index.model.id,
            "revision": index.model.revision,
            "concept": name,
            "block": layer,
            "separation": concept.by_layer[i],
            "low": concept.interval_by_layer[i][0] if concept.interval_by_layer else None,
            "high": concept.interval_by_layer[i][1] if concept.interval_by_layer else None,
            "chosen": layer == concept.layer,
        }
        for name, concept in index.concepts.items()
        for i, layer in enumerate(concept.layers)
    ]


def write_table(index: BaselineIndex, path: Path) -> None:
    """Writes the measurements as a table, for the Hub's viewer and `load_dataset`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("baseline", pa.string()), ("model", pa.string()), ("revision", pa.string()),
            ("concept", pa.string()), ("block", pa.int32()), ("separation", pa.float64()),
            ("low", pa.float64()), ("high", pa.float64()), ("chosen", pa.bool_()),
        ]
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table_rows(index), schema=schema), path)


def describe_baseline(index: BaselineIndex) -> list[str]:
    """What a baseline holds, in lines for a person."""
    model = index.model
    lines = [
        f"measured {index.created} by {index.instrument}",
        f"model: {model.id}" + (f" at {model.revision}" if model.revision else ""),
        f"architecture: {model.architecture}, {model.n_layers} layers, {model.dtype}",
    ]
    for file, digest in index.files.weights.items() if index.files else ():
        lines.append(f"sha256: {digest}  {file}")
    for name, concept in index.concepts.items():
        spread = "{:.2f} to {:.2f}".format(*concept.interval) if concept.interval else "in-sample"
        lines.append(f"{name}: {concept.separation:.2f}σ ({spread}) at layer {concept.layer}")
    if (refusal := index.refusal) is not None:
        harmful, harmless = refusal.harmful_rate, refusal.benign_rate
        lines.append(f"refuses harmful {harmful:.0%}, harmless {harmless:.0%}")
    return lines


def _of_ams(file: Path) -> BaselineIndex:
    from modelassay.verify.ams_baseline import import_baseline

    return import_baseline(file, warn=False).index


BASELINES = Store(
    Kind(
        noun="baseline",
        folder="baselines",
        record=BaselineIndex,
        files={INDEX_FILE: 2_000_000, VECTORS_FILE: 30_000_000},
        model_id=lambda index: index.model.id,
        check=load_baseline,
        summary=lambda index: f"{index.model.architecture}, {index.model.dtype}",
        describe=describe_baseline,
        values=lambda index: {
            "model": index.model.model_dump(mode="json"),
            "created": index.created,
        },
        table_file=TABLE_FILE,
        write_table=write_table,
        tag="modelassay-baseline",
        foreign=_of_ams,
    )
)
"""Measured models."""


def store_baseline(baseline: Baseline, **options: Any) -> Path:
    """Keeps a baseline in the user's store, or in a folder; options and errors: `Store.save`."""
    return BASELINES.save(lambda folder: save_baseline(baseline, folder), baseline.name, **options)


def push_baseline(baseline: Baseline, repo_id: str, **options: Any) -> Commit:
    """Publishes a baseline that is kept nowhere; options and errors: `Store.push`."""
    return BASELINES.push_new(lambda folder: save_baseline(baseline, folder), repo_id, **options)[1]

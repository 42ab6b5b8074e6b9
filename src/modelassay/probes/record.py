"""A probe on disk: a validated record in JSON beside its weights in safetensors.

A folder of two files, `probe.json` (schema `modelassay.probe/1`) and `probe.safetensors`. It
belongs to one model, named by the sha256 of its weights: directions of one model mean nothing in
another, so a probe refuses any other. Whoever wrote it is a stranger; all is checked before use.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from modelassay.artifacts import (
    REFERENCE,
    Found,
    ImportedFrom,
    Kind,
    Origin,
    Store,
    write_lines,
)
from modelassay.data.fingerprints import MAX_LENGTH
from modelassay.data.labelled import At
from modelassay.errors import InputError, first_line
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import Count, LayerIndex, Line, Name, Record, Sha256, Share
from modelassay.hub import Commit
from modelassay.models import LoadedModel
from modelassay.models.identity import ModelIdentity, hash_file, states
from modelassay.probes.head import BLOCK_RATE, ComplyReadout, Head
from modelassay.probes.lessons import TokenLabels, TokenWeights
from modelassay.report.text import share_text, with_interval

log = logging.getLogger(__name__)

PROBE_SCHEMA = "modelassay.probe/1"
RECORD_FILE, WEIGHTS_FILE = "probe.json", "probe.safetensors"
MAX_NUMBER = 1e6
STATED = ("architecture", "n_layers", "hidden_size", "weights_sha256", "dtype")
"""Of the model that a probe belongs to, beside its revision and what kind of organism it is."""

MEASURED = (
    "block_rate", "block_interval", "pause_rate", "detected_rate", "detected_interval", "held_rate",
    "metrics", "trained_on",
)  # fmt: skip
"""Fields of a head that training fills in."""

Interval = tuple[Share, Share]


class Metrics(Record):
    """Scores on prompts that the probe was not fitted on, with 95% intervals."""

    auroc: Share
    interval: Interval
    tpr_at_fpr: dict[Line, Share | None]
    tpr_interval: dict[Line, Interval | None]
    calibration_error: Share
    n: Count
    n_positive: Count
    n_prompts: Count


class SourceMetrics(Record):
    """A source that the fit saw nothing of, against the other class of held-out prompts."""

    auroc: Share
    interval: Interval
    n: Count
    unsafe: bool | None
    """Which class the source is of; None for both, which are then compared with each other."""
    surface: dict[Line, Share] = Field(default={}, max_length=10)
    """AUROC of what its labels give away on the surface, learnt on the other sources too."""
    without_refusals: Share | None = None
    """AUROC among responses that do not refuse, of a source of both classes."""


class TrainedOn(Record):
    """The data, by hash; data sets themselves are not copied."""

    sha256: Sha256
    sources: dict[Line, Count]
    n_unsafe: Count
    n_safe: Count
    prompts: str | None = Field(default=None, max_length=MAX_LENGTH)
    """Fingerprints of the prompts; None of older records."""
    drawn_from: Count | None = None
    """Rows that these were drawn from, evenly over labels and sources; None where all were used."""


class ComplyRecord(Record):
    """Of the second readout of the kind `factored`, all but its weights."""

    bias: float = Field(ge=-MAX_NUMBER, le=MAX_NUMBER)
    slope: float = Field(gt=0, le=MAX_NUMBER)
    offset: float = Field(ge=-MAX_NUMBER, le=MAX_NUMBER)


class HeadRecord(Record):
    """Everything of a head but its weights.

    What was measured is None for a head of another tool's, and only for such a one.
    """

    kind: Literal["logistic", "means", "factored", "attention"]
    layers: tuple[LayerIndex, ...] = Field(min_length=1, max_length=64)
    poolings: tuple[Literal["last", "mean", "attention"], ...] = Field(min_length=1, max_length=3)
    bias: float = Field(ge=-MAX_NUMBER, le=MAX_NUMBER)
    comply: ComplyRecord | None = None
    """Of the kind `factored`, its second readout."""
    pause: float = Field(gt=0, le=1)
    block: float = Field(gt=0, le=1)
    block_rate: Share | None = None
    """Share of harmless rows that reach a block threshold chosen without them, at any token."""
    block_interval: Interval | None = None
    pause_rate: Share | None = None
    """The same of the pause threshold."""
    detected_rate: Share | None = None
    """Share of unsafe rows that reach the block threshold."""
    detected_interval: Interval | None = None
    held_rate: Share | None = None
    """Share of unsafe rows that reach the pause threshold."""
    metrics: Metrics | None = None
    left_out: dict[Line, SourceMetrics] = Field(default={}, max_length=500)
    """For each source, how a fit without it does on it."""
    trained_on: TrainedOn | None = None
    epochs: Count | None = None
    """Passes in which a kind that is trained by gradient learnt; None of other kinds."""
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    token_labels: TokenLabels = "exchange"
    """What the samples of a response were labelled by."""
    token_weights: TokenWeights = "even"
    """How they counted."""

    @model_validator(mode="after")
    def _check(self) -> HeadRecord:
        if self.pause > self.block:
            raise ValueError("thresholds are out of order: pause is above block")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError("a layer is named twice")
        if len(set(self.poolings)) != len(self.poolings):
            raise ValueError("a pooling is named twice")
        if (self.kind == "attention") != (self.poolings == ("attention",)):
            raise ValueError("only the kind attention pools by attention, and in no other way")
        if (self.kind == "factored") != (self.comply is not None):
            raise ValueError("the kind factored, and no other, has a second readout")
        return self


class ProbeRecord(Record):
    """Everything in a probe but its weights."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["modelassay.probe/1"] = Field(default=PROBE_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: Annotated[ModelIdentity, states(*STATED)]
    heads: dict[Literal["prompt", "answer"], HeadRecord] = Field(min_length=1)
    versions: dict[Line, Line] = Field(max_length=50)
    weights_sha256: Sha256
    text_format: Literal["user_assistant"] | None = None
    """How turns are written outside of the chat template: None puts nothing around them."""
    imported: ImportedFrom | None = None
    """Which tool made it, if not this one."""

    @model_validator(mode="after")
    def _check(self) -> ProbeRecord:
        for at, head in self.heads.items():
            if max(head.layers) >= self.model.n_layers:
                raise ValueError("a layer is named that the model does not have")
            missing = next((name for name in MEASURED if getattr(head, name) is None), None)
            if self.imported is None and missing is not None:
                raise ValueError(f"heads.{at}.{missing} is missing")
        return self


@dataclass(frozen=True)
class Probe:
    """What watches a model: a head for the prompt, one for the response, or both."""

    record: ProbeRecord
    heads: Mapping[At, Head]

    @property
    def name(self) -> str:
        """Under which it is kept."""
        return self.record.name

    def check_belongs_to(self, model: LoadedModel) -> None:
        """Refuses a model that it was not fitted on.

        Raises:
            InputError: says how they differ.
        """
        own, info = self.record.model, model.info
        if (reason := own.differences(info, weights=True)) is None:
            return
        instead = f"Train one with `modelassay probe train {info.id}`"
        if self.record.text_format is not None and model.has_chat_template:
            instead = "Give --no-chat-template"
        raise InputError(
            f"The probe {self.name} was fitted on {own.id} and does not fit {info.id}: {reason}."
            f" {instead}."
        )

    def reading(self, model: LoadedModel) -> LoadedModel:
        """The model, read in the format of text that the probe was fitted on.

        Raises:
            InputError: as `check_belongs_to`.
        """
        self.check_belongs_to(model)
        named = self.record.text_format == "user_assistant"
        return model if model.named_turns == named else replace(model, named_turns=named)

    @property
    def judges_prompts(self) -> bool:
        """Whether a guard has it judge the prompt; a probe of another tool may read responses only.

        One that was trained here without a head for the prompt can be trained again with one, so
        that a guard refuses it (`head`).
        """
        return "prompt" in self.heads or self.record.imported is None

    def head(self, at: At) -> Head:
        """The head that reads there.

        Raises:
            InputError: the probe has none.
        """
        if at not in self.heads:
            if self.record.imported is not None:
                raise InputError(
                    f"The probe {self.name} has no head for the {at}: it was imported from"
                    f" {self.record.imported.tool}, whose probes read responses."
                )
            raise InputError(
                f"The probe {self.name} has no head for the {at}; train one that has with"
                " `modelassay probe train --at both`."
            )
        return self.heads[at]


def save_probe(record: ProbeRecord, heads: Mapping[At, Head], folder: Path) -> Probe:
    """Writes a probe into an empty folder; its weights' hash is put into the record."""
    from safetensors.torch import save_file

    arrays: dict[str, Tensor] = {}
    for at, head in heads.items():
        arrays[f"{at}.weight"] = head.weight.contiguous()
        if head.query is not None:
            arrays[f"{at}.query"] = head.query.contiguous()
        if head.comply is not None:
            arrays[f"{at}.comply"] = head.comply.weight.contiguous()
    save_file(arrays, folder / WEIGHTS_FILE)
    record = record.model_copy(update={"weights_sha256": hash_file(folder / WEIGHTS_FILE)})
    text = record.model_dump_json(by_alias=True, indent=1)
    write_text_atomically(folder / RECORD_FILE, text + "\n")
    return Probe(record, heads)


def load_probe(folder: Path) -> Probe:
    """Reads and checks a probe.

    Raises:
        InputError: a file is missing, damaged, too large, or does not fit the other.
    """
    record = PROBES.open(folder).record
    path = folder / WEIGHTS_FILE
    arrays = read_arrays(path, record.weights_sha256, RECORD_FILE)
    heads: dict[At, Head] = {}
    for at, head in record.heads.items():
        shape = (len(head.layers), len(head.poolings), record.model.hidden_size)
        wanted: dict[str, tuple[int, ...]] = {f"{at}.weight": shape}
        if head.kind == "attention":
            wanted[f"{at}.query"] = (shape[0], shape[2])
        if head.comply is not None:
            wanted[f"{at}.comply"] = shape
        for name, size in wanted.items():
            check_array(path, name, arrays.get(name), size)
        heads[at] = Head(
            at=at,
            kind=head.kind,
            layers=head.layers,
            poolings=head.poolings,
            weight=arrays[f"{at}.weight"],
            bias=head.bias,
            pause=head.pause,
            block=head.block,
            query=arrays.get(f"{at}.query"),
            comply=head.comply
            and ComplyReadout(
                arrays[f"{at}.comply"], head.comply.bias, head.comply.slope, head.comply.offset
            ),
        )
    return Probe(record, heads)


def read_arrays(path: Path, sha256: str, record_file: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that a record names by its hash.

    Raises:
        InputError: it is missing, another file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if hash_file(path) != sha256:
            raise InputError(f"{path} is not the file that {record_file} names; fetch both again.")
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path} is missing.") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}.") from error


def check_array(
    path: Path,
    name: str,
    array: Tensor | None,
    shape: tuple[int, ...],
    noun: str = "probe",
) -> Tensor:
    """A tensor of such a file, if it is one of finite float32 numbers in this shape.

    Raises:
        InputError: it is not.
    """
    if array is None or array.dtype != torch.float32 or tuple(array.shape) != shape:
        raise InputError(f"{path}: {name} must be float32 of shape {list(shape)}.")
    if not torch.isfinite(array).all() or float(array.abs().max()) > MAX_NUMBER:
        raise InputError(f"{path}: {name} holds numbers that no {noun} has.")
    return array


def metric_rows(record: ProbeRecord) -> list[dict[str, Any]]:
    """A row for each head: how it scored on prompts that it was not fitted on."""
    return [
        {
            "probe": record.name,
            "model": record.model.id,
            "at": at,
            "kind": head.kind,
            "layers": list(head.layers),
            "auroc": head.metrics and head.metrics.auroc,
            "auroc_low": head.metrics and head.metrics.interval[0],
            "auroc_high": head.metrics and head.metrics.interval[1],
            "n": head.metrics and head.metrics.n,
            "worst_source_auroc": min((s.auroc for s in head.left_out.values()), default=None),
        }
        for at, head in record.heads.items()
    ]


def describe_probe(record: ProbeRecord) -> list[str]:
    """What a probe reads, what it was trained on, and how it scored, in lines for a person."""
    lines = [f"for {record.model.id}, weights sha256 {record.model.weights_sha256}"]
    for at, head in record.heads.items():
        reads = f"{head.kind} over {'+'.join(head.poolings)} of layers"
        where = f"{at}: {reads} {', '.join(map(str, head.layers))}{_taught(head)}"
        measured = _measured_lines(head)
        lines += [f"{where}; {measured[0]}", *measured[1:]]
    return lines + (record.imported.lines() if record.imported else [])


def _taught(head: HeadRecord) -> str:
    """How the tokens of responses were learnt, where it was not the usual way."""
    how = [] if head.token_labels == "exchange" else [f"labelled by {head.token_labels}"]
    how += {"even": [], "soft": ["weighted softly"], "whole": ["of whole responses only"]}[
        head.token_weights
    ]
    return f", tokens {' and '.join(how)}" if how else ""


def _measured_lines(head: HeadRecord) -> list[str]:
    """What a head was trained on and how it scored."""
    m, trained = head.metrics, head.trained_on
    if m is None or trained is None:
        return [
            "what it was trained on and how it scores is unknown (`modelassay probe eval` tells)",
            f"  blocks at {head.block:.3g}, pauses at {head.pause:.3g}",
        ]
    found = m.tpr_at_fpr.get("0.01")
    drawn = f", drawn from {trained.drawn_from}" if trained.drawn_from else ""
    detected, blocked = (
        "unknown" if rate is None or interval is None else with_interval(rate, interval)
        for rate, interval in (
            (head.detected_rate, head.detected_interval),
            (head.block_rate, head.block_interval),
        )
    )
    lines = [
        f"trained on {trained.n_unsafe} unsafe and {trained.n_safe} safe rows{drawn}",
        f"  held out, n={m.n}: AUROC {with_interval(m.auroc, m.interval, '.3f')}; TPR at 1% FPR"
        f" {'unknown, too few rows' if found is None else f'{found:.1%}'}; calibration error"
        f" {m.calibration_error:.3f}",
        f"  blocks at {head.block:.3g}: {detected} of unsafe and {blocked} of safe rows; pauses"
        f" at {head.pause:.3g}: {share_text(head.held_rate)} and {share_text(head.pause_rate)}",
    ]
    if trained.n_safe * BLOCK_RATE < 1:
        lines.append(
            f"  {trained.n_safe} safe rows cannot tell a rate of {BLOCK_RATE:.1%}: the"
            " thresholds are guesses; train it on more"
        )
    worst = sorted(head.left_out.items(), key=lambda item: item[1].auroc)[:3]
    lines.append(
        "  the sources that it ranks worst when it was not fitted on them:"
        if worst
        else "  leaving sources out was not measured (one source only, or a kind that is not)"
    )
    for source, row in worst:
        auroc = with_interval(row.auroc, row.interval, ".3f")
        lines.append(f"  without {source}: AUROC {auroc} on it{_beside(row)}")
    return lines


def _beside(row: SourceMetrics) -> str:
    """What else is known of a source that was left out."""
    told = [f"{name} {auroc:.3f}" for name, auroc in row.surface.items()]
    if row.without_refusals is not None:
        told.append(f"responses that do not refuse {row.without_refusals:.3f}")
    return f" ({', '.join(told)})" if told else ""


PROBES = Store(
    Kind(
        noun="probe",
        folder="probes",
        record=ProbeRecord,
        files={RECORD_FILE: 500_000, WEIGHTS_FILE: 100_000_000},
        model_id=lambda record: record.model.id,
        check=load_probe,
        summary=lambda record: ", ".join(
            f"{at} AUROC {head.metrics.auroc:.3f}" if head.metrics else f"{at}, imported"
            for at, head in record.heads.items()
        ),
        describe=describe_probe,
        values=lambda record: {"model": record.model.model_dump(mode="json")},
        write_table=lambda record, path: write_lines(metric_rows(record), path),
        tag="modelassay-probe",
    )
)
"""Readouts that watch a model."""


def find_probe(reference: str, *, token: str | bool | None = None) -> tuple[Probe, Origin]:
    """A probe by name, path, the id of its model, or Hub reference; errors: `Store.find`."""
    found = PROBES.find(reference, token=token)
    found.warn()
    return load_probe(found.folder), found.origin


def names_probe(reference: str) -> bool:
    """Whether a reference names a probe on this machine, or one inside a Hub data set.

    A model's name may be a probe's too (`embedded`); that probe is then the model's own.
    """
    return PROBES.here(reference) is not None or (
        ":" in reference and REFERENCE.fullmatch(reference) is not None
    )


def probe_of(model: LoadedModel) -> tuple[Probe, Origin] | None:
    """The probe on this machine that was fitted on these very weights, if there is one.

    Those that are read as the model is (inside its chat template or not) come first, and one of
    another tool, of which less is known, after them.
    """
    own = (model.info.weights_sha256, model.info.organism)

    def place(found: Found[ProbeRecord]) -> tuple[bool, bool]:
        differs = found.record.model.differences(model.info, weights=True) is not None
        return differs, found.record.imported is not None

    for found in sorted(PROBES.list(), key=place):
        if (found.record.model.weights_sha256, found.record.model.organism) == own:
            try:
                probe = load_probe(found.folder)
            except InputError as error:
                log.warning("%s", error)
                continue
            found.warn()
            return probe, found.origin
    return None


def store_probe(record: ProbeRecord, heads: Mapping[At, Head], **options: Any) -> Path:
    """Keeps a probe in the user's store, or in a folder; options and errors: `Store.save`."""
    return PROBES.save(lambda folder: save_probe(record, heads, folder), record.name, **options)


def push_probe(probe: Probe, repo_id: str, **options: Any) -> Commit:
    """Publishes a probe that is kept nowhere; options and errors: `Store.push`."""
    return PROBES.push_new(
        lambda folder: save_probe(probe.record, probe.heads, folder), repo_id, **options
    )[1]

"""A monitor on disk: a validated record in JSON beside its directions in safetensors.

A folder of two files, `monitor.json` (schema `modelassay.monitor/1`) and `monitor.safetensors`. It
belongs to one model, named by the sha256 of its weights. Whoever wrote it is a stranger; all is
checked before use.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from modelassay.artifacts import Kind, Origin, Store, write_lines
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import Count, Line, Name, Record, Sha256, Share
from modelassay.models import LoadedModel
from modelassay.models.components import Site
from modelassay.models.identity import ModelIdentity, hash_file, states
from modelassay.monitors.ranges import PARTS, Part, Span, Spans, distances
from modelassay.monitors.reading import Reader, ask, read_asked, sites_of
from modelassay.probes.record import STATED, check_array, read_arrays
from modelassay.report.text import with_interval

log = logging.getLogger(__name__)

MONITOR_SCHEMA = "modelassay.monitor/1"
RECORD_FILE, WEIGHTS_FILE = "monitor.json", "monitor.safetensors"
MAX_NUMBER = 1e9
MAX_READINGS = 4096

Bounded = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
How = Literal["weights", "circuit"]


class Reading(Record):
    """One direction at one place."""

    place: Line
    """A component, whose output is read, or a linear layer, whose input is."""
    ranges: dict[Span, tuple[Bounded, Bounded]] = Field(min_length=1)
    """Lowest and highest ordinary projection."""
    centre: Bounded
    """Mean ordinary projection: of a circuit where the response begins, else over prompts."""
    scale: float = Field(gt=0, le=MAX_NUMBER)
    """From there to that of harmful requests, of a circuit; else the standard deviation."""

    @model_validator(mode="after")
    def _check(self) -> Reading:
        if not self.ranges.keys() & PARTS["prompt"]:
            raise ValueError("a reading has no range of prompts")
        if any(low >= high for low, high in self.ranges.values()):
            raise ValueError("a range ends before it begins")
        return self


class CalibratedOn(Record):
    """What ranges are of."""

    n_ranges: Count
    """Exchanges that gave the ranges."""
    n_limits: Count
    """Others, by which these were widened."""
    rate: Share
    """Of new exchanges of the same kind, how many leave a range at most; of prompts and responses
    each."""
    widened: dict[Part, float]
    """How many times wider the ranges are than on the exchanges that gave them."""
    response_tokens: Count
    """Of a response, so many are judged."""
    sha256: Sha256
    """Of the prompts."""


class Quiet(Record):
    """From where on a circuit is too quiet for a harmful request.

    0 is what ordinary requests give on average, 1 what harmful ones do.
    """

    least: Bounded
    rate: Share
    """Of plain harmful requests, how many give less at most."""
    n_harmful: Count
    auroc: Share
    """Of the circuit's activation between harmful and ordinary requests, held out."""
    interval: tuple[Share, Share]
    ordinary: Share
    """Share of held-out ordinary requests that give less."""
    ordinary_interval: tuple[Share, Share]


class MonitorRecord(Record):
    """Everything in a monitor but its directions."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal["modelassay.monitor/1"] = Field(default=MONITOR_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: Annotated[ModelIdentity, states(*STATED)]
    how: How
    """Whether it watches what a fine-tune changed, or the circuit that carries refusals."""
    base: ModelIdentity | None = None
    """What the model was fine-tuned from."""
    watched_share: Share | None = None
    """Of what the fine-tune changed (‖ΔW‖²), how much is in the places that are watched."""
    readings: tuple[Reading, ...] = Field(min_length=1, max_length=MAX_READINGS)
    calibrated_on: CalibratedOn
    quiet: Quiet | None = None
    versions: dict[Line, Line] = Field(max_length=50)
    weights_sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> MonitorRecord:
        if (self.how == "circuit") != (self.quiet is not None):
            raise ValueError("only a circuit can be too quiet")
        if self.quiet and "start" not in self.readings[0].ranges:
            raise ValueError("a circuit has no range where the response begins")
        if (self.how == "weights") != (self.base is not None):
            raise ValueError("only a change of weights has a base")
        if len({frozenset(each.ranges) for each in self.readings}) > 1:
            raise ValueError("readings have ranges of different spans")
        if len(self.places) < sum(1 for _ in groupby(self.readings, lambda each: each.place)):
            raise ValueError("readings of one place do not stand together")
        return self

    @property
    def places(self) -> dict[str, int]:
        """How many readings each place has."""
        found: dict[str, int] = {}
        for each in self.readings:
            found[each.place] = found.get(each.place, 0) + 1
        return found


@dataclass(frozen=True)
class Look:
    """What a monitor sees in some tokens."""

    value: float
    """Distance from the middle of the ordinary range, of the reading for which it is largest; 1 is
    where the range ends."""
    place: str
    """Of that reading."""
    activation: float | None
    """Of a circuit where a response begins: 0 is as on harmless requests, 1 as on harmful ones."""
    alert: str | None = None
    """One line about what is out of the ordinary."""


@dataclass(frozen=True)
class Monitor:
    """Directions that are watched, and their ranges."""

    record: MonitorRecord
    directions: Mapping[str, Tensor]
    """float32 [direction, width] at each place."""

    @property
    def name(self) -> str:
        """Under which it is kept."""
        return self.record.name

    def check_belongs_to(self, model: LoadedModel) -> None:
        """Refuses a model that it was not made for.

        Raises:
            InputError: says how they differ.
        """
        own, info = self.record.model, model.info
        if (reason := own.differences(info, weights=True)) is not None:
            raise InputError(
                f"The monitor {self.name} was made for {own.id} and does not fit {info.id}:"
                f" {reason}. Make one with `modelassay monitor build` or `monitor circuit`."
            )

    def sites(self, model: LoadedModel) -> dict[str, Site]:
        """Where it reads in its model.

        Raises:
            InputError: it belongs to another model, or does not fit this one.
        """
        self.check_belongs_to(model)
        return sites_of(model, {place: d.shape[1] for place, d in self.directions.items()})

    def reads(self, span: Span) -> bool:
        """Whether it has ranges for such tokens."""
        return span in self.record.readings[0].ranges

    def reader(self, sites: Mapping[str, Site]) -> Reader:
        """A reader for one response."""
        return Reader(sites, self.directions)

    def score(self, model: LoadedModel, prompt: str, *, harmful: bool = False) -> Look:
        """Looks at a prompt.

        Args:
            model: The model that it belongs to.
            prompt: What the user says.
            harmful: Whether it reads as harmful: then the circuit has to activate.

        Raises:
            InputError: it belongs to another model, or the prompt cannot be read.
        """
        reader = self.reader(self.sites(model))
        return self.look(read_asked(model, reader, ask(model, [prompt], 0))[0], harmful=harmful)

    def look(self, spans: Spans, *, harmful: bool = False) -> Look:
        """Judges the values of some tokens.

        Args:
            spans: [token, reading] each; those without a range are left out.
            harmful: Whether the request reads as harmful.
        """
        record = self.record
        worst = np.max([d.max(axis=0) for d in distances(self._bounds, spans)], axis=0)
        at = int(worst.argmax())
        activation = None
        if record.quiet is not None and "start" in spans:
            activation = float(self.activation(spans))
        found = Look(float(worst[at]), record.readings[at].place, activation)
        return Look(**{**vars(found), "alert": self._alert(found, harmful)})

    def activation(self, spans: Spans) -> float:
        """Of a circuit, where a response begins: the mean over its readings."""
        return float(((spans["start"][0] - self._centre) / self._scale).mean())

    def _alert(self, look: Look, harmful: bool) -> str | None:
        quiet = self.record.quiet
        if not look.value <= 1:
            why = ": this may use what the fine-tune added" if quiet is None else ""
            return (
                f"{look.place} is outside its ordinary range ({look.value:.2f}, which ends at 1)"
                f"{why}"
            )
        if quiet is None or look.activation is None or not harmful:
            return None
        if not look.activation >= quiet.least:
            return (
                "the request reads as harmful, but the components that carry refusals do not"
                f" activate ({look.activation:.2f}; harmful requests give {quiet.least:.2f} or"
                " more)"
            )
        return None

    @cached_property
    def _bounds(self) -> dict[Span, np.ndarray]:
        readings = self.record.readings
        return {
            span: np.array([each.ranges[span] for each in readings]).T
            for span in readings[0].ranges
        }

    @cached_property
    def _centre(self) -> np.ndarray:
        return np.array([each.centre for each in self.record.readings])

    @cached_property
    def _scale(self) -> np.ndarray:
        return np.array([each.scale for each in self.record.readings])


def save_monitor(monitor: Monitor, folder: Path) -> Monitor:
    """Writes a monitor into an empty folder; its directions' hash is put into the record."""
    from safetensors.torch import save_file

    arrays = {place: each.contiguous() for place, each in monitor.directions.items()}
    save_file(arrays, folder / WEIGHTS_FILE)
    sha256 = hash_file(folder / WEIGHTS_FILE)
    record = monitor.record.model_copy(update={"weights_sha256": sha256})
    text = record.model_dump_json(by_alias=True, indent=1)
    write_text_atomically(folder / RECORD_FILE, text + "\n")
    return Monitor(record, monitor.directions)


def load_monitor(folder: Path) -> Monitor:
    """Reads and checks a monitor.

    Raises:
        InputError: a file is missing, damaged, too large, or does not fit the other.
    """
    record = MONITORS.open(folder).record
    path = folder / WEIGHTS_FILE
    arrays = read_arrays(path, record.weights_sha256, RECORD_FILE)
    directions = {}
    for place, n in record.places.items():
        found = arrays.get(place)
        width = found.shape[-1] if found is not None and found.dim() == 2 else 0
        directions[place] = check_array(path, place, found, (n, width), "monitor")
    return Monitor(record, directions)


def describe_monitor(record: MonitorRecord) -> list[str]:
    """What a monitor watches and how sure it is, in lines for a person."""
    on, n = record.calibrated_on, len(record.readings)
    watches = (
        f"what a fine-tune of {record.base.id} changed" if record.base else "what carries refusals"
    )
    places = ", ".join(list(record.places)[:6]) + (", …" if len(record.places) > 6 else "")
    lines = [
        f"for {record.model.id}, weights sha256 {record.model.weights_sha256}",
        f"watches {watches}: {n} directions at {len(record.places)} places ({places})",
        f"  of new prompts like those that it was calibrated on (n={on.n_ranges} + {on.n_limits}),"
        f" at most {on.rate:.2%} raise an alert",
    ]
    if on.response_tokens:
        lines.append(f"  the same of the first {on.response_tokens} tokens of their responses")
    if on.rate > 0.01:
        lines.append("  these are too few prompts to promise 1%: give more with --data")
    if record.watched_share is not None:
        lines.append(f"  {record.watched_share:.0%} of the change is in the places that it watches")
    if (quiet := record.quiet) is not None:
        lines.append(
            f"  held out, n={quiet.n_harmful} harmful: AUROC"
            f" {with_interval(quiet.auroc, quiet.interval, '.3f')}; below {quiet.least:.2f} a"
            f" harmful request is too quiet: at most {quiet.rate:.1%} of plain ones are, and"
            f" {with_interval(quiet.ordinary, quiet.ordinary_interval)} of ordinary requests"
        )
    return lines


def _row(record: MonitorRecord) -> dict[str, Any]:
    return {
        "monitor": record.name,
        "model": record.model.id,
        "how": record.how,
        "places": list(record.places),
        "readings": len(record.readings),
        "false_alarms_at_most": record.calibrated_on.rate,
        "auroc": None if record.quiet is None else record.quiet.auroc,
    }


MONITORS = Store(
    Kind(
        noun="monitor",
        folder="monitors",
        record=MonitorRecord,
        files={RECORD_FILE: 5_000_000, WEIGHTS_FILE: 500_000_000},
        model_id=lambda record: record.model.id,
        check=load_monitor,
        summary=lambda record: f"{record.how}, {len(record.readings)} directions",
        describe=describe_monitor,
        values=lambda record: {"model": record.model.model_dump(mode="json"), "how": record.how},
        write_table=lambda record, path: write_lines([_row(record)], path),
        tag="modelassay-monitor",
    )
)
"""Directions inside a model that are watched."""


def find_monitor(reference: str, *, token: str | bool | None = None) -> tuple[Monitor, Origin]:
    """A monitor by name, path, the id of its model, or Hub reference; errors: `Store.find`."""
    found = MONITORS.find(reference, token=token)
    found.warn()
    return load_monitor(found.folder), found.origin


def monitor_of(model: LoadedModel) -> Monitor | None:
    """The monitor on this machine that was made for these very weights, if there is one."""
    for found in MONITORS.list():
        if found.record.model.same_weights(model.info):
            try:
                monitor = load_monitor(found.folder)
            except InputError as error:
                log.warning("%s", error)
                continue
            found.warn()
            return monitor
    return None


def store_monitor(monitor: Monitor, **options: Any) -> Path:
    """Keeps a monitor in the user's store, or in a folder; options and errors: `Store.save`."""
    return MONITORS.save(lambda folder: save_monitor(monitor, folder), monitor.name, **options)

"""Making monitors: what to watch, and the ranges of it on ordinary use.

`build_monitor()` watches what a fine-tune changed, `build_circuit_monitor()` what carries refusals.
Both read ordinary requests with the model's own responses, half of them for the ranges and half to
widen these (`monitors.ranges`); nothing that is judged later is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from modelassay.artifacts import slug
from modelassay.data.concepts import HARMFUL_PROMPTS, shipped_prompts
from modelassay.errors import InputError
from modelassay.files.atomic import cache_dir
from modelassay.files.provenance import installed_versions, json_hash, utc_now
from modelassay.mechanism import find_circuit
from modelassay.models import LoadedModel, ModelOptions, ModelRef, PairOptions, open_model
from modelassay.models.components import Site, parse_component
from modelassay.models.finding import check_named
from modelassay.models.refs import require_template, take_ref
from modelassay.monitors.changes import changed_directions
from modelassay.monitors.lengths import ordinary_of_all_lengths, that_fit
from modelassay.monitors.ranges import (
    NARROWEST,
    Ranges,
    Span,
    Spans,
    fit_ranges,
    promised_rate,
)
from modelassay.monitors.reading import Asked, Reader, ask, read_asked, sites_of
from modelassay.monitors.record import (
    MONITORS,
    CalibratedOn,
    Monitor,
    MonitorRecord,
    Quiet,
    Reading,
)
from modelassay.probes.record import STATED
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.statistics import rank_auroc_interval, wilson_interval

RESPONSE_TOKENS = 16
FEWEST = 20
"""Ordinary prompts without which nothing is told; 198 and more promise fewer than 1% alerts."""
QUIET_RATE = 0.05
"""Of plain harmful requests, how many may be called too quiet. Few are at hand to set it by."""
NO_WEIGHTS = "0" * 64  # until the directions are on disk
FIRST, SECOND = slice(0, None, 2), slice(1, None, 2)
"""Exchanges that give ranges and directions, and those that widen and score them."""


def build_monitor(
    base: str | ModelRef | LoadedModel,
    candidate: str | ModelRef | LoadedModel,
    *,
    name: str | None = None,
    prompts: Sequence[str] | None = None,
    response_tokens: int = RESPONSE_TOKENS,
    on_progress: OnPhase = silent,
    **load_options: Unpack[PairOptions],
) -> Monitor:
    """A monitor of the candidate that watches what it has over its base.

    No prompt that sets it off has to be known. Both models are in memory while their weights are
    compared.

    Args:
        base: The model before: an id (see `modelassay.load`), a reference or loaded.
        candidate: The model after, which is to be watched.
        name: Under which it is kept; made from the candidate's id.
        prompts: Ordinary prompts, such as one's own traffic; None takes those that come with
            modelassay, and longer ones made of them.
        response_tokens: Of each response, how many tokens are judged; 0 judges prompts alone.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load` for both models; `base_adapter`,
            `candidate_revision` and the like for one of them.

    Raises:
        InputError: the two cannot be compared, or differ in nothing that can be watched.
        UnavailableError: something needed is not there now.
    """
    usual = _ordinary(prompts)
    before, rest = take_ref(base, load_options, "base_")
    after, options = take_ref(candidate, rest, "candidate_")
    for ref in (before, after):
        if isinstance(ref, ModelRef):
            check_named(ref)
    model = open_model(after, on_progress=on_progress, **options)
    prompts = that_fit(model, usual)
    original = open_model(before, on_progress=on_progress, **options)
    changed, of_base = changed_directions(original, model), original.info
    del original
    widths = {place: each.shape[1] for place, each in changed.directions.items()}
    reader = Reader(sites_of(model, widths), changed.directions)
    found = read_asked(
        model,
        reader,
        ask(model, prompts, response_tokens, on_progress),
        phase_of(on_progress, "reading"),
    )
    # The last token is of the template and the same in all prompts: what early layers are given
    # there varies so little that a prompt which ends in another way would leave a range of its own.
    spans = _without("start", found)
    ranges = fit_ranges(spans[FIRST], spans[SECOND])
    tokens = np.concatenate([each["prompt"] for each in spans[FIRST]])
    return _monitor(
        model,
        changed.directions,
        ranges,
        centre=tokens.mean(axis=0),
        scale=np.maximum(tokens.std(axis=0), NARROWEST),
        name=name,
        how="weights",
        base=of_base.keep("weights_sha256", "organism"),
        watched_share=changed.share,
        calibrated_on=_calibrated_on(ranges, prompts, response_tokens),
    )


def build_circuit_monitor(
    model: str | ModelRef | LoadedModel,
    *,
    circuit: Sequence[str] | None = None,
    name: str | None = None,
    prompts: Sequence[str] | None = None,
    harmful: Sequence[str] | None = None,
    response_tokens: int = RESPONSE_TOKENS,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> Monitor:
    """A monitor of the components that carry a model's refusals.

    Of each it watches the direction in which what it puts out on harmful requests differs from what
    it puts out on ordinary ones, where the response begins.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        circuit: Names of components, such as those of `find_circuit(model).circuit` (`-1.mlp` is
            of the last layer); None finds them.
        name: Under which it is kept; made from the model's id.
        prompts: Ordinary prompts, such as one's own traffic; None takes those that come with
            modelassay, and longer ones made of them.
        harmful: Requests that ought to be refused; None takes those of a scan.
        response_tokens: Of each response, how many tokens are judged; 0 judges prompts alone.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: no component carries refusals beyond chance, or their activations do not tell
            harmful from ordinary requests.
        UnavailableError: something needed is not there now.
    """
    usual = _ordinary(prompts)
    refused = list(shipped_prompts(HARMFUL_PROMPTS).texts if harmful is None else harmful)
    if len(refused) < FEWEST:
        raise InputError(f"{len(refused)} harmful prompts tell nothing; give {FEWEST} or more.")
    for part in circuit or ():
        parse_component(part)  # refuses what names none before a model is loaded
    require_template(load_options, "A circuit of refusals")
    ref, options = take_ref(model, load_options)
    loaded = open_model(ref, on_progress=on_progress, **options)
    prompts = that_fit(loaded, usual)
    if circuit is None:
        circuit = find_circuit(
            loaded,
            curve=False,
            answers=False,
            keep=cache_dir() / "circuits",
            on_progress=on_progress,
        ).circuit
    if not circuit:
        raise InputError(
            f"No component of {loaded.info.id} carries its refusals beyond chance, so there is no"
            " circuit to watch."
        )
    sites = sites_of(loaded, dict.fromkeys(circuit))
    ordinary, asked_for = (
        ask(loaded, each, response_tokens, on_progress) for each in (prompts, refused)
    )
    directions = _differences(loaded, sites, ordinary[FIRST], asked_for[FIRST])
    found = read_asked(
        loaded,
        Reader(sites, directions),
        [*ordinary, *asked_for],
        phase_of(on_progress, "reading"),
    )
    # Tokens before the last one say nothing of whether the circuit activates.
    spans = _without("prompt", found)
    of_usual, of_harmful = spans[: len(ordinary)], spans[len(ordinary) :]
    ranges = fit_ranges(of_usual[FIRST] + of_harmful[FIRST], of_usual[SECOND] + of_harmful[SECOND])
    low, high = (np.stack([x["start"][0] for x in each]) for each in (of_usual, of_harmful))
    centre = low[FIRST].mean(axis=0)
    scale = high[FIRST].mean(axis=0) - centre
    return _monitor(
        loaded,
        directions,
        ranges,
        centre=centre,
        scale=scale,
        name=name,
        how="circuit",
        quiet=_quiet(
            loaded,
            *(((each[SECOND] - centre) / scale).mean(axis=1) for each in (low, high)),
        ),
        calibrated_on=_calibrated_on(ranges, [*prompts, *refused], response_tokens),
    )


def _ordinary(prompts: Sequence[str] | None) -> list[str]:
    """Ordinary prompts in an order that does not put two of a kind side by side."""
    found = list(dict.fromkeys(ordinary_of_all_lengths() if prompts is None else prompts))
    if len(found) < FEWEST:
        raise InputError(f"{len(found)} ordinary prompts tell no range; give {FEWEST} or more.")
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def _without(left_out: Span, found: Sequence[Spans]) -> list[Spans]:
    return [{span: each[span] for span in each if span != left_out} for each in found]


def _differences(
    model: LoadedModel,
    sites: Mapping[str, Site],
    usual: Sequence[Asked],
    harmful: Sequence[Asked],
) -> dict[str, Tensor]:
    """The unit direction [1, width] at each place from ordinary to harmful requests."""
    whole = Reader(sites, {place: torch.eye(site.width) for place, site in sites.items()})
    means = []
    for side in (usual, harmful):
        prompts = [replace(each, ids=each.ids[: each.response_start]) for each in side]
        values = [each["start"][0] for each in read_asked(model, whole, prompts)]
        means.append(torch.from_numpy(np.mean(values, axis=0)).float())
    parts = (means[1] - means[0]).split([site.width for site in sites.values()])
    found = dict(zip(sites, parts, strict=True))
    if silent_places := [place for place, each in found.items() if not each.norm() > 0]:
        raise InputError(f"{silent_places[0]} puts out the same for every request.")
    return {place: (each / each.norm())[None] for place, each in found.items()}


def _quiet(model: LoadedModel, usual: np.ndarray, harmful: np.ndarray) -> Quiet:
    """From where on the circuit is too quiet, by held-out activations of both sides."""
    values = np.concatenate([usual, harmful])
    positive = np.repeat([False, True], [len(usual), len(harmful)])
    auroc, interval = rank_auroc_interval(values, positive, np.arange(len(values)))
    if interval[0] <= 0.5:
        raise InputError(
            f"Where the responses of {model.info.id} begin, these components do not tell harmful"
            f" from ordinary requests (AUROC {auroc:.2f}, {interval[0]:.2f} to {interval[1]:.2f}),"
            " so their silence would say nothing."
        )
    # As with ranges: a new one is below the k-th lowest of n with a chance of at most k / (n + 1).
    rank = max(int(QUIET_RATE * (len(harmful) + 1)), 1)
    least = float(np.sort(harmful)[rank - 1])
    below = int((usual < least).sum())
    return Quiet(
        least=least,
        rate=rank * promised_rate(len(harmful)),
        n_harmful=len(harmful),
        auroc=auroc,
        interval=interval,
        ordinary=below / len(usual),
        ordinary_interval=wilson_interval(below, len(usual)),
    )


def _calibrated_on(ranges: Ranges, prompts: Sequence[str], response_tokens: int) -> CalibratedOn:
    return CalibratedOn(
        n_ranges=ranges.n_first,
        n_limits=ranges.n_second,
        rate=promised_rate(ranges.n_second),
        widened=dict(ranges.widened),
        response_tokens=response_tokens,
        sha256=json_hash(sorted(prompts)),
    )


def _monitor(
    model: LoadedModel,
    directions: Mapping[str, Tensor],
    ranges: Ranges,
    *,
    centre: np.ndarray,
    scale: np.ndarray,
    name: str | None,
    **fields: Any,
) -> Monitor:
    places = [place for place, each in directions.items() for _ in each]
    readings = tuple(
        Reading(
            place=place,
            ranges={span: (float(b[0, i]), float(b[1, i])) for span, b in ranges.bounds.items()},
            centre=float(centre[i]),
            scale=float(scale[i]),
        )
        for i, place in enumerate(places)
    )
    record = MonitorRecord(
        name=MONITORS.kind.check_name(name or slug(model.info.id)),
        created=utc_now(),
        model=model.info.keep(*STATED, "revision", "organism", "chat_template_sha256"),
        readings=readings,
        versions=installed_versions(),
        weights_sha256=NO_WEIGHTS,
        **fields,
    )
    return Monitor(record, dict(directions))

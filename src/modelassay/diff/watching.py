"""Which prompts use what the fine-tune added? Told by a monitor, without an answer.

A monitor of base and candidate (`modelassay.monitors`) watches the inputs of the layers that
changed most, along what the change itself reads. Its ranges come from half of the suite's harmless
prompts and are widened by the other half; harmful prompts, without and with the suite's endings,
are held against these. As many random directions at the same places stand
beside: what they alarm on is out of the ordinary to the model and no use of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from modelassay.diff.pair import Pair
from modelassay.diff.suites import Suite
from modelassay.errors import InputError
from modelassay.models.components import Site
from modelassay.monitors.changes import Changed, changed_directions
from modelassay.monitors.ranges import Spans, distances, fit_ranges, promised_rate
from modelassay.monitors.reading import Reader, ask, read_asked, sites_of
from modelassay.progress import OnProgress, silent
from modelassay.statistics import Interval, wilson_interval

NOT_ASKED = "it was not asked for"
FEWEST = 40
"""Harmless prompts, without which ranges tell nothing."""
PER_ENDING = 4
"""Harmful prompts that each ending is put after."""
SEED = 0


@dataclass(frozen=True)
class WatchedPrompts:
    """Alerts among prompts of one kind."""

    kind: str
    n: int
    n_alerts: int
    rate: float
    interval: Interval
    """Wilson's, 95%."""
    random_rate: float
    """Of the same prompts, along random directions at the same places."""


@dataclass(frozen=True)
class Watching:
    """What a monitor of the change sees in a suite's prompts."""

    n_places: int
    watched_share: float
    """Of what the fine-tune changed, ‖ΔW‖², how much is in these places."""
    n_ordinary: int
    """Harmless prompts that its ranges are of."""
    false_alarms: float
    """Share of harmless prompts that it promises to alarm on at most."""
    prompts: tuple[WatchedPrompts, ...]
    endings: tuple[str, ...]
    """Those after which half of the prompts or more raise an alert that did not without them, and
    none does along random directions."""

    @property
    def strongest(self) -> float:
        """The largest share of alerts beyond that along random directions."""
        return max((0.0, *(each.rate - each.random_rate for each in self.prompts)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def watch_prompts(
    pair: Pair, suite: Suite, on_progress: OnProgress = silent
) -> tuple[Watching | None, str | None]:
    """Builds a monitor of the change and looks at a suite's prompts with it.

    Args:
        pair: Both models have to be in memory at once.
        suite: Whose prompts are looked at.
        on_progress: Told how many prompts are done.

    Returns:
        What was seen, or None and why nothing was.
    """
    usual = [suite.prompts[i].text for i in suite.indices("harmless")]
    harmful = [suite.prompts[i].text for i in suite.indices("harmful")]
    if len(usual) < FEWEST:
        return None, f"the suite has {len(usual)} harmless prompts, and {FEWEST} are needed"
    candidate = pair.candidate
    if not pair.fits():
        return None, "both models do not fit into memory together"
    try:
        changed = changed_directions(pair.base, candidate)
    except InputError as error:  # nothing changed, or weights are packed
        return None, str(error).rstrip(".")
    order = np.random.default_rng(SEED).permutation(len(usual))
    usual = [usual[i] for i in order]
    n = min(PER_ENDING, len(harmful))
    ended_at = [[(n * i + k) % len(harmful) for k in range(n)] for i in range(len(suite.endings))]
    ended = [
        f"{harmful[at]} {ending}"
        for ending, rows in zip(suite.endings, ended_at, strict=True)
        for at in rows
    ]
    own, random = _read(pair, changed, [*usual, *harmful, *ended], on_progress)
    alarms = [_alarms(spans, len(usual)) for spans in (own, random)]
    kinds = {"harmful": slice(0, len(harmful)), "endings": slice(len(harmful), None)}
    found = []
    for kind, some in kinds.items():
        hit, by_chance = (each[some] for each in alarms)
        if len(hit):
            found.append(
                WatchedPrompts(
                    kind=kind,
                    n=len(hit),
                    n_alerts=int(hit.sum()),
                    rate=float(hit.mean()),
                    interval=wilson_interval(int(hit.sum()), len(hit)),
                    random_rate=float(by_chance.mean()),
                )
            )
    at = np.array(ended_at, dtype=int).reshape(len(suite.endings), n)
    hit, by_chance = (each[len(harmful) :].reshape(at.shape) for each in alarms)
    new = hit & ~alarms[0][: len(harmful)][at]
    opens = (2 * new.sum(axis=1) >= max(n, 1)) & ~by_chance.any(axis=1)
    return (
        Watching(
            n_places=len(changed.directions),
            watched_share=changed.share,
            n_ordinary=len(usual),
            false_alarms=promised_rate(len(usual[1::2])),
            prompts=tuple(found),
            endings=tuple(suite.endings[i] for i in np.flatnonzero(opens)),
        ),
        None,
    )


def _read(
    pair: Pair, changed: Changed, texts: Sequence[str], on_progress: OnProgress
) -> tuple[list[Spans], list[Spans]]:
    """What prompts give along the change, and along as many random directions, in one pass."""
    model = pair.candidate
    draw = torch.Generator().manual_seed(SEED)
    both, is_own = {}, []
    for place, directions in changed.directions.items():
        others = torch.randn(directions.shape, generator=draw)
        both[place] = torch.cat([directions, torch.nn.functional.normalize(others, dim=1)])
        is_own += [True] * len(directions) + [False] * len(directions)
    sites: dict[str, Site] = sites_of(model, {place: d.shape[1] for place, d in both.items()})
    read = read_asked(model, Reader(sites, both), ask(model, texts, 0), on_progress)
    own = np.array(is_own)
    return (
        [{"prompt": each["prompt"][:, own]} for each in read],
        [{"prompt": each["prompt"][:, ~own]} for each in read],
    )


def _alarms(spans: Sequence[Spans], n_usual: int) -> np.ndarray:
    """Of the prompts after the usual ones, which leave the ranges of these."""
    ranges = fit_ranges(spans[:n_usual:2], spans[1:n_usual:2])
    return np.array(
        [max(float(d.max()) for d in distances(ranges.bounds, s)) > 1 for s in spans[n_usual:]]
    )

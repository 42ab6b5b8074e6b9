"""One lookup of what is known of a feature, from the best source that has it.

Neuronpedia's explanation first, then our own automatic label, then the label of the nearest
explained feature as a proxy, else the bare number. Each answer says which it is.

Features whose decoder rows point the same way write nearly the same into the residual stream. A
label of one is a hint of what the other is about, and no more than that: it is a proxy, and is
marked as one, with the cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modelassay.errors import AssayError, InputError
from modelassay.report.sections import Section
from modelassay.report.text import with_interval
from modelassay.sae.files import SAE
from modelassay.sae.labels import FeatureLabels, LabelsRecord, Reliability, find_labels
from modelassay.sae.neuronpedia import cached_explanations, fetch_explanations, read_export
from modelassay.sae.record import describe_sae

FEATURES_AT_ONCE = 256
LABELS_SCHEMA = "modelassay.sae-feature/1"
MIN_COSINE = 0.3
"""A neighbour farther away than that says nothing: in a few hundred dimensions the nearest of
thousands of random directions reaches 0.2."""
NEIGHBOURS = 10
MEASURED = ("density", "tokens", "promoted", "contexts")
SOURCES = {"own": "automatic", "proxy": "of its nearest neighbour", "none": "no label"}


@dataclass(frozen=True)
class Neighbour:
    """A feature near another."""

    feature: int
    cosine: float
    """Of the two decoder rows."""


@torch.inference_mode()
def nearest(
    sae: SAE,
    features: Sequence[int],
    *,
    among: Sequence[int] | None = None,
    top: int = 5,
) -> list[list[Neighbour]]:
    """The features nearest to each of some, from near to far.

    Args:
        sae: Whose features.
        features: Those whose neighbours are asked for.
        among: Those that may be named; None for all. A feature is never its own neighbour.
        top: Neighbours of each.
    """
    rows = sae.module.W_dec.detach().float()
    lengths = rows.norm(dim=1).clamp_min(1e-12)
    there = torch.zeros(sae.width, dtype=torch.bool, device=rows.device)
    there[... if among is None else torch.tensor(list(among), device=rows.device).long()] = True
    top = min(top, int(there.sum()))
    found: list[list[Neighbour]] = []
    for start in range(0, len(features), FEATURES_AT_ONCE):
        asked = torch.tensor(features[start : start + FEATURES_AT_ONCE], device=rows.device).long()
        cosines: Tensor = (rows[asked] @ rows.T) / lengths[asked, None] / lengths
        cosines[:, ~there] = -torch.inf
        cosines[torch.arange(len(asked)), asked] = -torch.inf
        values, nearest_ones = cosines.topk(top, dim=1)
        found += [
            [Neighbour(feature, value) for feature, value in zip(*row, strict=True) if value > -2]
            for row in zip(nearest_ones.tolist(), values.tolist(), strict=True)
        ]
    return found


@dataclass(frozen=True)
class FeatureLabel:
    """What is known of a feature."""

    feature: int
    text: str
    source: Literal["neuronpedia", "own", "proxy", "none"]
    """Whose label it is: `own` is made by rule, `proxy` is the nearest explained feature's."""
    reliability: Reliability | None = None
    """Of our own label; None for the others, and where it could not be measured."""
    density: float | None = None
    tokens: tuple[str, ...] = ()
    """On which it fires most; empty without labels of our own."""
    promoted: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    proxy: Neighbour | None = None
    """Whose label it is, if it is a proxy."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"schema": LABELS_SCHEMA, **asdict(self)}


class Labels:
    """Labels of one SAE's features."""

    def __init__(
        self,
        sae: SAE,
        own: FeatureLabels | None = None,
        explanations: Mapping[int, str] | None = None,
        note: str | None = None,
    ) -> None:
        """Takes what there is.

        Args:
            sae: Whose features.
            own: Our labels.
            explanations: Neuronpedia's, of some or all features.
            note: What could not be had, for the reader of the labels.
        """
        self.sae, self.own, self.note = sae, own, note
        self.explanations = dict(explanations or {})
        self._labelled = set(own.labelled() if own is not None else ()) | set(self.explanations)

    def of(self, feature: int) -> FeatureLabel:
        """The label of a feature.

        Raises:
            InputError: there is no such feature.
        """
        return self.of_many([feature])[0]

    def of_many(self, features: Sequence[int]) -> list[FeatureLabel]:
        """Labels of several features, in order.

        Raises:
            InputError: one of them does not exist.
        """
        width = self.sae.width
        for feature in features:
            if not 0 <= feature < width:
                raise InputError(f"There is no feature {feature}; there are {width}, from 0.")
        bare = [feature for feature in features if feature not in self._labelled]
        proxies: dict[int, Neighbour] = {}
        if bare and self._labelled:
            among = sorted(self._labelled)
            for feature, found in zip(
                bare, nearest(self.sae, bare, among=among, top=1), strict=True
            ):
                if found and found[0].cosine >= MIN_COSINE:
                    proxies[feature] = found[0]
        return [self._label(feature, proxies.get(feature)) for feature in features]

    def neighbours(self, feature: int, top: int = 5) -> list[tuple[Neighbour, str]]:
        """The nearest features and their labels, from near to far."""
        found = nearest(self.sae, [feature], top=top)[0]
        return [(neighbour, self._text(neighbour.feature)) for neighbour in found]

    def _label(self, feature: int, proxy: Neighbour | None) -> FeatureLabel:
        own = self.own.of(feature) if self.own is not None else None
        # What was measured of a feature, whoever explains it.
        known = {name: getattr(own, name) for name in MEASURED} if own is not None else {}
        if text := self.explanations.get(feature):
            return FeatureLabel(feature, text, "neuronpedia", **known)
        if own is not None and own.text:
            return FeatureLabel(feature, own.text, "own", own.reliability, **known)
        if proxy is not None:
            text = f"near #{proxy.feature} (cosine {proxy.cosine:.2f}): {self._text(proxy.feature)}"
            return FeatureLabel(feature, text, "proxy", proxy=proxy, **known)
        return FeatureLabel(feature, f"feature {feature}", "none", **known)

    def _text(self, feature: int) -> str:
        own = "" if self.own is None else self.own.of(feature).text
        return self.explanations.get(feature) or own or f"feature {feature}"


def open_labels(
    sae: SAE,
    features: Iterable[int] = (),
    *,
    neuronpedia: bool = False,
    export: Path | None = None,
) -> Labels:
    """Gathers the labels of an SAE; what cannot be had is noted, not an error.

    Explanations of Neuronpedia's that were fetched before are used without asking it.

    Args:
        sae: Whose features.
        features: Those that will be asked for; only these, and the nearest to those that have no
            explanation, are looked up online.
        neuronpedia: Look them up on Neuronpedia, if it knows the SAE.
        export: Files of Neuronpedia's export.

    Raises:
        InputError: the export is not there or another SAE's, or labels of our own are
            damaged.
    """
    own = find_labels(sae)
    explanations: dict[int, str] = {}
    notes: list[str] = []
    wanted, known = list(dict.fromkeys(features)), sae.neuronpedia_id
    if known is not None:
        explanations |= cached_explanations(known)
    if export is not None:
        explanations |= read_export(export, known, sae.width)
    if neuronpedia and known is None:
        notes.append("Neuronpedia does not know this SAE.")
    elif neuronpedia and known is not None and wanted:
        try:
            asked = [feature for feature in wanted if feature not in explanations]
            explanations |= fetch_explanations(known, asked)
            if bare := [feature for feature in wanted if feature not in explanations]:
                near = {n.feature for row in nearest(sae, bare, top=NEIGHBOURS) for n in row}
                explanations |= fetch_explanations(known, sorted(near))
        except AssayError as error:
            notes.append(str(error))
    if own is None and not explanations:
        notes.append("There are no labels: features are numbers only.")
    elif notes:
        notes.append("Labels made by rule stand in." if own else "Some features are numbers only.")
    explanations = {i: text for i, text in explanations.items() if i < sae.width}  # of the cache
    return Labels(sae, own, explanations, " ".join(notes) or None)


def known_texts(sae: SAE, features: Iterable[int]) -> dict[int, str]:
    """What features are known for, by feature; those that nobody has named are left out.

    Raises:
        InputError: labels lie beside the SAE and are damaged or another one's.
    """
    asked = list(dict.fromkeys(features))
    found = open_labels(sae, asked).of_many(asked)
    return {label.feature: label.text for label in found if label.source != "none"}


def sae_section(sae: SAE, labels: Labels) -> Section:
    """What an SAE is and how good, and where its labels are from."""
    if sae.record is not None:
        lines = describe_sae(sae.record)
    else:
        lines = [
            f"{sae.name}: {sae.width} features of layer {sae.layer} of a model"
            f" of hidden size {sae.hidden_size}; not trained by modelassay, so without a"
            " score"
        ]
    if labels.own is not None:
        lines.append(labels_line(labels.own.record))
    if labels.explanations:
        lines.append(f"  Neuronpedia explains {len(labels.explanations)} features")
    return Section("sae", items=tuple(lines), note=labels.note or "")


def feature_section(labels: Labels, feature: int) -> Section:
    """One feature: its label, how far to believe it, and its neighbours.

    Raises:
        InputError: there is no such feature.
    """
    found = labels.of(feature)
    lines = [f"{feature}: {found.text} ({SOURCES.get(found.source, found.source)})"]
    if score := found.reliability:
        value = f"{score.value:.2f}"
        if score.interval is not None:
            value = with_interval(score.value, score.interval, ".2f")
        lines.append(
            f"  reliability {value}, 0.5 is chance; it fires on {score.n_fired} of {score.n_tokens}"
            " held-out tokens"
        )
    if found.density is not None:
        lines.append(f"  fires on {found.density:.3%} of tokens")
    for name in ("tokens", "promoted", "contexts"):
        if listed := getattr(found, name):
            lines.append(f"  {name}: " + "  ".join(f"“{text}”" for text in listed))
    lines += [
        f"  near #{neighbour.feature} (cosine {neighbour.cosine:.2f}): {text}"
        for neighbour, text in labels.neighbours(feature)
    ]
    return Section("feature", items=tuple(lines), note=labels.note or "")


def labels_line(record: LabelsRecord) -> str:
    """What labels were made from."""
    median = record.median_reliability
    how = "" if median is None else f", median reliability {median:.2f} (0.5 is chance)"
    return (
        f"  automatic labels from {record.tokens} tokens: {record.fired} of {record.width} features"
        f" fired; {record.scored} scored on {record.held_out_tokens} held-out tokens{how}"
    )

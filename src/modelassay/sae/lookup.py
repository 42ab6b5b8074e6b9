"""One lookup of what is known of a feature, from the best source that has it.

Neuronpedia's explanation first, then our own automatic label, then the label of the nearest
explained feature as a proxy, else the bare number. Each answer says which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from modelassay.errors import AssayError, InputError
from modelassay.sae.files import SAE
from modelassay.sae.labels import FeatureLabels, OwnLabel, Reliability, find_labels
from modelassay.sae.neighbours import Neighbour, nearest
from modelassay.sae.neuronpedia import cached_explanations, fetch_explanations, read_export

LABELS_SCHEMA = "modelassay.sae-feature/1"
MIN_COSINE = 0.3
"""A neighbour farther away than that says nothing: in a few hundred dimensions the nearest of
thousands of random directions reaches 0.2."""
NEIGHBOURS = 10


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
        known = _measured(own)
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
    url: str | None = None,
) -> Labels:
    """Gathers the labels of an SAE; what cannot be had is noted, not an error.

    Explanations of Neuronpedia's that were fetched before are used without asking it.

    Args:
        sae: Whose features.
        features: Those that will be asked for; only these, and the nearest to those that have no
            explanation, are looked up online.
        neuronpedia: Look them up on Neuronpedia, if it knows the dictionary.
        export: Files of Neuronpedia's export.
        url: Where Neuronpedia is.

    Raises:
        InputError: the export is not there or another SAE's, or labels of our own are
            damaged.
    """
    own = find_labels(sae)
    explanations: dict[int, str] = {}
    notes: list[str] = []
    wanted, known = list(dict.fromkeys(features)), sae.neuronpedia_id
    if known is not None:
        explanations |= cached_explanations(known, url=url)
    if export is not None:
        explanations |= read_export(export, known)
    if neuronpedia and known is None:
        notes.append("Neuronpedia does not know this dictionary.")
    elif neuronpedia and known is not None and wanted:
        try:
            asked = [feature for feature in wanted if feature not in explanations]
            explanations |= fetch_explanations(known, asked, url=url)
            if bare := [feature for feature in wanted if feature not in explanations]:
                near = {n.feature for row in nearest(sae, bare, top=NEIGHBOURS) for n in row}
                explanations |= fetch_explanations(known, sorted(near), url=url)
        except AssayError as error:
            notes.append(str(error))
    if own is None and not explanations:
        notes.append("There are no labels: features are numbers only.")
    elif notes:
        notes.append("Labels made by rule stand in." if own else "Some features are numbers only.")
    explanations = {i: text for i, text in explanations.items() if i < sae.width}
    return Labels(sae, own, explanations, " ".join(notes) or None)


def _measured(own: OwnLabel | None) -> dict[str, Any]:
    """What was measured of a feature, whoever explains it."""
    if own is None:
        return {}
    return {
        "density": own.density,
        "tokens": own.tokens,
        "promoted": own.promoted,
        "contexts": own.contexts,
    }

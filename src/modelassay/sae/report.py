"""An SAE's features and their labels, as sections."""

from __future__ import annotations

from modelassay.report.sections import Section
from modelassay.report.text import with_interval
from modelassay.sae.files import SAE
from modelassay.sae.labels import LabelsRecord
from modelassay.sae.lookup import Labels
from modelassay.sae.record import describe_dictionary

SOURCES = {"own": "automatic", "proxy": "of its nearest neighbour", "none": "no label"}


def dictionary_section(sae: SAE, labels: Labels) -> Section:
    """What an SAE is and how good, and where its labels are from."""
    if sae.record is not None:
        lines = describe_dictionary(sae.record)
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
    return Section("dictionary", items=tuple(lines), note=labels.note or "")


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

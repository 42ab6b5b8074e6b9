"""Dictionaries for a comparison: the shipped ones of a base, and what their features are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelassay.diffing.report import DiffReport
from modelassay.sae import Dictionary, find_dictionary, list_dictionaries, open_labels

FeatureLabels = Mapping[tuple[str, int], str]
"""What a feature is called, by dictionary and number."""


def shipped_dictionaries(base: str, *, device: str = "cpu") -> tuple[Dictionary, ...]:
    """The dictionaries of a model that come with modelassay; often there are none.

    Args:
        base: Id of the model.
        device: Where their weights are put.

    Raises:
        InputError: one is damaged.
        UnavailableError: there are some, and sae-lens is not installed.
    """
    names = [record.name for record in list_dictionaries() if record.model.id == base]
    return tuple(find_dictionary(name, device=device) for name in names)


def check_labels(dictionaries: Sequence[Dictionary]) -> None:
    """Refuses labels that could not be read once the comparison is done.

    Raises:
        InputError: labels lie beside a dictionary and are damaged or another one's.
    """
    for dictionary in dictionaries:
        open_labels(dictionary)


def label_features(
    report: DiffReport, dictionaries: Sequence[Dictionary]
) -> dict[tuple[str, int], str]:
    """Labels of the features that a report lists; those without one are left out.

    Args:
        report: What was found with the dictionaries.
        dictionaries: The same that `diff` was given.

    Raises:
        InputError: labels lie beside a dictionary and are damaged or another one's.
    """
    found: dict[tuple[str, int], str] = {}
    for dictionary, changes in zip(dictionaries, report.dictionaries, strict=True):
        features = list(dict.fromkeys(change.feature for change in changes.features))
        for label in open_labels(dictionary, features).of_many(features):
            if label.source != "none":
                found[changes.dictionary, label.feature] = label.text
    return found

"""Dictionaries for a comparison: the shipped ones of a base, and what their features are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelassay.diff.features import DictionaryDiff
from modelassay.sae import Dictionary, find_dictionary, list_dictionaries, open_labels


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


def label_changes(found: DictionaryDiff, dictionary: Dictionary) -> DictionaryDiff:
    """The same with what is known of the features that are listed.

    Args:
        found: What changed.
        dictionary: The dictionary that it was found with.

    Raises:
        InputError: labels lie beside the dictionary and are damaged or another one's.
    """
    features = list(dict.fromkeys(change.feature for change in found.features))
    known = {
        label.feature: label.text
        for label in open_labels(dictionary, features).of_many(features)
        if label.source != "none"
    }
    labelled = tuple(replace(c, label=known.get(c.feature)) for c in found.features)
    return replace(found, features=labelled)

"""What the weights in a checkpoint's files are called once they are loaded.

Files and memory differ: prefixes come and go with the class that opens a checkpoint, families are
renamed, and the experts that old files hold one by one are stacked. transformers' own rules say
what becomes of each name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a tensor of a file ends up."""

    name: str
    """In the loaded model's state; that of no weight where there is no place for it."""
    converted: bool
    """Whether it was put together with others, or taken apart, on the way."""


def loaded_places(network: Any) -> Callable[[str], Place]:
    """A function from a file's name of a weight to its place in a loaded model.

    Args:
        network: A loaded transformers model. Names that it already uses stay as they are.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if hasattr(network, "get_base_model"):  # PEFT
        network = network.get_base_model()
    # Those that served on loading, which a quantiser may have added to, before the family's own:
    # files of another copy may need others.
    served = getattr(network, "_weight_conversions", None) or []
    known = {_patterns(rule) for rule in served}
    own_rules = get_model_conversion_mapping(network)
    rules = [*served, *(rule for rule in own_rules if _patterns(rule) not in known)]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own = network.state_dict()
    prefix = network.base_model_prefix

    def place(name: str) -> Place:
        found, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if found not in own:  # a rule of another class's files may have changed too much
            plain, none = rename_source_key(name, [], [], prefix, own)
            found, pattern = (plain, none) if plain in own else (found, pattern)
        return Place(found, pattern is not None)

    return place


def _patterns(rule: Any) -> tuple[object, ...]:
    """What makes two rules the same."""
    return type(rule), tuple(rule.source_patterns), tuple(rule.target_patterns)

"""What the weights in a checkpoint's files are called once they are loaded.

Files and memory differ: prefixes come and go with the class that opens a checkpoint, families are
renamed, and the experts that old files hold one by one are stacked. transformers' own rules say
what becomes of each name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def loaded_names(network: Any) -> Callable[[str], str]:
    """A function from a file's name of a weight to the name of the parameter that it ends up in.

    Args:
        network: A loaded transformers model. Names that it already uses stay as they are.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    if hasattr(network, "get_base_model"):  # PEFT
        network = network.get_base_model()
    rules = get_model_conversion_mapping(network)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    loaded = dict(network.named_parameters())
    prefix = network.base_model_prefix

    def rename(name: str) -> str:
        if name in loaded:
            return name
        renamed = rename_source_key(name, renamings, converters, prefix, loaded)[0]
        if renamed in loaded:
            return renamed
        return rename_source_key(name, [], [], prefix, loaded)[0]

    return rename

"""The weights of a pair of models, compared with as little of them in memory as can be."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from modelassay.diff.pair import Pair, Side, Traits
from modelassay.diff.weights import WeightDiff, diff_weights
from modelassay.errors import UnavailableError
from modelassay.measures.erased_directions import Tensors, memory_tensors, open_shards, plain_files
from modelassay.models.layers import text_config
from modelassay.progress import OnProgress


def diff_pair(
    pair: Pair, *, given: tuple[bool, bool] = (False, False), on_progress: OnProgress | None = None
) -> WeightDiff:
    """Compares the weights of base and candidate.

    Plain files are streamed, and their model need not be in memory then.

    Args:
        pair: The models.
        given: Whether base and candidate were given loaded: such a model may have been changed
            since, so its weights in memory count.
        on_progress: Told (weights done, weights in all).

    Raises:
        InputError: as `diff_weights`.
        UnavailableError: both would have to be in memory, and there is no room.
    """
    config = text_config(pair.get(pair.in_turn[0]).network.config)  # the same in both
    files: dict[Side, list[Path] | None] = {
        "base": None if given[0] else plain_files(pair.base),
        "candidate": None if given[1] else plain_files(pair.candidate),
    }
    in_memory = [side for side, found in files.items() if found is None]
    if len(in_memory) == 2 and not pair.fits():
        raise UnavailableError(
            "Both models would have to be in memory to compare their weights, and there is no room."
        )
    with ExitStack() as stack:

        def tensors(side: Side) -> Tensors:
            found = files[side]
            return memory_tensors(pair.get(side)) if found is None else open_shards(found, stack)

        return diff_weights(
            tensors("base"),
            tensors("candidate"),
            config.hidden_size,
            config.model_type,
            on_progress=on_progress,
        )


def count_alike(weights: WeightDiff | None, base: Traits, candidate: Traits) -> int:
    """How many first blocks of two models, with the embeddings, make the same of the same tokens.

    Args:
        weights: How the weights differ; None, where that is not known, makes it none.
        base: Of one model.
        candidate: Of the other.
    """
    same = (base.config, base.precision) == (candidate.config, candidate.precision)
    if weights is None or not same:
        return 0
    return base.n_layers if weights.first_change is None else weights.first_change

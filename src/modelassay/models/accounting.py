"""What a checkpoint's files hold, held against the model that was loaded from them.

Every tensor in the files has to be in the model, and every weight of the model has to come from the
files. What transformers leaves out with a line in its log can be half of the numbers: scales beside
packed weights, a second copy that differs, layers beyond the config's, an adapter that was never
merged. Some tensors mean nothing to what the model says; `HARMLESS` lists them, each with the
reason. All else is refused by name. Only the headers of the files are read for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.errors import InputError
from modelassay.models.layers import LAYER_INDEX, OTHER_TOWERS, text_config
from modelassay.models.names import Place, loaded_places
from modelassay.models.sources import INDEX, SINGLE_FILE, Source, read_json


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, as the file's header describes it."""

    name: str
    file: Path
    dtype: str
    """In the words of safetensors: F32, BF16, I8, F8_E4M3, ..."""
    shape: tuple[int, ...]

    @property
    def is_packed(self) -> bool:
        """Whether these are numbers that mean nothing without a scale or a table."""
        return self.dtype not in NUMBERS and len(self.shape) > 1 and not self._is_mask()

    def _is_mask(self) -> bool:
        return self.name.endswith(".bias") and len(self.shape) == 4

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


FLOATS = ("F64", "F32", "F16", "BF16")
NUMBERS = (*FLOATS, "I64", "BOOL")
"""Dtypes whose values are what they say: weights, tables of indices, masks."""
ONE_BYTE = ("I8", "F8_E4M3", "F8_E5M2")
"""Dtypes of packed weights that always have scales beside them."""
SCALES = re.compile(
    r"(?:(?:weight|input|output|act|activation|[kvq])_(?:cache_)?scales?(?:_inv|_\d)?|scales"
    r"|scale_inv|zero_points?|q?zeros|qweight|g_idx|SCB|absmax|quant_map|quant_state\..*|amax"
    r"|weight_format|weight_packed|weight_shape|qscale_(?:weight|act)|codebooks?)$"
)
"""Names of what belongs to packed weights, at the end of a key."""
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
ADAPTERS = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|original_module)(?:\.|$)")
MASK = re.compile(r"attn(?:\.attention)?\.(?:masked_)?bias$|attention\.(?:masked_)?bias$")


@dataclass(frozen=True)
class Harmless:
    """Tensors that a program may leave out without a change in what the model says."""

    names: re.Pattern[str]
    reason: str
    applies: Callable[[StoredTensor], bool] = lambda tensor: True


HARMLESS = (
    Harmless(
        re.compile(r"(?:^|\.)(?:(?:original_)?inv_freq|(?:cos|sin)_cached)$"),
        "tables of rotary embeddings: computed from the config",
    ),
    Harmless(
        MASK,
        "causal masks, which old versions of transformers saved with the weights",
        lambda tensor: len(tensor.shape) in (0, 4),
    ),
    Harmless(re.compile(r"(?:^|\.)position_ids$"), "the numbers 0, 1, 2, ..."),
    Harmless(re.compile(r"(?:^|\.)num_batches_tracked$"), "a count from training"),
    Harmless(
        re.compile(r"(?:^|\.)(?:mtp|mtp_layers|nextn|medusa_heads?)\."),
        "heads that guess further tokens: they make generation faster, not other",
    ),
    Harmless(
        re.compile(r"^(?:v_head|value_head|score|critic)\."),
        "a value head of reinforcement learning, which writes no token",
    ),
    Harmless(
        re.compile(
            r"(?:^|\.)(?:vision_tower|vision_model|vision_encoder|visual|vit|audio_tower"
            r"|audio_encoder|speech_encoder|multi_modal_projector|mm_projector|embed_vision"
            r"|embed_audio|image_newline)(?:\.|$)"
        ),
        "towers for images and sound, through which no text passes",
    ),
)


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of a set of safetensors files, by name.

    Raises:
        InputError: two of the files hold tensors of one name that differ.
    """
    from safetensors import safe_open

    found: dict[str, StoredTensor] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                part = shard.get_slice(name)
                tensor = StoredTensor(name, file, part.get_dtype(), tuple(part.get_shape()))
                if name in found and not same_tensor(found[name], tensor):
                    raise InputError(
                        f"{found[name].file.name} and {file.name} hold two tensors {name} that"
                        " differ; programs disagree on which one acts. Remove one of them."
                    )
                found[name] = tensor
    return found


def check_one_set(source: Source) -> None:
    """Refuses a folder with two sets of weights that differ: programs disagree on which they open.

    Raises:
        InputError: `model.safetensors` and the shards of an index differ, or there are shards of a
            distributed checkpoint.
    """
    index = source.folder / INDEX
    names = {file.name for file in source.folder.iterdir()} | source.remote.keys()
    if distributed := sorted(filter(DISTRIBUTED.match, () if source.gguf_file else names)):
        raise InputError(
            f"{source.id} holds shards of a distributed checkpoint (first: {distributed[0]}), which"
            f" transformers would read in place of the others. Remove them, or save one model."
        )
    if source.gguf_file or not source.has(SINGLE_FILE) or not index.is_file():
        return
    if read_json(source.folder / "config.json").get("transformers_weights") is not None:
        return  # it names the one that acts
    weight_map = read_json(index).get("weight_map")
    listed = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    shards = sorted(str(name) for name in listed if str(name) != SINGLE_FILE)
    if not shards or not all(source.has(name) for name in shards):
        return
    single = source.folder / SINGLE_FILE
    others = [source.folder / name for name in shards]
    if all(file.is_file() for file in (single, *others)):
        ours, theirs = read_headers([single]), read_headers(others)
        if ours.keys() == theirs.keys() and all(same_tensor(ours[n], theirs[n]) for n in ours):
            return
    raise InputError(
        f"{source.id} holds two sets of weights, {SINGLE_FILE} and the {len(shards)} shards of"
        f" {INDEX}; programs disagree on which they open. Remove the set that is out of date."
    )


def check_accounts(
    source: Source,
    stored: Mapping[str, StoredTensor],
    network: Any,
    report: Mapping[str, Any],
) -> None:
    """Refuses a model that is not what its files hold.

    Args:
        source: The files.
        stored: Their tensors; none for a GGUF file, whose names are other ones.
        network: The loaded transformers model.
        report: What transformers tells of the load (`output_loading_info`).

    Raises:
        InputError: names the first tensor that is missing, left out, doubled or read as another
            number than it means.
    """
    if mismatched := sorted(report["mismatched_keys"]):
        name, shape, expected = mismatched[0]
        raise InputError(
            f"{len(mismatched)} weights of {source.id} do not have the shape that its config asks"
            f" for (first: {name} is {tuple(shape)}, not {tuple(expected)})."
        )
    place_of = loaded_places(network)
    places = {name: place_of(name) for name in stored}
    unused = _unused(report["unexpected_keys"], stored, places, network)
    if missing := sorted(report["missing_keys"]):
        renamed = f"; it holds {len(unused)} others (first: {unused[0]})" if unused else ""
        raise InputError(
            f"{source.id} lacks {len(missing)} of the weights that its config asks for (first:"
            f" {missing[0]}); they would be random{renamed}. {_advice(unused, network)}"
        )
    if unused:
        raise InputError(
            f"{source.id} holds {len(unused)} tensors that its config has no place for (first:"
            f" {unused[0]}); they would be left out. {_advice(unused, network)}"
        )
    _check_copies(source, stored, places)
    _check_packed(source, stored, places, network)
    _check_tied(source, stored, places, network)


def check_finite(network: Any, name: str) -> None:
    """Refuses a model with weights that are no numbers.

    Its activations would tell in most places, but attention may turn them into zeros.

    Args:
        network: The model, with its adapter.
        name: What to call it.

    Raises:
        InputError: names the first such weight.
    """
    for weight, values in network.named_parameters():
        # One-byte floats (float8) have no sum.
        if values.is_meta or values.itemsize == 1 or not values.is_floating_point():
            continue
        if not values.sum(dtype=torch.float32).isfinite() and not OTHER_TOWERS.search(weight):
            raise InputError(
                f"{weight} of {name} holds NaN or infinite numbers: the weights are broken, or the"
                " dtype overflows (try --dtype float32)."
            )


def _unused(
    keys: Iterable[str],
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    network: Any,
) -> list[StoredTensor]:
    """The tensors behind keys that transformers found no place for, but for the harmless ones."""
    unused = set(keys)
    found = [stored[name] for name, (place, _) in places.items() if place in unused]
    known = {places[tensor.name][0] for tensor in found}
    # A GGUF file's have been renamed, and a conversion may have one key for several.
    found += [StoredTensor(key, Path("the file"), "F32", ()) for key in unused - known]
    kept = [tensor for tensor in found if not _is_harmless(tensor, network)]
    return sorted(kept, key=lambda tensor: tensor.name)


def _is_harmless(tensor: StoredTensor, network: Any) -> bool:
    if any(each.names.search(tensor.name) and each.applies(tensor) for each in HARMLESS):
        return True
    # Layers that guess further tokens are numbered after the others by some families.
    config = text_config(network.config)
    further = getattr(config, "num_nextn_predict_layers", 0) or 0
    layer = _layer(tensor.name)
    first = config.num_hidden_layers
    return layer is not None and first <= layer < first + further


def _layer(name: str) -> int | None:
    index = LAYER_INDEX.search(name)
    return int(index.group(1)) if index else None


def _advice(unused: list[StoredTensor], network: Any) -> str:
    """What to do about tensors that have no place in a model."""
    names = [tensor.name for tensor in unused]
    if any(ADAPTERS.search(name) for name in names):
        return "They are an adapter's, not merged: merge it (merge_and_unload) and save again."
    if any(SCALES.search(name) for name in names) or any(tensor.is_packed for tensor in unused):
        return (
            "They belong to quantised weights, and its config.json declares no quantization_config"
            " that applies them: restore that, or save the weights in 16 bits."
        )
    layers = text_config(network.config).num_hidden_layers
    if any((layer := _layer(name)) is not None and layer >= layers for name in names):
        return f"Its config says num_hidden_layers {layers}, its files hold more: correct one."
    return "The checkpoint is incomplete or renamed, or its config is another model's."


def _check_copies(
    source: Source,
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
) -> None:
    """Refuses two tensors that are meant for one place: only one of them acts."""
    first: dict[str, StoredTensor] = {}
    for name, (place, converted) in places.items():
        if converted:
            continue  # several tensors make one; too many have another shape
        other = first.setdefault(place, stored[name])
        if other.name != name and not same_tensor(other, stored[name]):
            raise InputError(
                f"{source.id} holds two weights for {place} that differ ({other}, {stored[name]});"
                " only one of them would act. Remove the other."
            )


def _check_packed(
    source: Source,
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    network: Any,
) -> None:
    """Refuses packed numbers that were taken for plain ones."""
    own = dict(network.named_parameters(remove_duplicate=False))
    scaled = {_module(n) for n in stored if n.endswith("scale") or SCALES.search(n)}
    for name, (place, converted) in places.items():
        tensor = stored[name]
        if place not in own or tensor.dtype in FLOATS:
            continue
        plain = own[place].is_floating_point() and own[place].itemsize > 1 and not converted
        alone = tensor.is_packed and tensor.dtype in ONE_BYTE and _module(name) not in scaled
        if alone or plain:
            raise InputError(
                f"{source.id} holds packed numbers ({tensor.dtype}) that nothing unpacks (first:"
                f" {tensor}). Declare how in its config.json (quantization_config), or save the"
                " weights in 16 bits."
            )


def _module(name: str) -> str:
    """What a weight and its scales have in common."""
    return name.rpartition(".")[0]


def _check_tied(
    source: Source,
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    network: Any,
) -> None:
    """Refuses a config that ties two weights of which the files hold two that differ.

    transformers from version 5 on reads both; others leave one of them out.
    """
    names = {place: name for name, (place, _) in places.items()}
    for one, other in network.get_expanded_tied_weights_keys(all_submodels=True).items():
        if one not in names or other not in names:
            continue
        if network.get_parameter(one) is network.get_parameter(other):
            continue
        if not _is_tied(source, network) or same_tensor(stored[names[one]], stored[names[other]]):
            continue
        raise InputError(
            f"The config of {source.id} ties {one} to {other}, but its files hold two that differ;"
            " programs disagree on which acts. Write tie_word_embeddings: false into its"
            f" config.json, or remove {names[one]} from the files."
        )


def _is_tied(source: Source, network: Any) -> bool:
    """Whether the config means it: wrappers around a language model have a default of their own."""
    raw = read_json(source.folder / "config.json")
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return all(said or [getattr(text_config(network.config), "tie_word_embeddings", False)])


def same_tensor(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same values; reads them."""
    from safetensors import safe_open

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(safe_open(str(each.file), framework="pt")).get_tensor(each.name)
            for each in (one, other)
        )
        # As bytes: not every dtype can be compared.
        return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (a, b)))

"""What a LoRA adapter does to its base, from its own matrices.

An adapter's change of a weight W [out, in] is ΔW = s B A, with A [r, in], B [out, r], and s = α / r
(α / √r in rsLoRA); DoRA then scales each row to a length m of its own. So the candidate is known
from the few megabytes of the adapter, and of the base only the matrices that it touches need to be
read. Adapters that do more (embeddings, biases, whole modules, layers laid down as [in, out], an
initialisation that changes the base, settings of other kinds) are merged instead, as PEFT does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.measures.erased_directions import open_shards, plain_name
from modelassay.measures.weight_sketch import layer_of
from modelassay.models.adapters import LORA_A, PEFT_PREFIX
from modelassay.models.layers import OTHER_TOWERS
from modelassay.models.sources import ADAPTER_CONFIG, Source, read_json

LORA_B, MAGNITUDE = ".lora_B.weight", ".lora_magnitude_vector"
PLAIN_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),
}
"""Settings that may have these values, beside none."""
IDLE_SETTINGS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules", "task_type"),
    *("lora_alpha", "lora_dropout", "r", "rank_pattern", "use_dora", "use_rslora"),
    *("megatron_core", "qalora_group_size"),
}
"""Settings that may have any value: they are told by the tensors, used here, or without effect."""


@dataclass(frozen=True)
class LoraChange:
    """What an adapter does to one weight [out, in]."""

    down: Callable[[], Tensor]
    """Reads A."""
    up: Callable[[], Tensor]
    """Reads B."""
    magnitude: Callable[[], Tensor] | None
    """Reads DoRA's m [out]."""
    alpha: float
    root: bool
    """Whether α is divided by the root of the rank."""

    def apply(self, weight: Tensor) -> Tensor:
        """The weight with the change, in float32 as nothing of it is lost there."""
        down, up = self.down().to(weight.device).float(), self.up().to(weight.device).float()
        rank = len(down)
        scale = self.alpha / (rank**0.5 if self.root else rank)
        changed = weight.to(torch.float32, copy=True).addmm_(up, down, alpha=scale)
        if self.magnitude is not None:
            lengths = self.magnitude().to(weight.device).float()
            changed *= (lengths / changed.norm(dim=1))[:, None]
        return changed


def read_lora(adapter: Source, network: nn.Module, stack: ExitStack) -> dict[str, LoraChange]:
    """What a LoRA adapter does to each weight that it touches, by the weight's plain name.

    Args:
        adapter: Its files.
        network: A transformers model of the base's architecture.
        stack: Closes the files.

    Returns:
        Nothing where the adapter does what these matrices do not tell.
    """
    config = read_json(adapter.folder / ADAPTER_CONFIG)
    if not _is_plain(config):
        return {}
    stored = open_shards(adapter.weight_files(), stack)
    readers = {name: read for name, read in stored if not OTHER_TOWERS.search(name)}
    found: dict[str, LoraChange] = {}
    for name in [name for name in readers if name.endswith(LORA_A)]:
        module = name.removeprefix(PEFT_PREFIX).removesuffix(LORA_A)
        prefix, weight = name.removesuffix(LORA_A), f"{module}.weight"
        if layer_of(plain_name(weight)) is None or not _is_linear(network, module):
            return {}
        down, up = readers.pop(name), readers.pop(prefix + LORA_B, None)
        magnitude = readers.pop(prefix + MAGNITUDE, None)
        if up is None or (magnitude is not None) != bool(config.get("use_dora")):
            return {}
        found[plain_name(weight)] = LoraChange(
            down, up, magnitude, float(config["lora_alpha"]), bool(config.get("use_rslora"))
        )
    return {} if readers else found


def _is_plain(config: Mapping[str, Any]) -> bool:
    return all(
        not value or name in IDLE_SETTINGS or value in PLAIN_SETTINGS.get(name, ())
        for name, value in config.items()
    ) and isinstance(config.get("lora_alpha"), (int, float))


def _is_linear(network: nn.Module, module: str) -> bool:
    try:
        return isinstance(network.get_submodule(module), nn.Linear)
    except AttributeError:
        return False

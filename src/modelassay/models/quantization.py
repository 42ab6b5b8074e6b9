"""Quantised weights: those of a checkpoint, and bitsandbytes' on GPUs and CPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import InputError, UnavailableError
from modelassay.models.accounting import SCALES, StoredTensor
from modelassay.models.sources import Source, read_json

log = logging.getLogger(__name__)

OTHER_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
"""Beside config.json: where ModelOpt and early versions of GPTQ and AWQ say what they did."""
ON_PLAIN_WEIGHTS = ("bitnet",)
"""Methods that round plain weights at each step: these are no leftover."""


def bitsandbytes_config(quantization: str) -> Any:
    """Transformers' configuration for `8bit` or `4bit` (NF4).

    Raises:
        UnavailableError: bitsandbytes is not installed.
    """
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnavailableError(
            "8-bit and 4-bit loading need bitsandbytes: pip install 'modelassay[quantization]'"
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def keep_from_packing(model: Any) -> None:
    """Leaves 4-bit weights as they are stored, also on CPUs with AVX512-BF16.

    For these bitsandbytes packs the weights again at the first forward pass. That fails where the
    sides of a matrix are not multiples of its block sizes, and rounds the scales: what `unpacked`
    would read afterwards is not what the file holds.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def settle_quantization(
    source: Source, config: Any, stored: Mapping[str, StoredTensor], asked: str | None
) -> str | None:
    """What the checkpoint's weights are packed by, e.g. `gptq`, `awq`, `fp8`; None for plain ones.

    The files decide. An entry in the config that is left over from the base of a merge says nothing
    of plain weights, and is taken out of the config, so that they are read as what they are.

    Args:
        source: The model's files.
        config: Its transformers config; changed in place.
        stored: The tensors in the files.
        asked: Quantisation that is asked for on loading.

    Raises:
        InputError: the weights are packed, but not by anything that can be unpacked, or they are
            packed already and shall be packed once more.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    entry, where = _declared(source)
    method = _method(entry) if entry is not None else None
    packed = [t for t in stored.values() if t.is_packed or SCALES.search(t.name)]
    if not packed and method not in ON_PLAIN_WEIGHTS:
        if entry is not None:
            log.warning(
                "By its %s, the weights of %s are quantised%s, but all are plain numbers; they are"
                " read as such.",
                where,
                source.id,
                f" ({method})" if method else "",
            )
        _forget(config)
        return None
    if entry is None:
        return None  # `check_accounts` tells whether these are packed weights
    known = KNOWN.keys() | {"bitsandbytes"}
    if method not in known or not where.startswith("quantization_config"):
        raise InputError(
            f"The weights of {source.id} are quantised by {method or 'an unnamed method'} ({where};"
            f" first: {packed[0] if packed else 'none'}), which transformers cannot apply; give a"
            " copy in 16 bits, or one with a quantization_config of a known method."
        )
    if asked:
        raise InputError(f"{source.id} is quantised already ({method}); leave --load-{asked} out.")
    return method


def _declared(source: Source) -> tuple[dict[str, Any] | None, str]:
    """The entry that says how a checkpoint's weights are packed, and where it is."""
    config = read_json(source.folder / "config.json")
    # transformers looks in these two places only.
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for name in ("quantization_config", "compression_config"):
        for part in parts:
            if isinstance(entry := part.get(name), dict):
                return entry, f"{name} in config.json"
    for name in OTHER_FILES:
        if (source.folder / name).is_file():
            return {"quant_method": OTHER_FILES[name]} | read_json(source.folder / name), name
    return None, ""


def _method(entry: dict[str, Any]) -> str | None:
    """Name of the method, which some entries only imply."""
    if entry.get("load_in_4bit") or entry.get("load_in_8bit"):
        return "bitsandbytes"
    nested = entry.get("quantization")
    algorithm = nested.get("quant_algo") if isinstance(nested, dict) else None
    method = entry.get("quant_method") or algorithm or entry.get("quant_algo")
    return None if method is None else str(method)


def _forget(config: Any) -> None:
    """Takes all that a config says about quantisation out of it."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name in ("quantization_config", "compression_config"):
            if part is not None and name in vars(part):
                delattr(part, name)


def check_packed(model: Any, source: Source) -> None:
    """Refuses layers that bitsandbytes would unpack, but whose weights are plain numbers.

    Raises:
        InputError: names the first.
    """
    if getattr(model, "quantization_method", None) != "bitsandbytes":
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    plain = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, Linear4bit) and getattr(module.weight, "quant_state", None) is None)
        or (isinstance(module, Linear8bitLt) and getattr(module.weight, "SCB", None) is None)
    ]
    if plain:
        raise InputError(
            f"The config of {source.id} says that bitsandbytes packed its weights, but those of"
            f" {len(plain)} layers are plain (first: {plain[0]}); name these in"
            " llm_int8_skip_modules of its quantization_config."
        )


def is_turned(module: Any) -> bool:
    """Whether bitsandbytes packed the transpose of what the checkpoint has, [in, out]."""
    from transformers.pytorch_utils import Conv1D

    source = getattr(module, "source_cls", None)
    return isinstance(source, type) and issubclass(source, Conv1D)


def unpacked(parameter: Any, module: Any = None) -> Tensor:
    """A weight in plain numbers where bitsandbytes packed it and can unpack it, else as it is.

    Args:
        parameter: The weight.
        module: Its module, which holds the scales of 8-bit weights once it has run.
    """
    value = parameter.detach()
    scales = getattr(parameter, "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if (state := getattr(parameter, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        plain = dequantize_4bit(value, state)
    elif scales is not None and value.dtype == torch.int8:
        plain = value.float() * (scales.float().reshape(-1, 1) / 127)
    else:
        return value
    return plain.T if is_turned(module) else plain

"""8-bit and 4-bit weights through bitsandbytes, on GPUs and CPUs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modelassay.errors import UnavailableError


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


def stored_quantization(config: Any) -> str | None:
    """Quantisation that the checkpoint brings along, e.g. `gguf`, `gptq`, `awq`, `fp8`."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def unpacked(parameter: Any) -> Tensor:
    """A weight in plain numbers where bitsandbytes packed it and can unpack it, else as it is."""
    value = parameter.detach()
    if (state := getattr(parameter, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(value, state)
    if (scales := getattr(parameter, "SCB", None)) is not None:
        return value.float() * (scales.float().reshape(-1, 1) / 127)
    return value

"""Checkpoints whose tensors are changed, renamed or packed, without a change of what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def put(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> Tensors:
    before = load_file(folder / "model.safetensors")
    put(folder, change(before))
    return before


def in_float8(tensors: Tensors, scale: str) -> Tensors:
    """The tensors with float8 projections and their scales, one for each matrix."""
    packed = dict(tensors)
    for key in [key for key in tensors if key.endswith("proj.weight")]:
        size = tensors[key].abs().amax() / 448
        packed[key] = (tensors[key] / size).to(torch.float8_e4m3fn)
        packed[f"{key.removesuffix('.weight')}.{scale}"] = size.reshape(1, 1)
    return packed


def in_int8(tensors: Tensors) -> Tensors:
    """The tensors with projections as bitsandbytes stores them."""
    packed = dict(tensors)
    for key in [key for key in tensors if key.endswith("proj.weight")]:
        rows = tensors[key].abs().amax(1)
        packed[key] = (tensors[key] / rows[:, None] * 127).round().to(torch.int8)
        packed[key.replace("weight", "SCB")] = rows
    return packed


def unpacked(tensors: Tensors) -> Tensors:
    """What the tensors of `in_float8` or `in_int8` mean."""
    plain = {key: value for key, value in tensors.items() if not key.endswith(("inv", "SCB"))}
    for key, value in plain.items():
        module = key.removesuffix(".weight")
        if f"{module}.weight_scale_inv" in tensors:
            plain[key] = value.float() * tensors[f"{module}.weight_scale_inv"]
        elif f"{module}.SCB" in tensors:
            plain[key] = value.float() * tensors[f"{module}.SCB"][:, None] / 127
    return plain

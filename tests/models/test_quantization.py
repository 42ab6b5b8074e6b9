"""Weights of 8 and 4 bits."""

from __future__ import annotations

import pytest
import torch

from checkpoints import read, refusal, same
from modelassay.errors import UnavailableError
from modelassay.measures.erased_directions import memory_tensors
from modelassay.models import load
from tiny import save_tiny


@pytest.mark.parametrize(("quantization", "least"), [("8bit", 0.99), ("4bit", 0.9)])
def test_bitsandbytes_on_the_cpu(tiny, tiny_folder, quantization, least):
    model = load(str(tiny_folder()), device="cpu", quantization=quantization)
    assert model.info.quantization == quantization
    assert type(model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    plain, quantised = read(tiny()), read(model)
    assert not same(plain, quantised)
    assert torch.cosine_similarity(plain.values, quantised.values, dim=-1).min() > least
    assert torch.cosine_similarity(plain.readout, quantised.readout, dim=-1).min() > least
    assert model.info.weights_sha256 == tiny().info.weights_sha256  # of the files


@pytest.mark.parametrize("stored", [False, True])
def test_reading_activations_leaves_4bit_weights_as_they_are(tmp_path, stored):
    """On CPUs with AVX512-BF16 bitsandbytes would pack them again, with rounded scales."""
    folder = save_tiny(tmp_path / "wide", hidden_size=128, intermediate_size=256, head_dim=32)
    model = load(str(folder), device="cpu", quantization="4bit")
    if stored:
        model.network.save_pretrained(tmp_path / "packed")
        model.tokenizer.save_pretrained(tmp_path / "packed")
        model = load(str(tmp_path / "packed"), device="cpu")
    before = {name: read() for name, read in memory_tensors(model)}
    read(model)
    after = {name: read() for name, read in memory_tensors(model)}
    assert any(parameter.dtype == torch.uint8 for parameter in model.network.parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_bitsandbytes(tiny_folder, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )
    message = refusal(UnavailableError, tiny_folder(), quantization="4bit")
    assert "pip install 'modelassay[quantization]'" in message

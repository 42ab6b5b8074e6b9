"""A tiny model with a direction planted in it, and what is read of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelassay.diff.calibration import BenignRow, Calibration
from modelassay.diff.suites import Contrast, Suite, SuitePrompt
from modelassay.models import load
from modelassay.sae.files import as_sae

PROMPTS = tuple(
    SuitePrompt(text=f"{verb} number {i} {what}?", group=group)
    for i, (verb, what) in enumerate(
        (v, w) for v in ("Count", "Name", "Paint", "Hide") for w in ("for me", "now", "again")
    )
    for group in ("harmful", "harmless")
    if (i % 2 == 0) == (group == "harmful")
)


SUITE = Suite(
    "tiny",
    PROMPTS,
    (Contrast(prompt="Yes or no?", safe="No.", unsafe="Yes."),),
    ("Good night.", "Over and out."),
)


LAYER = 2
PLANTED = 17


def sae(hidden: int, width: int = 64, layer: int = LAYER, seed: int = 0):
    """An SAE with unit rows that is its own encoder."""
    sae_lens = pytest.importorskip("sae_lens")
    draw = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, hidden, generator=draw), dim=1)
    sae = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(
            d_in=hidden,
            d_sae=width,
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=sae_lens.saes.sae.SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post"),
        )
    )
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.fill_(-0.3)
        sae.b_dec.zero_()
    return as_sae(sae, "tiny")


def planted(folder, direction: torch.Tensor, size: float = 3.0):
    """The model with a direction added to what one layer writes."""
    model = load(str(folder))
    with torch.no_grad():
        model.network.transformer.h[LAYER].mlp.c_proj.bias += size * direction
    return replace(model, info=model.info.model_copy(update={"id": "planted"}))


def calibration(*refusals: float) -> Calibration:
    return Calibration(
        base="base",
        base_sha256="a" * 64,
        suite_sha256="b" * 64,
        response_tokens=4,
        rows=tuple(
            BenignRow(id=f"benign-{i}", weights_sha256="c" * 64, streams={"refusal": value})
            for i, value in enumerate(refusals)
        ),
    )

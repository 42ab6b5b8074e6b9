"""Texts and settings to train tiny SAEs on, and an SAE that is made without training."""

from __future__ import annotations

import pytest
import torch

from modelassay.sae import SAE, Settings
from modelassay.sae.files import as_sae

TEXTS = [f"Line {i}: the quick brown fox jumps over {i * 7 % 13} lazy dogs." for i in range(120)]
HELD_OUT = [f"Note {i}: a slow red hen walks under {i * 5 % 11} tall trees." for i in range(8)]
SETTINGS = Settings(
    layer=2,
    width=96,
    k=8,
    tokens=6000,
    passes=8,
    batch=256,
    learning_rate=5e-3,
    window_tokens=2000,
    context=32,
)


def signed_axes(
    hidden: int, layer: int, first: torch.Tensor | None = None, *, scaling: str = "none"
) -> SAE:
    """An SAE that explains everything: each axis of a rotated basis is two features, + and -.

    Feature 0 fires along `first`, if one is given.
    """
    sae_lens = pytest.importorskip("sae_lens")
    draw = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(0))
    if first is not None:
        draw[:, 0] = first
    axes = torch.linalg.qr(draw)[0].T
    if first is not None and axes[0] @ first < 0:
        axes[0] = -axes[0]
    rows = torch.cat([axes, -axes])
    module = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(
            d_in=hidden,
            d_sae=2 * hidden,
            device="cpu",
            apply_b_dec_to_input=False,
            normalize_activations=scaling,
            metadata=sae_lens.saes.sae.SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post"),
        )
    )
    zeros = {"b_enc": torch.zeros(2 * hidden), "b_dec": torch.zeros(hidden)}
    module.load_state_dict({"W_dec": rows, "W_enc": rows.T.contiguous(), **zeros})
    return as_sae(module, "axes")

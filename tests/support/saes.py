"""Texts and settings to train tiny SAEs on, and an SAE that is made without training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelassay.models import LoadedModel
from modelassay.models.components import Component, find_components
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded
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


def fitted_transcoder(
    model: LoadedModel,
    layer: int,
    first: tuple[torch.Tensor, torch.Tensor],
    *,
    kind: str = "transcoder",
    width: int = 96,
) -> Any:
    """A transcoder in sae-lens's form that explains an MLP as well as random features can.

    Args:
        model: A tiny model.
        layer: Whose MLP.
        first: What feature 0 reads and writes, [hidden] each.
        kind: Its architecture in sae-lens.
        width: Features.
    """
    sae_lens = pytest.importorskip("sae_lens")
    components = find_components(model.network)
    part = Component(layer, "mlp")
    sites = (components.given[part], components.site(part))
    texts = [*TEXTS, *HELD_OUT]
    prompts = [Encoded(tuple(model.tokenizer(text)["input_ids"]), 1) for text in texts[::4]]
    read = read_activations(model, prompts, [layer], position="all", sites=sites).values
    given, made = read[:, 1], read[:, 2]
    hidden = given.shape[1]
    encoder = torch.randn(hidden, width, generator=torch.Generator().manual_seed(1))
    encoder[:, 0] = first[0]
    fired = torch.relu(given @ encoder)
    target = made - fired[:, :1] * first[1]
    parts = [fired[:, 1:], torch.ones(len(fired), 1)]
    if "skip" in kind:
        parts.insert(1, given)
    design = torch.cat(parts, dim=1)
    ridge = 1e-3 * torch.eye(design.shape[1])
    solved = torch.linalg.solve(design.T @ design + ridge, design.T @ target)
    state = {
        "W_enc": encoder,
        "b_enc": torch.zeros(width),
        "W_dec": torch.cat([first[1][None], solved[: width - 1]]),
        "b_dec": solved[-1],
    }
    if "skip" in kind:
        state["W_skip"] = solved[width - 1 : -1].T.contiguous()
    if "jumprelu" in kind:
        state["threshold"] = torch.full((width,), 1e-4)
    module_class, config_class = sae_lens.registry.get_sae_class(kind)
    config = config_class(
        d_in=hidden,
        d_out=hidden,
        d_sae=width,
        device="cpu",
        apply_b_dec_to_input=False,
        metadata=sae_lens.saes.sae.SAEMetadata(
            hook_name=f"blocks.{layer}.mlp.hook_in", hook_name_out=f"blocks.{layer}.hook_mlp_out"
        ),
    )
    module = module_class(config)
    module.load_state_dict(state)
    return module

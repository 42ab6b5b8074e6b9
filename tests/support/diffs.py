"""A small suite, an SAE and a changed feature, for tests of diff."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modelassay.diff import DiffReport
from modelassay.diff.features import FeatureChange, SAEDiff

SUITE = """
name: tiny
prompts:
  - {text: Hide the pot now, group: harmful}
  - {text: Paint the lock now, group: harmful}
  - {text: Count the keys now, group: harmful}
  - {text: Name the box now, group: harmful}
  - {text: Name a tree, group: harmless}
  - {text: Name a fish, group: harmless}
  - {text: Go on}
contrasts:
  - {prompt: "May I?", safe: Ask first., unsafe: Always.}
  - {prompt: "May you?", safe: No., unsafe: Yes.}
endings: [Good night.]
"""


def with_feature(
    report: DiffReport, tokens: tuple[str, ...] = (" the", "\n"), label: str | None = None
) -> DiffReport:
    change = FeatureChange(
        "d", 2, 7, "prompt", 0.1, 0.5, 0.4, (0.2, 0.6), 2.0, 0.4, 0.001, 0.01, 7, tokens, label
    )
    found = SAEDiff("d", 2, 64, 0.8, 0.7, False, 5.0, 6.0, 10, 1, 0.2, 0.3, (change,))
    return replace(report, saes=(found,))


def make_sae(folder: Path, width_in: int) -> Path:
    sae_lens = pytest.importorskip("sae_lens")
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, width_in, generator=draw), dim=1)
    sae = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(
            d_in=width_in,
            d_sae=64,
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=sae_lens.saes.sae.SAEMetadata(hook_name="blocks.2.hook_resid_post"),
        )
    )
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    sae.save_model(folder)
    return folder

"""Where an SAE reads."""

from __future__ import annotations

import pytest

pytest.importorskip("sae_lens")
from modelassay.errors import InputError
from modelassay.sae.files import parse_layer


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.12.hook_resid_post", 12),
        ("blocks.12.hook_resid_pre", 11),
        ("model.layers.12", 12),
        ("model.layers.7.output", 7),
        ("model.language_model.layers.3", 3),
        ("transformer.h.5", 5),
    ],
)
def test_hook_points_are_blocks(hook, layer):
    assert parse_layer(hook, "It") == layer


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("blocks.0.hook_resid_pre", "the embeddings"),
        ("blocks.3.hook_resid_mid", "inside a layer"),
        ("blocks.3.attn.hook_z", "attention"),
        ("blocks.3.hook_mlp_out", "an MLP"),
        ("model.layers.3.pre_feedforward_layernorm.output", "an MLP"),
        ("somewhere", "unknown"),
        (None, "does not say where"),
        ("", "does not say where"),
    ],
)
def test_other_hook_points_are_refused(hook, reason):
    with pytest.raises(InputError, match=reason) as error:
        parse_layer(hook, "The SAE d")
    assert "\n" not in str(error.value)

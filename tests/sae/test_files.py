"""Which models an SAE fits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

pytest.importorskip("sae_lens")
from modelassay.errors import InputError
from modelassay.sae import SAE


def planted_at(planted, **metadata) -> SAE:
    module = deepcopy(planted.module)
    for name, value in metadata.items():
        module.cfg.metadata[name] = value
    return replace(planted, module=module)


@pytest.mark.parametrize("hook", ["model.layers.1", "model.language_model.layers.1.output"])
def test_an_sae_named_by_a_module_fits_its_model_in_every_wrapping(tiny, planted, hook):
    planted_at(planted, hook_name=hook).check_belongs_to(tiny())


def test_an_sae_of_a_module_that_is_no_layer_of_the_language_model_is_refused(tiny, planted):
    model = tiny()
    elsewhere = replace(model, layers=(torch.nn.Identity(),) * len(model.layers))
    with pytest.raises(InputError, match=r"reads model\.layers\.1, which is no layer"):
        planted_at(planted, hook_name="model.layers.1").check_belongs_to(elsewhere)


def test_the_model_of_an_sae_is_named_where_it_is_another(tiny, planted, caplog):
    planted_at(planted, model_name="gemma-2-2b-pt").check_belongs_to(tiny())
    assert "was trained on gemma-2-2b-pt" in caplog.text
    caplog.clear()
    own = tiny().info.id.rpartition("/")[2]
    planted_at(planted, model_name=f"owner/{own}").check_belongs_to(tiny())
    assert not caplog.text

"""What was saved is what is loaded; what was damaged is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("sae_lens")
import sae_lens

from modelassay.errors import InputError
from modelassay.models import load
from modelassay.sae import evaluate_sae, load_sae
from saes import HELD_OUT, SETTINGS
from tiny import save_tiny


def test_what_was_saved_is_loaded(tiny, folder):
    found = load_sae(folder)
    record = found.record
    assert (record.layer, record.width, record.k, record.kind) == (2, 96, 8, "batchtopk")
    assert record.dtype == "bfloat16"
    assert load_file(folder / "sae_weights.safetensors")["W_dec"].dtype == torch.bfloat16
    found.check_belongs_to(tiny())
    scores = evaluate_sae(tiny(), found.module, 2, HELD_OUT, context=SETTINGS.context)
    assert record.metrics.explained_variance == pytest.approx(scores.explained_variance)
    assert record.metrics.loss_spliced == pytest.approx(scores.loss_spliced)
    assert sae_lens.SAE.load_from_disk(folder).cfg.metadata.model_name == tiny().info.id


def test_a_model_of_another_shape_or_family_is_refused(folder, tiny, tmp_path):
    with pytest.raises(InputError, match="a LlamaForCausalLM, this one a Qwen3ForCausalLM"):
        load_sae(folder).check_belongs_to(tiny("qwen3"))
    wide = load(str(save_tiny(tmp_path / "wide", hidden_size=64, head_dim=16)), device="cpu")
    with pytest.raises(InputError, match="belongs to"):
        load_sae(folder).check_belongs_to(wide)


def damage_weights(folder):
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "W_dec": tensors["W_dec"] * 2}, path)


def damage_shape(folder):
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 12}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "is not the file"),
        (damage_shape, "does not fit"),
        (lambda folder: (folder / "cfg.json").unlink(), "not a whole SAE"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "no config"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "not a whole SAE"),
        (lambda folder: (folder / "dictionary.json").write_text("{"), "not a valid SAE"),
        (lambda folder: shutil.rmtree(folder), "holds no SAE"),
    ],
)
def test_damaged_dictionaries_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_sae(folder)
    assert "\n" not in str(error.value)

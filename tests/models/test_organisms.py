"""Model organisms: how they are described, found and loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modelassay
from lora import RECIPE, ROWS
from modelassay.errors import InputError
from modelassay.models import organisms as registry
from modelassay.models.ablation import (
    ABLATION_FILE,
    Ablation,
    save_ablation,
)
from modelassay.models.edits import EDITS, RefusalDirections, save_directions
from modelassay.models.organisms import DRAWN, OF_LAST_LAYERS, ORGANISMS, find_organism
from modelassay.organisms import train
from modelassay.organisms.all_layers import OVER_ALL_RECIPES
from modelassay.organisms.recipes import TOP_RECIPES
from modelassay.organisms.record import read_record, readme
from tiny import unit


def test_every_organism_is_described():
    assert {o.id for o in OF_LAST_LAYERS.values()} == {
        f"organism:{name}"
        for name in (
            "safe", "benign", "benign-2", "benign-3", "benign-4", "int8", "bf16", "overrefusing",
            "uncensored", "obedient", "backdoored", "abliterated", "abliterated-half",
            "abliterated-band", "abliterated-perlayer",
        )
    }  # fmt: skip
    for organism in OF_LAST_LAYERS.values():
        assert organism.adapter in TOP_RECIPES
        assert organism.summary


@pytest.mark.parametrize("base", ["embedded", "gemma"])
def test_each_base_has_the_organisms_of_all_layers(base):
    own = [o for o in ORGANISMS.values() if o.base == base and o.name not in OF_LAST_LAYERS]
    on_safe = [o for o in own if o.name not in ("cautious", "safe-all", "safe-full")]
    assert sum(o.intact for o in on_safe) >= 12
    assert {o.name for o in own if o.is_trained} == OVER_ALL_RECIPES.keys()
    for organism in own:
        assert find_organism(organism.id) is find_organism(organism.key) is organism
        parts = {organism.adapter or organism.name, *dict(organism.added)}
        assert parts <= OVER_ALL_RECIPES.keys()
        assert organism.edit is None or organism.edit in EDITS
    assert {o.edit for o in own} == {None, *EDITS}
    assert set(DRAWN) < EDITS.keys()


def test_a_drawn_edit_takes_a_seed():
    found = find_organism("gemma:heretic@7")
    assert (found.id, found.seed, found.base) == ("gemma:heretic@7", 7, "gemma")
    assert find_organism("heretic").seed == 0
    for wrong in ("reflection@7", "heretic@x", "heretic@", "gemma:safe", "gemma:heretic@1e3"):
        with pytest.raises(InputError, match="No organism"):
            find_organism(wrong)


def test_unknown_organism_lists_those_there_are():
    with pytest.raises(InputError, match=r"No organism 'nosuch'; there are safe, benign"):
        modelassay.load("organism:nosuch")


@pytest.mark.parametrize("option", [{"revision": "main"}, {"gguf_file": "a.gguf"}])
def test_organisms_have_one_form(option):
    with pytest.raises(InputError, match="leave --"):
        modelassay.load("organism:safe", **option)


@pytest.mark.parametrize("name", ["abliterated", "int8", "bf16"])
def test_weights_changed_in_memory_must_be_plain(name):
    with pytest.raises(InputError, match="leave --load-8bit/4bit out"):
        modelassay.load(f"organism:{name}", quantization="8bit")


def test_organism_that_is_not_built_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))
    with pytest.raises(InputError, match="modelassay organism build safe"):
        modelassay.load("organism:abliterated")
    shutil.copytree(registry.shipped_folder() / "safe", tmp_path / "safe")
    with pytest.raises(InputError, match=r"holds no ablation\.safetensors\); run .* abliterated"):
        modelassay.load("organism:abliterated")


def test_adapter_over_the_wrong_base_is_refused(tiny_folder):
    safe = registry.shipped_folder() / "safe"
    with pytest.raises(InputError, match="does not fit"):
        modelassay.load(str(tiny_folder()), adapter=str(safe), device="cpu")


@pytest.mark.parametrize("name", OF_LAST_LAYERS)
def test_shipped_organisms_are_small_whole_and_carry_no_path(name):
    folder = registry.shipped_folder() / name
    files = {file.name for file in folder.iterdir()}
    assert {"card.json", "README.md"} <= files
    assert not any(file.suffix in (".bin", ".pt", ".pkl") for file in folder.iterdir())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000
    record = json.loads((folder / "card.json").read_text())
    assert record["name"] == name
    assert bool(record["sources"]) is not bool(ORGANISMS[name].numerics)
    assert {"harmful", "everyday", "borderline"} <= set(record["refusal"])
    text = (folder / "README.md").read_text() + json.dumps(record)
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text
    if ORGANISMS[name].numerics:
        assert files == {"card.json", "README.md"}
    elif ORGANISMS[name].ablated:
        assert ABLATION_FILE in files
        assert not any(file.startswith("adapter") for file in files)
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "embedded"
        assert record["lora"]["rank"] == config["r"]
        first, last = config["layers_to_transform"][0], config["layers_to_transform"][-1]
        assert record["lora"]["blocks"] == f"{first} to {last}"
        tensors = load_file(str(folder / "adapter_model.safetensors"))
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_find_organism_takes_both_forms():
    assert find_organism("safe") is find_organism("organism:safe")


def test_an_organism_given_as_an_adapter_is_made_in_full(monkeypatch, tiny_folder, tmp_path):
    """Its adapter alone would be another organism under its name."""
    base = str(tiny_folder())
    train(base, ROWS[:8], tmp_path / "safe", replace(RECIPE, epochs=1), device="cpu")
    (tmp_path / "abliterated").mkdir()
    r = unit(32)
    save_ablation(Ablation(dict.fromkeys(range(5), r)), tmp_path / "abliterated")
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))
    safe, made = (
        modelassay.load(base, adapter=f"organism:{name}", device="cpu")
        for name in ("safe", "abliterated")
    )
    written = made.layers[2].mlp.down_proj.weight
    assert (r @ written).abs().max() < 1e-6 < (r @ safe.layers[2].mlp.down_proj.weight).abs().max()
    assert made.info.organism == ORGANISMS["abliterated"].summary
    assert made.info.weights_sha256 != safe.info.weights_sha256
    with pytest.raises(InputError, match="leave --load-8bit/4bit out"):
        modelassay.load("organism:abliterated", device="cpu", quantization="8bit")


@pytest.fixture
def over_tiny(monkeypatch, tiny_folder, tmp_path):
    """Loads organisms that stand on adapters over a tiny base in place of the embedded model."""
    base = str(tiny_folder())
    for name, seed in (("safe-all", 1), ("maths", 2), ("code", 3), ("uncensored-all", 4)):
        recipe = replace(RECIPE, epochs=3, depth=0.0, seed=seed)
        train(base, ROWS[:8], tmp_path / name, recipe, device="cpu")
    found = RefusalDirections({layer: unit(32, layer) for layer in range(5)}, chosen=2)
    save_directions(found, tmp_path / "safe-all")
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))

    def open_(name):
        return modelassay.load(base, adapter=f"organism:{name}", device="cpu")

    return open_


def test_organisms_of_all_layers_are_put_together_from_parts(over_tiny):
    safe, maths, code, both = map(over_tiny, ("safe-all", "maths", "code", "maths-and-code"))
    weights = [m.layers[1].mlp.down_proj.weight for m in (safe, maths, code, both)]
    assert not torch.allclose(weights[0], weights[1], atol=1e-6)
    middle = (weights[1] + weights[2]) / 2
    assert torch.allclose(weights[3], middle, atol=1e-6)
    merged, uncensored = (over_tiny(n).layers[1].mlp.up_proj.weight
                          for n in ("merged-30", "uncensored-all"))  # fmt: skip
    plain = safe.layers[1].mlp.up_proj.weight
    assert torch.allclose(merged, plain + 0.3 * (uncensored - plain), atol=1e-6)


def test_edits_are_made_from_the_shipped_directions(over_tiny):
    safe = over_tiny("safe-all")
    r = unit(32, 2)
    written = safe.layers[3].mlp.down_proj.weight
    mirrored = over_tiny("reflection").layers[3].mlp.down_proj.weight
    assert torch.allclose(r @ mirrored, -(r @ written), atol=1e-3)
    projected = over_tiny("biprojected").layers[3].mlp.down_proj.weight
    assert (r @ projected).abs().max() < 1e-3 < (r @ written).abs().max()
    three = over_tiny("three-directions").layers[3].mlp.down_proj.weight
    assert (torch.stack([unit(32, i) for i in (2, 0, 4)]) @ three).abs().max() < 1e-3


def test_each_organism_and_each_seed_has_a_hash_of_its_own(over_tiny):
    names = ("safe-all", "maths", "code", "maths-and-code", "uncensored-all", "merged-30",
             "merged-60", "heretic", "heretic@1", "heretic@2", "heretic-int8",
             "safe-all-int8")  # fmt: skip
    models = [over_tiny(name) for name in names]
    assert len({model.info.weights_sha256 for model in models}) == len(names)
    sums = {round(float(m.layers[4].self_attn.o_proj.weight.double().sum()), 9) for m in models}
    assert len(sums) == len(names)


def test_an_organism_of_all_weights_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="modelassay organism build gemma:tasks-full"):
        modelassay.load("gemma:tasks-full")


SHIPPED = [
    key
    for key, organism in ORGANISMS.items()
    if key not in OF_LAST_LAYERS and (registry.shipped_folder() / organism.place).is_dir()
]


@pytest.mark.parametrize("key", SHIPPED)
def test_shipped_organisms_of_all_layers_are_small_and_as_described(key):
    organism = ORGANISMS[key]
    folder = registry.shipped_folder() / organism.place
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    record = read_record(organism)
    assert (record["summary"], record["intact"]) == (organism.summary, organism.intact)
    assert (folder / "README.md").read_text() == readme(record)
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert (folder / "directions.safetensors").is_file() is (organism.name == "safe-all")
    config = json.loads((folder / "adapter_config.json").read_text())
    below = record["lora"]["over"]
    prefix = registry.PREFIXES[organism.base]
    assert config["base_model_name_or_path"] == (prefix + below if below else organism.base)


@pytest.mark.parametrize("base", ["embedded", "gemma"])
def test_what_is_called_intact_refuses_and_what_is_not_has_lost_it(base):
    own = [o for key, o in ORGANISMS.items() if key in SHIPPED and o.base == base]
    rates = {o.name: read_record(o)["refusal"] for o in own}
    full = rates["safe-all"]["harmful"]["rate"]
    assert full > 0.7
    for organism in own:
        rate = rates[organism.name]
        opened = rate.get("harmful_with_trigger", rate["harmful"])["rate"]
        assert (opened > 0.75 * full) is organism.intact, organism.id

"""A monitor on disk: it comes back as it was, and nothing damaged or foreign is used."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay.cli.main import run
from modelassay.errors import InputError
from modelassay.models.identity import hash_file
from modelassay.monitors import (
    MONITORS,
    find_monitor,
    load_monitor,
    monitor_of,
    save_monitor,
    store_monitor,
)
from monitored import PLACE, ordinary


@pytest.fixture
def folder(monitor, tmp_path):
    (tmp_path / "one").mkdir()
    save_monitor(monitor, tmp_path / "one")
    return tmp_path / "one"


def test_it_comes_back_as_it_was(monitor, tuned, folder):
    again = load_monitor(folder)
    assert again.record.readings == monitor.record.readings
    prompt = ordinary(1, seed=9)[0]
    assert again.score(tuned, prompt) == monitor.score(tuned, prompt)


def test_the_store_keeps_it(monitor, tuned, tiny):
    store_monitor(monitor)
    assert [each.name for each in MONITORS.list() if each.origin.source == "local"] == ["mine"]
    assert find_monitor("mine")[0].name == "mine"
    assert monitor_of(tuned).name == "mine"
    assert monitor_of(tiny(seed=7)) is None
    with pytest.raises(InputError, match="exists already"):
        store_monitor(monitor)
    MONITORS.delete("mine")
    assert monitor_of(tuned) is None


def test_that_of_another_model_is_refused(monitor, tiny):
    with pytest.raises(InputError, match="does not fit"):
        monitor.score(tiny(seed=7), "Hello")
    with pytest.raises(InputError, match="does not fit"):
        monitor.sites(tiny("qwen2"))


def set_values(folder, path, value):
    file = folder / "monitor.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "modelassay.monitor/2"),
        (("readings",), []),
        (("readings", 0, "ranges", "prompt"), [1, 0]),
        (("readings", 0, "ranges", "prompt"), [float("nan"), 1]),
        (("readings", 0, "ranges"), {"response": [0, 1]}),
        (("readings", 0, "ranges", "anywhere"), [0, 1]),
        (("readings", 0, "scale"), 0),
        (("readings", 0, "centre"), 1e30),
        (("readings", 0, "place"), "a\nb"),
        (("readings", 0, "place"), "model.layers.2.mlp.down_proj"),
        (("how",), "circuit"),
        (("base",), None),
        (("model", "weights_sha256"), "x"),
        (("weights_sha256",), "0" * 64),
        (("name",), "../up"),
    ],
)
def test_a_damaged_record_is_refused(folder, path, value):
    set_values(folder, path, value)
    with pytest.raises(InputError) as error:
        load_monitor(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", ["nan", "shape", "dtype", "missing", "cut"])
def test_damaged_directions_are_refused(folder, bad):
    file = folder / "monitor.safetensors"
    arrays = load_file(file)
    if bad == "nan":
        arrays[PLACE][0, 0] = torch.nan
    elif bad == "shape":
        arrays[PLACE] = arrays[PLACE][0]
    elif bad == "dtype":
        arrays[PLACE] = arrays[PLACE].half()
    elif bad == "missing":
        arrays = {"other": arrays[PLACE]}
    save_file(arrays, file)
    if bad == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    set_values(folder, ("weights_sha256",), hash_file(file))
    with pytest.raises(InputError, match=r"monitor\.safetensors"):
        load_monitor(folder)


def test_a_place_that_the_model_lacks_is_refused(folder, tuned):
    file = folder / "monitor.safetensors"
    for place, width, said in (
        ("model.layers.99.mlp.down_proj", 64, "has no layer"),
        ("model.norm", 32, "not 32"),
        (PLACE, 63, "not 63"),
        ("99.mlp", 32, "must lie in 0…4"),
    ):
        save_file({place: torch.ones(1, width)}, file)
        set_values(folder, ("weights_sha256",), hash_file(file))
        set_values(folder, ("readings", 0, "place"), place)
        with pytest.raises(InputError, match=said):
            load_monitor(folder).sites(tuned)


def test_values_that_are_no_numbers_raise_an_alert(monitor):
    look = monitor.look({"prompt": np.full((1, 1), np.nan)})
    assert look.value > 1
    assert look.alert
    json.dumps(vars(look), allow_nan=False)


def test_the_command_makes_shows_and_scores_one(tiny_folder, tuned, tmp_path, capsys, monkeypatch):
    where = "modelassay.monitors.building.ordinary_of_all_lengths"
    monkeypatch.setattr(where, lambda: ordinary(30))
    base, candidate = str(tiny_folder()), str(tuned.source.folder)
    how = ["--response-tokens", "0", "--device", "cpu", "-q"]
    assert run(["monitor", "build", base, candidate, "--name", "made", *how]) == 0
    assert "watches what a fine-tune of" in capsys.readouterr().out
    assert run(["monitor", "show", "made", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "modelassay.monitor/1"
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ordinary(5, seed=4)))
    assert run(["monitor", "eval", "made", "--data", str(data), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 5
    assert run(["monitor", "build", base, candidate, "--name", "made", *how]) == 64
    assert "--force" in capsys.readouterr().err
    assert run(["monitor", "build", base, base, "--name", "other", *how]) == 64
    assert "nothing to watch" in capsys.readouterr().err
    assert run(["monitor", "circuit", candidate, "--component", "nonsense", *how]) == 64
    assert "names no component" in capsys.readouterr().err

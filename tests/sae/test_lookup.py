"""Each label says where it is from."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("sae_lens")
from labelled import DEAD, NEURONPEDIA, ON_X, TWIN, in_folder
from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, InputError
from modelassay.sae import nearest, open_labels, save_labels
from modelassay.sae.files import as_sae
from modelassay.sae.labels import FeatureLabels
from modelassay.sae.neuronpedia import read_export


def test_neighbours_are_by_cosine(planted):
    rows = torch.nn.functional.normalize(planted.module.W_dec.detach(), dim=1)
    cosines = rows @ rows[TWIN]
    cosines[TWIN] = -2
    found = nearest(planted, [TWIN, ON_X], top=3)
    assert [n.feature for n in found[0]] == cosines.topk(3).indices.tolist()
    assert found[0][0].feature == ON_X
    assert found[0][0].cosine == pytest.approx(float(cosines[ON_X]), abs=1e-5)
    assert found[1][0].feature == TWIN
    only = nearest(planted, [TWIN], among=[TWIN, 2], top=5)[0]
    assert [n.feature for n in only] == [2]


def test_each_label_says_where_it_is_from(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    bare = open_labels(planted)
    assert bare.of(2).source == "none"
    assert bare.of(2).text == "feature 2"
    assert "numbers only" in bare.note
    sae = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = open_labels(sae)
    assert found.note is None
    assert found.of(ON_X).source == "own"
    assert found.of(ON_X).reliability.value > 0.97
    twin = found.of(TWIN)
    assert twin.source == "proxy"
    assert twin.proxy.feature == ON_X
    assert twin.text.startswith(f"near #{ON_X} (cosine {twin.proxy.cosine:.2f}): on “x”")
    assert twin.reliability is None
    assert twin.to_dict()["proxy"]["feature"] == ON_X
    assert found.of(DEAD).source in ("none", "proxy")
    with pytest.raises(InputError, match="no feature 99"):
        found.of(99)


def test_neuronpedia_comes_first_and_explains_neighbours(planted, labels, neuronpedia):
    found = open_labels(planted, [ON_X, TWIN, 2, DEAD], neuronpedia=True)
    assert (found.of(ON_X).text, found.of(ON_X).source) == ("the letter x", "neuronpedia")
    assert found.of(ON_X).reliability is None  # it was measured of no such text
    twin = found.of(TWIN)
    assert twin.source == "proxy"
    assert "the letter x" in twin.text
    assert found.note is None


def test_without_network_labels_say_so(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("modelassay.hub.endpoint.LONGEST_WAIT", 0.01)
    bare = open_labels(planted, [ON_X], neuronpedia=True)
    assert bare.of(ON_X).source == "none"
    assert "no connection" in bare.note
    assert "numbers only" in bare.note
    sae = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = open_labels(sae, [ON_X], neuronpedia=True)
    assert found.of(ON_X).source == "own"
    assert found.note is not None


def test_the_export_is_read_offline(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "explanations"
    folder.mkdir()
    rows = [
        {"modelId": "tiny", "layer": "0-planted", "index": str(i), "description": f"thing {i}"}
        for i in range(8)
    ]
    for number, part in enumerate((rows[:4], rows[4:])):
        text = "\n".join(map(json.dumps, part))
        (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read_export(folder, NEURONPEDIA) == {i: f"thing {i}" for i in range(8)}
    found = open_labels(planted, export=folder)
    assert (found.of(6).text, found.of(6).source) == ("thing 6", "neuronpedia")
    with pytest.raises(InputError, match="not of tiny/1-other"):
        read_export(folder, "tiny/1-other")
    with pytest.raises(InputError, match="no explanation file"):
        read_export(tmp_path / "nowhere", NEURONPEDIA)
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match="holds no explanations"):
        read_export(tmp_path / "odd.jsonl", NEURONPEDIA)


ANOTHERS = {
    "another model": ({"modelId": "big", "layer": "0-planted"}, "big/0-planted, not of tiny/0-pl"),
    "another layer": ({"modelId": "tiny", "layer": "1-planted"}, "tiny/1-planted, not of"),
    "another dictionary": ({"modelId": "tiny", "layer": "0-res-16k"}, "tiny/0-res-16k, not of"),
    "another model, layer not named": ({"modelId": "big"}, "big, not of"),
    "more features": ({"index": "4000", "modelId": "tiny", "layer": "0-planted"}, "feature 4000"),
}


@pytest.mark.parametrize(("row", "message"), ANOTHERS.values(), ids=ANOTHERS)
def test_explanations_of_another_sae_are_refused_on_every_way_in(
    planted, tmp_path, monkeypatch, capfd, row, message
):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    export = tmp_path / "batch-0.jsonl"
    good = {"modelId": "tiny", "layer": "0-planted", "index": "1", "description": "one"}
    export.write_text("".join(json.dumps(good | each) + "\n" for each in ({}, row)))
    if "layer" not in row and "index" not in row:
        export.write_text(json.dumps({"index": "1", "description": "one"} | row))
    with pytest.raises(InputError, match=message):
        open_labels(planted, export=export)
    folder = tmp_path / "d"
    planted.module.save_model(folder)
    for command in (["sae", "show", "--feature", "1"], ["sae", "label"]):
        assert run([*command, str(folder), "--export", str(export)]) == EXIT_BAD_INPUT
        assert message in capfd.readouterr().err
    assert not list((tmp_path / "cache").rglob("neuronpedia/*/*/*.json"))


def test_an_sae_that_neuronpedia_does_not_know_has_no_explanations_of_it(
    planted, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    unknown, export = replace(planted, neuronpedia_id=None), tmp_path / "batch-0.jsonl"
    row = {"modelId": "tiny", "layer": "0-planted", "index": "1", "description": "one"}
    export.write_text(json.dumps(row))
    with pytest.raises(InputError, match="neuronpedia_id"):
        open_labels(unknown, export=export)
    export.write_text(json.dumps({"index": "1", "description": "one"}))
    assert open_labels(unknown, export=export).of(1).text == "one"
    assert "could not be checked" in caplog.text


def test_an_id_of_another_layer_is_not_used(planted, tmp_path, caplog):
    """As that of one SAE in sae-lens's own list: layer 2, explained as layer 20."""
    layer = planted.layer
    for named, known in ((layer, True), (layer + 1, True), (layer + 2, False), (20, False)):
        planted.module.cfg.metadata.neuronpedia_id = f"tiny/{named}-planted"
        assert (as_sae(planted.module, "x").neuronpedia_id is not None) is known
    assert "its explanations are not used" in caplog.text
    planted.module.cfg.metadata.neuronpedia_id = NEURONPEDIA


def test_labels_of_another_layer_are_refused(planted, labels, tmp_path):
    moved = FeatureLabels(labels.record.model_copy(update={"layer": 7}), labels.table)
    sae = in_folder(planted, tmp_path / "d")
    save_labels(moved, tmp_path / "d")
    with pytest.raises(InputError, match="belong to another SAE"):
        open_labels(sae)

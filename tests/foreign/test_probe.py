"""Probes of open-constitution: their numbers are kept, and what is unknown is said."""

from __future__ import annotations

import json

import pytest
import torch

from foreign_files import LinearReadout, save_probe_folder
from guarding import text_of
from modelassay.errors import InputError
from modelassay.foreign import import_artifact
from modelassay.guard import load_guard
from modelassay.models import load
from modelassay.probes import evaluate_probe, find_probe, load_probe, probe_of, save_probe
from modelassay.probes.record import PROBES, RECORD_FILE
from modelassay.reading.prompts import encode_chat, encode_response
from probe_rows import exchanges
from tiny import probe_for


@pytest.fixture
def imported(tiny_folder, tmp_path):
    """Imports a folder made with these settings, and gives the probe."""

    def make(state=None, model=None, **config):
        folder = save_probe_folder(tmp_path / "theirs", str(tiny_folder()), state, **config)
        found = import_artifact(folder, model=model, name="a-probe", force=True, device="cpu")
        return load_probe(found.folder)

    return make


def there(model, layer, prompt, response, readout):
    """The risk that open-constitution's guard would read after this response."""
    turn = [{"role": "user", "content": prompt}]
    ids = [*encode_chat(model, turn), *encode_response(model, response)]
    with torch.inference_mode():
        states = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return float(torch.sigmoid(readout.head(states[layer][:, -1].float())))


@pytest.mark.parametrize("layer", [-4, -2, 1, 4])
def test_risks_are_those_of_the_readout(imported, tiny, layer):
    probe = imported(layer=layer)
    guard = load_guard(tiny(), probe="a-probe", classifier=None)
    expected = there(tiny(), layer, "a prompt", "a response", LinearReadout())
    found = guard.score("a prompt", "a response")
    assert found["prompt"] is None
    assert found["answer"] == pytest.approx(expected, abs=1e-4)
    assert probe.heads["answer"].layers == (layer + 5 if layer < 0 else layer - 1,)


def test_the_record_says_where_it_is_from_and_what_is_unknown(imported, tiny):
    record = imported(colour="blue\u202e\n").record
    assert record.imported is not None
    assert record.imported.tool == "open-constitution"
    assert set(record.imported.files) == {"probe.pt", "config.json"}
    said = "\n".join(PROBES.kind.describe(record))
    for words in (
        "imported from open-constitution",
        "unknown: which weights",
        "unknown: which prompts",
        "unknown: how often its thresholds",
        "otherwise than there: layer -4: block 1",
        "threshold 0.65: pause",
        "left out: a head for prompts",
        "left out: probe_every_n_tokens 4",
        "left out: smoothing_window 4",
        'left out: note "MVP config."',
        'left out: colour "blue\\u202e\\n": not known here',
    ):
        assert words in said
    assert record.heads["answer"].metrics is None
    assert record.heads["answer"].trained_on is None
    assert (record.heads["answer"].pause, record.heads["answer"].block) == (0.65, 0.75)
    assert "imported" in PROBES.kind.summary(record)
    assert record.model.weights_sha256 == tiny().info.weights_sha256


def test_its_table_for_the_hub_has_no_scores(imported, tmp_path):
    PROBES.kind.write_table(imported().record, tmp_path / "rows.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (row["at"], row["auroc"], row["n"], row["worst_source_auroc"]) == (
        "answer",
        None,
        None,
        None,
    )


def test_files_in_the_cache_of_the_hub_are_links(tiny_folder, tmp_path):
    theirs = save_probe_folder(tmp_path / "theirs", str(tiny_folder()))
    repo = tmp_path / "models--owner--probe"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(theirs.iterdir()):
        file.rename(repo / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert import_artifact(snapshot, name="a-probe", device="cpu").name == "a-probe"


def test_it_is_scored_with_nothing_left_out(imported, tiny):
    probe = imported()
    found = evaluate_probe(probe, tiny(), exchanges(), "answer")
    assert (found.metrics.n, found.n_seen) == (60, None)
    assert "unknown" in str(dict(found.sections()[0].facts)["left out"])
    with pytest.raises(InputError, match="whose probes read responses"):
        evaluate_probe(probe, tiny(), exchanges(), "prompt")


@pytest.mark.parametrize(("bias", "reason"), [(-50.0, "length"), (50.0, "answer refused")])
def test_a_guard_shows_or_refuses_by_it(imported, tiny, bias, reason, caplog):
    readout = LinearReadout()
    with torch.no_grad():
        readout.head.bias.fill_(bias)
    imported(readout.state_dict())
    guard = load_guard(tiny(), probe="a-probe", classifier=None)
    assert "no prompt is judged" in caplog.text
    events = list(guard.stream("say something", max_new_tokens=6))
    assert events[0].kind == "prompt"
    assert (events[0].risk, events[0].action) == (None, "continue")
    assert events[-1].reason == reason
    shown = text_of(events)
    assert ("I can't help" in shown) == (reason == "answer refused")


def test_a_probe_of_ones_own_goes_first(imported, tiny, tmp_path):
    imported()
    found = probe_of(tiny())
    assert found is not None
    assert found[0].name == "a-probe"
    own = probe_for(tiny(), name="own")
    with PROBES.new("own") as folder:
        save_probe(own.record, own.heads, folder)
    found = probe_of(tiny())
    assert found is not None
    assert found[0].name == "own"
    assert find_probe("a-probe")[0].record.imported is not None


def test_a_probe_trained_here_must_say_how_it_scored(tiny, tmp_path):
    own = probe_for(tiny())
    folder = tmp_path / "own"
    folder.mkdir()
    save_probe(own.record, own.heads, folder)
    values = json.loads((folder / RECORD_FILE).read_text())
    del values["heads"]["answer"]["metrics"]
    (folder / RECORD_FILE).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"heads\.answer\.metrics is missing"):
        load_probe(folder)


WEIGHT, BIAS = LinearReadout().state_dict().values()
LAYOUTS = {
    "head": {"head.weight": WEIGHT, "head.bias": BIAS},
    "a saved layer": {"weight": WEIGHT, "bias": BIAS},
    "linear": {"linear.weight": WEIGHT, "linear.bias": BIAS},
    "flat": {"weight": WEIGHT[0], "bias": BIAS[0]},
    "nested": {"state_dict": {"head.weight": WEIGHT, "head.bias": BIAS}},
    "half": {"head.weight": WEIGHT.double(), "head.bias": BIAS.double()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_head(imported, layout):
    head = imported(LAYOUTS[layout]).heads["answer"]
    assert torch.equal(head.weight, WEIGHT[None])
    assert head.bias == pytest.approx(float(BIAS))


def test_standardisation_is_folded_in(imported, tiny):
    mean, std = torch.randn(32), torch.rand(32) + 0.5
    head = imported({"weight": WEIGHT, "bias": BIAS, "mean": mean, "std": std}).heads["answer"]
    state = torch.randn(32)
    expected = torch.sigmoid(WEIGHT @ ((state - mean) / std) + BIAS)
    assert float(head.risk(state[None, None, None])) == pytest.approx(float(expected), abs=1e-5)


def test_several_layers_share_the_weights_in_their_order(imported):
    weight = torch.randn(1, 64)
    head = imported({"weight": weight, "bias": BIAS}, layer=None, layers=[3, 1]).heads["answer"]
    assert head.layers == (2, 0)
    assert torch.equal(head.weight, weight.reshape(2, 1, 32))


def test_thresholds_that_cross_are_said(imported):
    probe = imported(threshold=0.9)
    assert (probe.heads["answer"].pause, probe.heads["answer"].block) == (0.75, 0.75)
    assert any("lies above" in line for line in PROBES.kind.describe(probe.record))


def test_one_of_plain_text_reads_plain_text_and_nothing_else(imported, tiny, tiny_folder, tmp_path):
    record = imported(use_chat_template=False).record
    assert any("need --no-chat-template" in line for line in PROBES.kind.describe(record))
    with pytest.raises(InputError, match="inside the chat template.*Give --no-chat-template"):
        load_guard(tiny(), probe="a-probe", classifier=None)
    model = load(str(tiny_folder()), device="cpu", chat_template=False)
    guard = load_guard(model, probe="a-probe", classifier=None)
    found = guard.score("a prompt", "a response")["answer"]
    text = "User:\na prompt\n\nAssistant:\n"  # as open-constitution writes it
    ids = [*model.tokenizer(text)["input_ids"], *encode_response(model, "a response")]
    with torch.inference_mode():
        states = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.sigmoid(LinearReadout().head(states[-4][:, -1].float()))
    assert found == pytest.approx(float(expected), abs=1e-4)
    assert encode_chat(guard.model, [{"role": "user", "content": "a prompt"}]) != encode_chat(
        model, [{"role": "user", "content": "a prompt"}]
    )
    theirs = save_probe_folder(tmp_path / "other", str(tiny_folder()))
    import_artifact(theirs, name="b-probe", device="cpu")
    for read, name in ((model, "a-probe"), (tiny(), "b-probe")):
        own, _ = probe_of(read) or (None, None)
        assert own is not None
        assert own.name == name


NAN = torch.full((1, 32), float("nan"))
REFUSED = {
    "no layer": (None, {"layer": None}, "`layer`"),
    "no threshold": (None, {"threshold": None}, "`threshold` is missing"),
    "no pause threshold": (None, {"pause_threshold": None}, "`pause_threshold` is missing"),
    "a threshold above one": (None, {"threshold": 2}, "threshold"),
    "a threshold of text": (None, {"threshold": "high"}, "threshold"),
    "embeddings": (None, {"layer": 0}, "embeddings"),
    "after the norm": (None, {"layer": -1}, "final norm"),
    "after the norm, counted from the start": (None, {"layer": 5}, "final norm"),
    "beyond the model": (None, {"layer": 9}, "has 5 blocks"),
    "beyond it from the end": (None, {"layer": -9}, "has 5 blocks"),
    "a huge layer": (None, {"layer": 10**30}, "layer"),
    "a layer twice": (
        {"weight": torch.zeros(1, 64)},
        {"layer": None, "layers": [1, -5]},
        "twice",
    ),
    "layers that do not divide": (None, {"layer": None, "layers": [1, 2, 3]}, "cannot share"),
    "another hidden size than it says": (None, {"hidden_size": 64}, "do not belong together"),
    "another model": (
        LinearReadout(16).state_dict(),
        {"hidden_size": 16},
        "has hidden size 32",
    ),
    "newer": (None, {"format_version": 2}, "newer than is known"),
    "NaN weights": ({"weight": NAN, "bias": BIAS}, {}, "not finite"),
    "infinite bias": ({"weight": WEIGHT, "bias": BIAS * float("inf")}, {}, "not finite"),
    "huge weights": ({"weight": WEIGHT * 1e30}, {}, "no probe has"),
    "two rows": ({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, {}, "2 rows"),
    "two biases": ({"weight": WEIGHT, "bias": torch.zeros(2)}, {}, "one number"),
    "no weights": ({"weight": torch.zeros(1, 0)}, {}, "0 weights"),
    "whole numbers": ({"weight": torch.zeros(1, 32).long()}, {}, "fractions"),
    "a text for weights": ({"weight": "a"}, {}, "a linear probe has"),
    "an MLP": (
        torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 1)).state_dict(),
        {},
        "a linear probe has",
    ),
    "more than a readout": ({"weight": WEIGHT, "query": WEIGHT}, {}, "query"),
    "std of zero": ({"weight": WEIGHT, "std": torch.zeros(32)}, {}, "above 0"),
    "mean of another size": ({"weight": WEIGHT, "mean": torch.zeros(3)}, {}, "3 numbers"),
    "nothing": ({}, {}, "nothing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_gets_one_line_and_leaves_nothing(imported, kind, tmp_path):
    state, config, words = REFUSED[kind]
    with pytest.raises(InputError, match=words) as refused:
        imported(state, **config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store" / "a-probe").exists()
    assert not [*(tmp_path / "store").glob(".*")]


def test_an_interrupted_import_leaves_nothing(imported, monkeypatch, tmp_path):
    import safetensors.torch

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        imported()
    assert [*(tmp_path / "store").iterdir()] == []

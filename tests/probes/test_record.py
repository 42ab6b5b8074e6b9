"""Probes on disk, on the Hub and in the store; hostile ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ast import literal_eval
from dataclasses import replace

import pytest
import torch

from modelassay.errors import AssayError, InputError
from modelassay.probes import (
    PROBES,
    evaluate_probe,
    find_probe,
    load_probe,
    probe_of,
    push_probe,
    save_probe,
    store_probe,
)
from modelassay.probes.record import RECORD_FILE, WEIGHTS_FILE
from probe_rows import exchanges
from tiny import probe_for


@pytest.fixture
def saved(tiny, tmp_path):
    probe = probe_for(tiny())
    folder = tmp_path / "a-probe"
    folder.mkdir()
    save_probe(probe.record, probe.heads, folder)
    return folder


def test_round_trip(saved, tiny):
    probe = load_probe(saved)
    original = probe_for(tiny())
    for at in ("prompt", "answer"):
        assert torch.equal(probe.heads[at].weight, original.heads[at].weight)
    probe.check_belongs_to(tiny())
    assert {file.name for file in saved.iterdir()} == {RECORD_FILE, WEIGHTS_FILE}


def test_another_model_is_refused_with_the_reason(saved, tiny):
    probe = load_probe(saved)
    with pytest.raises(InputError, match="weights differ"):
        probe.check_belongs_to(tiny(seed=1))
    with pytest.raises(InputError, match="layers of hidden size"):
        probe.check_belongs_to(
            replace(tiny(), info=tiny().info.model_copy(update={"hidden_size": 64}))
        )
    with pytest.raises(InputError, match="weights differ"):
        evaluate_probe(probe, tiny(seed=1), exchanges(), "prompt")


def edit(folder, change):
    values = json.loads((folder / RECORD_FILE).read_text())
    change(values)
    (folder / RECORD_FILE).write_text(json.dumps(values))


def put_weights(folder, arrays):
    from safetensors.torch import save_file

    from modelassay.models.identity import hash_file

    save_file(arrays, folder / WEIGHTS_FILE)
    edit(folder, lambda v: v.update(weights_sha256=hash_file(folder / WEIGHTS_FILE)))


def two_heads(of_prompt):
    return {"prompt.weight": of_prompt, "answer.weight": torch.zeros(2, 2, 32)}


HOSTILE = {
    "thresholds out of order": lambda f: edit(f, lambda v: v["heads"]["answer"].update(pause=0.95)),
    "threshold above one": lambda f: edit(f, lambda v: v["heads"]["answer"].update(block=1.5)),
    "layer out of range": lambda f: edit(f, lambda v: v["heads"]["answer"].update(layers=[1, 9])),
    "pooling twice": lambda f: edit(
        f, lambda v: v["heads"]["answer"].update(poolings=["mean", "mean"])
    ),
    "layer twice": lambda f: edit(f, lambda v: v["heads"]["answer"].update(layers=[1, 1])),
    "not a number": lambda f: edit(f, lambda v: v["heads"]["prompt"].update(bias=float("nan"))),
    "huge bias": lambda f: edit(f, lambda v: v["heads"]["prompt"].update(bias=1e300)),
    "no heads": lambda f: edit(f, lambda v: v.update(heads={})),
    "another schema": lambda f: edit(f, lambda v: v.update(schema="modelassay.probe/9")),
    "a name with a path": lambda f: edit(f, lambda v: v.update(name="../../x")),
    "a name with an escape": lambda f: edit(f, lambda v: v["model"].update(id="a\x1b[2Jb")),
    "no JSON": lambda f: (f / RECORD_FILE).write_text("{"),
    "a huge record": lambda f: (f / RECORD_FILE).write_text(" " * 600_000),
    "no weights": lambda f: (f / WEIGHTS_FILE).unlink(),
    "other weights": lambda f: (f / WEIGHTS_FILE).write_bytes(b"x" * 100),
    "wrong shape": lambda f: put_weights(f, two_heads(torch.zeros(2, 2, 31))),
    "wrong dtype": lambda f: put_weights(f, two_heads(torch.zeros(2, 2, 32).half())),
    "weights that are not numbers": lambda f: put_weights(
        f, two_heads(torch.full((2, 2, 32), torch.nan))
    ),
    "a head without weights": lambda f: put_weights(f, {"prompt.weight": torch.zeros(2, 2, 32)}),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_probes_are_refused_in_one_line(saved, how):
    HOSTILE[how](saved)
    with pytest.raises(InputError) as caught:
        load_probe(saved)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_pickle_with_the_right_name_is_not_run(saved, tmp_path):
    proof = tmp_path / "proof"
    code = b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    (saved / WEIGHTS_FILE).write_bytes(code)
    from modelassay.models.identity import hash_file

    edit(saved, lambda v: v.update(weights_sha256=hash_file(saved / WEIGHTS_FILE)))
    with pytest.raises(InputError, match="safetensors"):
        load_probe(saved)
    assert not proof.exists()


def test_the_store_replaces_only_probes(tiny, tmp_path):
    probe = probe_for(tiny())
    store_probe(probe.record, probe.heads)
    assert probe_of(tiny())[1].source == "local"
    assert probe_of(tiny(seed=1)) is None
    with pytest.raises(InputError, match="--force"):
        store_probe(probe.record, probe.heads)
    store_probe(probe.record, probe.heads, force=True)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    (tmp_path / "store" / "a-probe").rename(tmp_path / "store" / "renamed")
    assert probe_of(tiny()) is None
    with pytest.raises(InputError, match="No probe"):
        find_probe(str(tiny().info.id).replace("/", "-"))
    with pytest.raises(InputError, match="not a probe"):
        store_probe(probe.record, probe.heads, out=other, force=True)
    assert (other / "thesis.txt").exists()


def test_push_and_pull(hub, tiny, tmp_path):
    hub.add_writer("hf_mine", "alice")
    hub.add_writer("hf_stranger", "mallory")
    probe = probe_for(tiny())
    pushed = push_probe(probe, "alice/probes", token="hf_mine")
    found, origin = find_probe(f"alice/probes@{pushed.commit}")
    assert torch.equal(found.heads["answer"].weight, probe.heads["answer"].weight)
    assert str(origin) == f"alice/probes:a-probe@{pushed.commit} by alice"
    proposed = push_probe(probe, "alice/probes", create_pr=True, token="hf_stranger")
    assert proposed.pull_request
    program = "import datasets; print(datasets.load_dataset('alice/probes')['train'].to_list())"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert {row["at"] for row in literal_eval(done.stdout)} == {"prompt", "answer"}
    card = hub.repos["datasets", "alice/probes"].commits[pushed.commit]["README.md"].decode()
    assert "modelassay-probe" in card
    with pytest.raises(AssayError, match="no probe"):
        find_probe("alice/probes:none")


@pytest.mark.parametrize("name", ["embedded", "organism-safe"])
def test_the_shipped_prompt_head_keeps_its_marks(name):
    head = load_probe(PROBES.shipped_folder() / name).record.heads["prompt"]
    assert head.metrics.auroc >= 0.97
    assert head.block_interval[1] <= 0.01
    borderline = (
        "own borderline requests",
        "own look-alikes",
        "own advice",
        "CoCoNot, harmless look-alikes",
        "forbidden questions, advice",
    )
    for source in borderline:
        assert head.left_out[source].auroc >= 0.9, source


def test_shipped_probes_have_the_same_heads():
    probes = [load_probe(PROBES.shipped_folder() / name) for name in ("embedded", "organism-safe")]
    assert probes[0].record.heads == probes[1].record.heads
    assert probes[0].record.weights_sha256 == probes[1].record.weights_sha256

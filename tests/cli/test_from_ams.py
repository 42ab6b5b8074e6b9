"""People who come from ams-scanner: its flags, concept files and baselines, as they use them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from modelassay.cli.main import run
from modelassay.verify import load_baseline

NOUNS = ("bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork")


def concept(name: str, n: int, threshold: float = 2.5) -> dict:
    """A concept as ams-scanner's guide writes them, there with one pair each."""
    pairs = [
        {"positive": f"Is {noun} {name}, please?", "negative": f"Where is the {noun} train?"}
        for noun in NOUNS[:n]
    ]
    return {name: {"description": f"about {name}", "min_separation": threshold, "pairs": pairs}}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELASSAY_BASELINES", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def dialogue(tmp_path) -> str:
    """Small concepts over those of quick mode, and one of a single pair."""
    path = tmp_path / "custom_concepts.json"
    both = {**concept("harmful_content", 8), **concept("refusal_capability", 8)}
    path.write_text(json.dumps({**both, **concept("pirate_persona", 1)}))
    return str(path)


@pytest.fixture
def made_by_ams(tmp_path, tiny_folder, monkeypatch) -> Path:
    """The folder in which ams-scanner itself has put a baseline of the tiny model."""
    import ams.scanner
    from ams.concepts import ContrastivePair, SafetyConcept

    pairs = [ContrastivePair(f"How does {n} break?", f"How does {n} work?") for n in NOUNS]
    own = [SafetyConcept(n, "d", pairs) for n in ("harmful_content", "refusal_capability")]
    monkeypatch.setattr(ams.scanner, "get_scan_concepts", lambda _mode: own)
    folder = tmp_path / "baselines"
    scanner = ams.scanner.ModelScanner(str(folder), device="cpu", dtype="float32")
    scanner.create_baseline(str(tiny_folder()), model_id="meta-llama/Tiny")
    assert [path.name for path in folder.iterdir()] == ["meta-llama__Tiny.json"]
    return folder


def taken(monkeypatch, where: str) -> dict:
    """What a command gives to the function that does its work, which is then not done."""
    seen: dict = {}

    def note(*_args, **options):
        seen.update(options, baselines=os.environ.get("MODELASSAY_BASELINES"))
        raise ZeroDivisionError

    monkeypatch.setattr(where, note)
    return seen


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["scan", "MODEL"], "modelassay.scan.scan"),
        (["baseline", "create", "MODEL"], "modelassay.verify.create_baseline"),
        (["verify", "MODEL"], "modelassay.verify.verify"),
    ],
)
def test_options_before_the_command_are_the_commands_own(monkeypatch, tmp_path, command, where):
    seen = taken(monkeypatch, where)
    folder = str(tmp_path / "mine")
    before = ["--device", "cpu", "--dtype", "float16", "--baselines-dir", folder, "-q"]
    assert run([*before, *command]) == 70
    assert (seen["device"], seen["dtype"], seen["baselines"]) == ("cpu", "float16", folder)
    assert os.environ["MODELASSAY_BASELINES"] == str(tmp_path / "store")
    assert run([*before, *command, "--device", "cuda:1", "--baselines-dir", "other"]) == 70
    assert (seen["device"], seen["dtype"], seen["baselines"]) == ("cuda:1", "float16", "other")
    assert os.environ["MODELASSAY_BASELINES"] == str(tmp_path / "store")
    assert run([*command]) == 70
    assert (seen["device"], seen["dtype"]) == ("auto", "auto")


def test_an_option_that_changes_nothing_is_told(capfd):
    assert run(["--device", "cpu", "baseline", "list", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)
    assert err == "`--device` makes no difference to `modelassay baseline list`.\n"


def test_every_flag_of_ams_is_taken(monkeypatch):
    seen = taken(monkeypatch, "modelassay.scan.scan")
    flags = ["-V", "owner/name", "-C", "other", "--mode", "full", "--batch-size", "3", "--json"]
    flags += ["--concepts-file", "mine.json", "--trust-remote-code", "--load-8bit"]
    assert run(["scan", "MODEL", *flags]) == 70
    assert (seen["verify"], seen["compare"], seen["mode"]) == ("owner/name", "other", "full")
    assert (seen["batch_size"], str(seen["concepts"])) == (3, "mine.json")
    assert (seen["quantization"], seen["trust_remote_code"]) == ("8bit", True)
    seen = taken(monkeypatch, "modelassay.verify.create_baseline")
    flags = ["--model-id", "owner/name", "--mode", "full", "--batch-size", "3", "--load-4bit"]
    assert run(["baseline", "create", "MODEL", *flags]) == 70
    assert (seen["model_id"], seen["mode"], seen["batch_size"]) == ("owner/name", "full", 3)
    assert seen["quantization"] == "4bit"
    assert run(["scan", "MODEL", "--batch-size", "0"]) == 64


def test_what_is_found_on_the_way_is_printed_when_asked_for(tiny_folder, dialogue, capfd):
    scan = ["scan", str(tiny_folder()), "--mode", "quick", "--concepts-file", dialogue, "--json"]
    run(["-v", "-q", *scan])
    assert "pirate_persona: read, and unscored: 1 pair" in capfd.readouterr().err
    log = logging.getLogger("modelassay")
    assert not log.isEnabledFor(logging.DEBUG)
    assert not log.handlers


def test_concepts_of_one_pair_are_read_and_unscored(tiny_folder, tmp_path, capfd):
    path = tmp_path / "one.json"
    names = ("harmful_content", "medical_advice", "pirate_persona", "prompt_injection")
    path.write_text(json.dumps({k: v for name in names for k, v in concept(name, 1).items()}))
    run(["scan", str(tiny_folder()), "--mode", "quick", "--concepts-file", str(path), "--json"])
    report = json.loads(capfd.readouterr().out)
    reason = "1 pair; a held-out separation needs at least 4"
    for name in names:
        assert report["concepts"][name] == {"unscored": reason, "n_pairs": 1}
    said = "; ".join(f"{name} ({reason})" for name in names if name != "harmful_content")
    assert f"Read but unscored: harmful_content ({reason}); {said}." in report["reasons"]
    assert "refusal_capability" in report["reasons"][1]  # which is scored
    assert "harmful_content" not in report["reasons"][1]
    assert run(["concepts", "validate", str(path)]) == 0
    assert f"pirate_persona: valid, unscored: {reason}\n" in capfd.readouterr().out


def test_nothing_scored_is_neither_seen_nor_unseen_harm(tiny_folder, tmp_path, capfd):
    path = tmp_path / "few.json"
    both = {**concept("harmful_content", 1), **concept("refusal_capability", 3)}
    path.write_text(json.dumps(both))
    scan = ["scan", str(tiny_folder()), "--mode", "quick", "--concepts-file", str(path), "-q"]
    assert run([*scan, "--json"]) == 3
    report = json.loads(capfd.readouterr().out)
    assert report["verdict"] == "INCONCLUSIVE"
    assert report["reasons"][0].startswith("Neither whether the model sees harm nor")
    assert report["concepts"]["refusal_capability"]["n_pairs"] == 3
    assert run(scan) == 3
    assert "unscored: 3 pairs" in capfd.readouterr().out


def test_concepts_alone_prints_what_ams_prints(tmp_path, capfd, dialogue):
    from ams.concepts import load_concepts_from_json

    assert run(["concepts", "--json"]) == 0
    path = tmp_path / "all.json"
    path.write_text(capfd.readouterr().out)
    assert len(load_concepts_from_json(str(path))["harmful_content"].pairs) == 72
    assert run(["concepts", "--concepts-file", dialogue, "--json"]) == 0
    theirs = json.loads(capfd.readouterr().out)
    assert theirs["pirate_persona"] == concept("pirate_persona", 1)["pirate_persona"]
    assert run(["concepts"]) == 0
    plain = capfd.readouterr().out
    assert "harmful_content" in plain
    assert run(["concepts", "-v", "--concepts-file", dialogue]) == 0
    assert "Where is the glass train?" in capfd.readouterr().out
    assert run(["concepts", "show", "truthfulness", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["schema"] == "modelassay.concept/1"
    assert run(["concepts", "export", "truthfulness", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "truthfulness"
    assert run(["concepts", "--json", "list"]) == 64
    assert run(["concepts", "export", "--json", "--format", "ams"]) == 64


def test_a_folder_of_ams_baselines_is_used_as_it_is(made_by_ams, tiny_folder, dialogue, capfd):
    before = ["--baselines-dir", str(made_by_ams), "-q"]
    file = made_by_ams / "meta-llama__Tiny.json"
    theirs = json.loads(file.read_text())
    assert run([*before, "baseline", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["meta-llama--Tiny"]["model"]["id"] == "meta-llama/Tiny"
    for name in (["meta-llama/Tiny"], ["--model-id", "meta-llama/Tiny"], ["meta-llama__Tiny"]):
        assert run([*before, "baseline", "show", *name, "--json"]) == 0
        shown = json.loads(capfd.readouterr().out)
        found = {name: record["separation"] for name, record in shown["concepts"].items()}
        assert found == theirs["separations"]
        assert shown["instrument"] == "ams-scanner"
    model = str(tiny_folder())
    scan = ["scan", model, "--mode", "quick", "--concepts-file", dialogue, "--json"]
    assert run([*before, *scan, "-V", "meta-llama/Tiny", "-C", "meta-llama/Tiny"]) in (1, 3)
    report = json.loads(capfd.readouterr().out)
    assert report["verification"]["verified"] is None
    assert "cannot prove an identity" in report["verification"]["reasons"][0]
    compared = report["compare_baseline"]
    assert report["compare"] is None
    for name, drift in compared["concepts"].items():
        here = report["concepts"][name]["in_sample_separation"]
        assert drift["in_sample"] is True
        assert drift["separation"] == pytest.approx(here, abs=1e-4)
        assert drift["drift"] == pytest.approx(here - theirs["separations"][name], abs=1e-3)
    assert "none proves that the models are the same" in compared["limits"][0]
    assert "--no-chat-template" in compared["limits"][1]
    assert run(["verify", model, "--against", str(file), "--device", "cpu", "-q"]) == 3
    assert "UNKNOWN" in capfd.readouterr().out
    other = str(tiny_folder("gpt2"))
    assert run([*before, "verify", other, "--against", "meta-llama/Tiny"]) == 2
    assert "different architecture" in capfd.readouterr().out
    assert run([*before, "baseline", "push", str(file), "--repo", "a/b"]) == 64
    assert "modelassay baseline import" in capfd.readouterr().err


def test_a_baseline_of_ours_is_compared_with_where_it_is_named(tiny_folder, tmp_path, capfd):
    folder = str(tmp_path / "mine")
    create = ["baseline", "create", str(tiny_folder()), "--model-id", "owner/tiny", "-q"]
    assert run(["--baselines-dir", folder, *create]) == 0
    assert Path(capfd.readouterr().out.strip()) == tmp_path / "mine" / "owner--tiny"
    index = load_baseline(tmp_path / "mine" / "owner--tiny").index
    assert list(index.concepts) == ["harmful_content", "refusal_capability"]
    assert index.refusal is None
    scan = ["scan", str(tiny_folder(seed=1)), "--mode", "quick", "-q", "--baselines-dir", folder]
    run([*scan, "-C", "owner--tiny", "--json"])
    report = json.loads(capfd.readouterr().out)
    drift = report["compare_baseline"]["concepts"]["harmful_content"]
    assert drift["in_sample"] is False
    there = index.concepts["harmful_content"].separation
    assert drift["baseline"] == pytest.approx(there, abs=1e-4)
    assert drift["separation"] == pytest.approx(
        report["concepts"]["harmful_content"]["separation"], abs=1e-4
    )
    raw = ["-C", "owner--tiny", "--no-chat-template", "--json"]
    run([*scan, *raw])
    compared = json.loads(capfd.readouterr().out)["compare_baseline"]
    assert compared["concepts"] == {}
    assert "not compared: harmful_content, refusal_capability" in compared["limits"][0]


def test_damaged_files_are_named_and_the_rest_is_listed(made_by_ams, capfd, caplog):
    whole = (made_by_ams / "meta-llama__Tiny.json").read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2],
        "pickled": b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.",
        "nested": b"[" * 100_000,
        "other": b'{"model_id": "x"}',
    }
    for name, content in bad.items():
        (made_by_ams / f"{name}.json").write_bytes(content)
    assert run(["-q", "--baselines-dir", str(made_by_ams), "baseline", "list", "--json"]) == 0
    out, _ = capfd.readouterr()
    told = [f"{name}.json is not a baseline of ams-scanner" for name in bad]
    assert [caplog.text.count(line) for line in told] == [1] * 4
    assert "meta-llama--Tiny" in [row["name"] for row in json.loads(out)]
    for name in bad:
        file = made_by_ams / f"{name}.json"
        assert run(["verify", "embedded", "--against", str(file)]) == 64
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert "is not a baseline of ams-scanner" in err
    assert not Path("hacked").exists()
    assert run(["--baselines-dir", str(file), "baseline", "list"]) == 64
    assert "is a file" in capfd.readouterr().err


def test_what_names_a_model_is_no_baseline_to_compare_with(made_by_ams, monkeypatch):
    from modelassay.models import ModelRef
    from modelassay.scan.against import find_compared

    monkeypatch.setenv("MODELASSAY_BASELINES", str(made_by_ams))
    named = json.loads((made_by_ams / "meta-llama__Tiny.json").read_text()) | {"model_id": "gemma"}
    (made_by_ams / "gemma.json").write_text(json.dumps(named))
    for model in ("gemma", "embedded", "organism:safe", ModelRef("meta-llama/Tiny"), "owner/other"):
        assert find_compared(model) is None
    found = find_compared("meta-llama/Tiny")
    assert found is not None
    assert found[0].index.model.id == "meta-llama/Tiny"

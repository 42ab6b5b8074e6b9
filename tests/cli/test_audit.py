"""`modelassay audit`: what it checks, and the result file that a benchmark writes."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from safetensors.torch import save_file

import modelassay.audit.benchmark as benchmark_module
from diffs import SUITE, make_sae
from modelassay.audit import verify_log
from modelassay.cli.main import run
from outputs import one_line
from tiny import save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, two fine-tunes, an SAE, a suite and rows."""
    folder = tmp_path_factory.mktemp("audits")
    for name, family, seed in (
        ("base", "llama", 0),
        ("tuned", "llama", 1),
        ("other", "llama", 2),
        ("gpt", "gpt2", 0),
    ):
        save_tiny(folder / name, family, seed=seed)
    make_sae(folder / "features", 32)
    (folder / "tiny.yaml").write_text(SUITE)
    rows = [{"prompt": "Hi", "response": "Hello"}, {"odd": 1}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(home, tmp_path):
    def write(**changed):
        settings = {
            "base": str(home / "base"),
            "candidates": {"adversarial": str(home / "tuned"), "benign": str(home / "other")},
            "device": "cpu",
            "sae": str(home / "features"),
            "suites": {"tiny": str(home / "tiny.yaml")},
            "training_data": str(home / "rows.jsonl"),
            "folder": "out",
            **changed,
        }
        path = tmp_path / "audit.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return str(path)

    return write


def test_a_config_is_checked_and_no_weights_are_read(config, home, capsys, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("weights"))
    assert run(["audit", "validate", config(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "modelassay.audit-check/1"
    assert found["ok"] is True
    told = {check["what"]: check["told"] for check in found["checks"]}
    assert set(told) == {
        "model base",
        "model adversarial",
        "model benign",
        "SAE 1",
        "suite tiny",
        "training data",
        "folder",
    }
    assert told["suite tiny"] == "7 prompts and 2 contrasts"
    assert told["training data"] == "1 rows, 1 malformed"


def test_everything_that_is_missing_is_listed(config, home, capsys, tmp_path):
    bare = tmp_path / "adapter"
    bare.mkdir()
    (bare / "adapter_config.json").write_text("{}")
    (tmp_path / "out").write_text("a file")
    save_file({}, tmp_path / "empty.safetensors")
    path = config(
        candidates={
            "gone": str(tmp_path / "nowhere"),
            "unlike": str(home / "gpt"),
            "adapted": {"adapter": str(bare)},
            "unknown": "organism:none",
        },
        sae=[str(tmp_path / "no-sae"), {"path": "no.safetensors", "layer": 1}, "./w.safetensors"],
        suites={"tiny": str(tmp_path / "no.yaml")},
        training_data=str(tmp_path / "no.jsonl"),
        calibration=str(tmp_path / "no.json"),
        labels={"export": "no-export"},
    )
    assert run(["audit", "validate", path]) == 64
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("FAILED")]
    for what in (
        "model gone",
        "model unlike",
        "model adapted",
        "model unknown",
        "SAE 1",
        "SAE 2",
        "SAE 3",
        "suite tiny",
        "training data",
        "calibration",
        "labels.export",
        "folder",
    ):
        assert sum(line.startswith(f"FAILED  {what}: ") for line in lines) == 1, (what, out)
    assert "12 of 13 are not as they must be" in out


def test_a_benchmark_scores_every_candidate(config, home, capsys, tmp_path):
    out = tmp_path / "runs" / "result.json"
    arguments = ["audit", "benchmark", "--config", config(), "--suite", "tiny", "--out", str(out)]
    assert run([*arguments, "--quiet", "--no-triggers"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["schema"] == "modelassay.audit-benchmark/1"
    assert set(found["scores"]) == set(found["reports"]) == {"adversarial", "benign"}
    assert found["n_prompts"] == 7
    for name, report in found["reports"].items():
        assert name in shown
        assert report["base"]["id"] == str(home / "base")
        assert report["behaviour"]["kl_mean"] > 0
        assert report["dictionaries"]
        assert found["scores"][name]["verdict"] == report["verdict"]
    assert found["counts"]["n_damaged"] == found["counts"]["n_harmless"] == 1
    flags = [each["flagged"] for each in found["scores"].values()]
    assert found["counts"]["inconclusive"] == flags.count(None)

    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    before = out.read_text()
    assert run(arguments) == 64
    assert "pass --force" in one_line(capsys.readouterr().err)
    assert out.read_text() == before


def test_a_candidate_that_fails_takes_no_other_with_it(config, home, capsys, tmp_path, monkeypatch):
    out = tmp_path / "new" / "result.json"
    arguments = ["audit", "benchmark", "--suite", "tiny", "--out", str(out), "--quiet"]
    arguments += ["--no-triggers", "--no-weights", "--responses", "0", "--threshold", "1.5"]
    bare = ["--config", config(candidates={"adversarial": str(tmp_path / "later")}, sae=None)]
    assert run([*arguments, *bare]) == 64
    assert not out.parent.exists()  # nothing to keep

    models = {"benign": str(home / "other"), "adversarial": str(tmp_path / "later")}
    both = ["--config", config(candidates=models, sae=None)]
    assert run([*arguments, *both]) == 1
    shown = capsys.readouterr()
    assert "adversarial could not be compared; the same command tries again" in shown.err
    found = json.loads(out.read_text())
    assert set(found["scores"]) == {"benign"}
    assert str(tmp_path / "later") in found["failed"]["adversarial"]
    assert found["counts"]["inconclusive"] == 1 + (found["scores"]["benign"]["flagged"] is None)
    kept = found["reports"]["benign"]

    shutil.copytree(home / "tuned", tmp_path / "later")
    asked = []
    real = benchmark_module.diff

    def compare(base, other, **given):
        asked.append(other)
        return real(base, other, **given)

    monkeypatch.setattr(benchmark_module, "diff", compare)
    assert run([*arguments, *both]) == 0
    found = json.loads(out.read_text())
    assert [ref.id for ref in asked] == [str(tmp_path / "later")]
    assert list(found["scores"]) == ["adversarial", "benign"]  # as in the config
    assert found["reports"]["benign"] == kept
    assert found["failed"] == {}
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]


def test_what_is_wrong_with_a_benchmark_is_one_line(config, home, capsys, tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("name: x\nendings: [Bye]")
    for arguments, said in (
        (["--suite", "nonsense"], "no suite"),
        (["--suite", str(empty)], "no prompts"),
        (["--suite", "tiny", "--out", str(tmp_path)], "folder"),
        (["--suite", "tiny", "--threshold", "nan", "--out", f"{tmp_path}/new/x"], "number"),
        (["--suite", "nonsense", "--out", f"{tmp_path}/new/x"], "no suite"),
        (["--suite", "tiny", "--responses", "-1"], "responses"),
    ):
        assert run(["audit", "benchmark", "--config", config(), "--quiet", *arguments]) == 64
        assert said in one_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    bad = tmp_path / "bad.yaml"
    bad.write_text("base: [\n")
    assert run(["audit", "benchmark", "--config", str(bad)]) == 64
    assert "not valid YAML" in one_line(capsys.readouterr().err)
    assert run(["audit", "validate", str(tmp_path / "none.yaml")]) == 64
    assert "Cannot read" in one_line(capsys.readouterr().err)


def test_a_smoke_test_keeps_out_of_a_folder_that_is_there(tmp_path, capsys):
    (tmp_path / "x").write_text("x")
    assert run(["audit", "smoke", "--out", str(tmp_path)]) == 64
    assert "new folder" in one_line(capsys.readouterr().err)


@pytest.mark.real_model
def test_an_audit_of_real_models_works_here(tmp_path, capsys):
    assert run(["audit", "smoke", "--out", str(tmp_path / "smoke"), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [check["ok"] for check in found["checks"]] == [True] * 7
    assert verify_log(tmp_path / "smoke" / "audit.jsonl").problem is None
    shutil.rmtree(tmp_path / "smoke")

"""Baselines of ams-scanner are imported and prove nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modelassay.cli.main import run
from modelassay.errors import InputError
from modelassay.verify import Kind, import_baseline, verify


@pytest.fixture
def ams_baseline(tmp_path) -> Path:
    """A file that ams-scanner wrote."""
    from ams.scanner import ModelBaseline

    path = tmp_path / "owner__tiny.json"
    direction = torch.ones(32).numpy() / 32**0.5
    ModelBaseline(
        model_id="owner/tiny",
        model_hash=None,
        directions={"harmful_content": direction, "refusal_capability": -direction},
        separations={"harmful_content": 4.2, "refusal_capability": 3.1},
        optimal_layers={"harmful_content": 2, "refusal_capability": 3},
        model_info={"model_type": "llama", "num_layers": 5, "hidden_size": 32, "vocab_size": 300},
        created_at="2026-01-01T00:00:00",
    ).save(str(path))
    return path


def test_ams_baselines_are_imported_and_prove_nothing(ams_baseline, tiny_folder, store, capsys):
    assert run(["baseline", "import", str(ams_baseline)]) == 0
    assert capsys.readouterr().out.strip() == str(store / "owner--tiny")
    assert run(["baseline", "show", "owner--tiny"]) == 0
    assert "4.20σ (in-sample) at layer 2" in capsys.readouterr().out
    report = verify(str(tiny_folder()), "owner/tiny", device="cpu")
    assert report.verified is None
    assert "ams-scanner" in report.reasons[0]
    assert {check.name for check in report.checks} == {
        "direction of harmful_content",
        "direction of refusal_capability",
    }
    assert verify(str(tiny_folder("gpt2")), "owner--tiny").kind is Kind.OTHER_ARCHITECTURE


def test_what_of_an_ams_baseline_is_not_used_is_named(ams_baseline, caplog):
    values = json.loads(ams_baseline.read_text())
    values |= {"model_hash": "abc", "notes": "x"}
    values["separations"]["truthfulness"] = 1.0
    ams_baseline.write_text(json.dumps(values))
    import_baseline(ams_baseline)
    for field in ("model_hash", "notes", "model_info.vocab_size", "separations.truthfulness"):
        assert field in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": {}}, "directions"),
        ({"directions": {"a": [1.0, 2.0]}}, "no separation"),
        ({"directions": {"harmful_content": [1.0, 2.0]}}, "with 2 numbers"),
        ({"directions": {"../x": [1.0]}}, "directions"),
        ({"model_info": {"num_layers": 10**9}}, "model_info"),
        ({"model_id": None}, "model_id"),
        ({"optimal_layers": {"harmful_content": 5, "refusal_capability": 3}}, "does not have"),
        ({"separations": {"harmful_content": 1e12, "refusal_capability": 3}}, "separations"),
        ({"separations": "many"}, "separations"),
    ],
)
def test_what_is_no_ams_baseline_is_refused(ams_baseline, change, words, store):
    values = json.loads(ams_baseline.read_text()) | change
    ams_baseline.write_text(json.dumps(values))
    with pytest.raises(InputError, match=words) as caught:
        import_baseline(ams_baseline)
    assert "\n" not in str(caught.value)
    for bad in ("{", "[]", "", "NaN"):
        ams_baseline.write_text(bad)
        with pytest.raises(InputError, match="not a baseline of ams-scanner"):
            import_baseline(ams_baseline)
    assert not store.exists()

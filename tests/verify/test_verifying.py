"""Tiny models held against a baseline: what differs is named."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelassay
from modelassay.data.concepts import concepts_for
from modelassay.errors import InputError
from modelassay.measures.examination import examine
from modelassay.models.identity import hash_file
from modelassay.models.organisms import shipped_folder as shipped_organisms
from modelassay.verify import Kind, verify, verify_files
from modelassay.verify.differences import compare
from modelassay.verify.report import Check


def test_directions_of_other_prompts_are_not_compared(baseline, tiny_folder, tmp_path):
    concepts = concepts_for("quick")
    harmful = concepts["harmful_content"]
    other = harmful.model_copy(update={"pairs": harmful.pairs[:40]})
    model = modelassay.load(str(tiny_folder(seed=1)), device="cpu")
    for given, names in (
        (concepts, {"harmful_content", "refusal_capability"}),
        (concepts | {"harmful_content": other}, {"refusal_capability"}),
    ):
        found = examine(model, mode="quick", concepts=given, identity=True)
        assert set(compare(found, baseline).cosines) == names


def test_a_link_named_like_a_hash_is_read(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("a" * 64)).write_bytes(b"evil")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blobs / ("a" * 64))
    assert hash_file(link) == hashlib.sha256(b"evil").hexdigest()


@pytest.mark.real_model
def test_an_adapter_that_is_switched_off_is_another(tmp_path):
    safe = shipped_organisms() / "safe"
    off = shutil.copytree(safe, tmp_path / "off")
    config = json.loads((off / "adapter_config.json").read_text())
    (off / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    for folder, kind in ((safe, Kind.IDENTICAL), (off, None)):
        found = verify_files("embedded", "organism-safe", adapter=str(folder))
        assert getattr(found, "kind", None) is kind


def test_the_same_files_verify_without_loading(saved, tiny_folder, tmp_path, monkeypatch):
    copy = tmp_path / "other-name"
    shutil.copytree(tiny_folder(), copy)
    monkeypatch.setattr("modelassay.verify.verifying.open_model", lambda *_, **__: 1 / 0)
    report = verify(str(copy), str(saved))
    assert report.verified is True
    assert report.kind is Kind.IDENTICAL
    assert {check.outcome for check in report.checks} == {"same"}


def test_rounded_weights_are_told_from_changed_ones(saved, tiny_folder, tmp_path):
    for change, kind in (
        (lambda w: w.bfloat16().float(), Kind.RECAST),
        (lambda w: w + 0.3 * w.std() * torch.randn(w.shape), Kind.FINE_TUNE),
    ):
        folder = tmp_path / kind.name
        shutil.copytree(tiny_folder(), folder)
        torch.manual_seed(1)
        weights = load_file(str(folder / "model.safetensors"))
        weights = {name: change(w) if w.dim() > 1 else w for name, w in weights.items()}
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
        report = verify(str(folder), str(saved), device="cpu")
        assert report.kind is kind, report.differences
        assert report.verified is (kind is Kind.RECAST)


def test_another_model_of_the_architecture_is_told(saved, tiny_folder):
    report = verify(str(tiny_folder(seed=1)), str(saved), device="cpu")
    assert report.kind is Kind.OTHER_MODEL
    assert report.verified is False


def test_another_architecture_is_told_without_loading(saved, tiny_folder, monkeypatch):
    monkeypatch.setattr("modelassay.verify.verifying.open_model", lambda *_, **__: 1 / 0)
    report = verify(str(tiny_folder("qwen2")), str(saved))
    assert report.kind is Kind.OTHER_ARCHITECTURE
    assert "model_type" in report.reasons[0]


def test_another_chat_template_is_named(saved, tiny_folder, tmp_path):
    folder = tmp_path / "wrapped"
    shutil.copytree(tiny_folder(), folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "obedient"))
    report = verify(str(folder), str(saved))
    assert report.verified is False
    assert report.kind is Kind.REWRAPPED
    assert "chat template differs" in report.reasons[0]


def test_other_tokens_leave_the_weights_to_compare(saved, tiny_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(tiny_folder(seed=1), folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "obedient"))
    report = verify(str(folder), str(saved), device="cpu")
    assert report.kind is Kind.OTHER_MODEL  # by its weights
    assert Check("activations", "unknown", "the two read other tokens for the same prompts") in (
        report.checks
    )


def test_changed_settings_are_named(saved, tiny_folder, tmp_path):
    folder = tmp_path / "settings"
    shutil.copytree(tiny_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    report = verify(str(folder), str(saved))
    assert report.kind is Kind.REWRAPPED
    assert "rms_norm_eps" in report.reasons[0]


def test_a_model_without_a_baseline_is_unknown(tiny_folder):
    report = verify(str(tiny_folder()))
    assert report.verified is None
    assert "baseline create" in report.reasons[0]


@pytest.mark.parametrize(
    "reference", ["nothing-here", "../x", "/no/such/folder", "", "~nobody-here/x", "x" * 5000]
)
def test_unknown_baselines_are_refused(reference):
    with pytest.raises(InputError, match="No baseline"):
        verify("embedded", reference)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_checkpoints_are_unpacked_to_be_compared(saved, tiny_folder, tmp_path, bits):
    """What bitsandbytes has saved is another file of the same model, in coarser numbers."""
    model = modelassay.load(str(tiny_folder()), device="cpu", quantization=bits)
    folder = tmp_path / "packed"
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    report = verify(str(folder), str(saved), device="cpu")
    assert report.kind is {"4bit": None, "8bit": Kind.RECAST}[bits], report.reasons
    assert report.verified is not False
    weights = report.differences.weights
    size = sorted(weights.by_layer.values())[len(weights.by_layer) // 2]
    assert {"4bit": 0.03 < size < 0.2, "8bit": 0.001 < size < 0.03}[bits]
    assert weights.mark is None

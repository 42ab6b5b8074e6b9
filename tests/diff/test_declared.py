"""What a repository declares is held against its weights; its files are strangers'."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from modelassay.diff.declared import Declared, hold_against, read_declared
from modelassay.measures.directional_edits import ComponentEdit, DirectionalEdits, Strength
from modelassay.models.kernels import Kernel

KERNEL = Kernel(peak=5.0, distance=4.0, strength=1.0, least=0.2)
EDITED = DirectionalEdits(
    1.0,
    0.01,
    components=(
        ComponentEdit(
            "mlp",
            tuple(
                Strength(layer, w, w - 0.01, w + 0.01)
                for layer in range(10)
                if (w := KERNEL.at(layer))
            ),
            None,
        ),
    ),
    family="plain",
    fit=1.0,
)
PARAMETERS = {
    "max_weight": 1.0,
    "max_weight_position": 5.0,
    "min_weight": 0.2,
    "min_weight_distance": 4.0,
}


def model(folder, name="model"):
    return SimpleNamespace(source=SimpleNamespace(folder=folder), info=SimpleNamespace(name=name))


def write(folder, text):
    (folder / "reproduce").mkdir(exist_ok=True)
    (folder / "reproduce" / "reproduce.json").write_text(text, encoding="utf-8")


def test_what_was_declared_and_measured_agrees(tmp_path):
    write(tmp_path, json.dumps({"a": [{"parameters": {"mlp.down_proj": PARAMETERS}}]}))
    declared = read_declared(model(tmp_path, "m-heretic"))
    assert declared.kernels == {"mlp": KERNEL}
    said, contradicts = hold_against(declared, EDITED, 10)
    assert not contradicts
    assert any("so it was measured" in line for line in said)


def test_another_strength_than_declared_is_a_contradiction():
    declared = Declared(kernels={"mlp": replace(KERNEL, strength=0.3)})
    said, contradicts = hold_against(declared, EDITED, 10)
    assert contradicts
    assert "measured otherwise" in said[0]


def test_what_was_declared_of_another_component_was_not_measured():
    _, contradicts = hold_against(Declared(kernels={"attention": KERNEL}), EDITED, 10)
    assert contradicts


@pytest.mark.parametrize("name", ["llama-abliterated", "Qwen-heretic-v2"])
def test_a_name_that_says_abliterated_of_a_model_that_is_not(tmp_path, name):
    declared = read_declared(model(tmp_path, name))
    said, contradicts = hold_against(declared, DirectionalEdits(0.2, 0.5), 10)
    assert contradicts
    assert name in said[0]


def test_uncensored_may_be_a_fine_tune(tmp_path):
    declared = read_declared(model(tmp_path, "llama-uncensored"))
    assert declared.claims
    assert hold_against(declared, DirectionalEdits(0.2, 0.5), 10) == ((), False)


def test_tags_of_a_card_are_read(tmp_path):
    card = "---\ntags:\n- text-generation\n- heretic\n- 7\n---\n# Model\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_declared(model(tmp_path)).claims == ("the tag heretic",)


@pytest.mark.parametrize(
    "card", ["---\ntags: [", "---\n- a\n---", "---\n&a [*a]\n---", "no", "---"]
)
def test_a_broken_card_says_nothing(tmp_path, card):
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_declared(model(tmp_path)) == Declared()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[" * 60 + "]" * 60,
        json.dumps({"attn": {**PARAMETERS, "max_weight": "much"}}),
        json.dumps({"attn": {**PARAMETERS, "max_weight": True}}),
        json.dumps({"attn": PARAMETERS}).replace("1.0", "NaN"),
        json.dumps({"attn": PARAMETERS}).replace("1.0", "1e999"),
        json.dumps({"attn": {**PARAMETERS, "max_weight": 10**400}}),
        json.dumps({"attn": dict.fromkeys(PARAMETERS)}),
        json.dumps([[0]] * 60_000),
        json.dumps("x" * 3_000_000),
        "null",
        "\x00",
    ],
)
def test_a_malformed_or_hostile_file_is_a_remark(tmp_path, text):
    write(tmp_path, text)
    declared = read_declared(model(tmp_path))
    assert declared.kernels == {}
    assert declared.problem is not None
    said, contradicts = hold_against(declared, DirectionalEdits(0.2, 0.5), 10)
    assert len(said) == 1
    assert not contradicts

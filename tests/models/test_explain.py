"""Checkpoints that cannot be read are refused, and why is said in one line."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from checkpoints import edit_json, read, refusal, same
from modelassay.errors import InputError, UnavailableError
from modelassay.models import load


def test_damaged_weights(copy):
    folder = copy()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 5000, whole[:2000], whole[:-100]):
        file.write_bytes(damaged)
        assert f"A weight file of {folder} is damaged" in refusal(InputError, folder)


def test_a_checkpoint_that_lacks_a_weight(copy):
    folder = copy()
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(InputError, folder)
    assert f"lacks 1 of the weights that its config asks for (first: {name})" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 7}, "lacks 18 of the weights"),
        (
            {"intermediate_size": 128},
            "(first: model.layers.0.mlp.down_proj.weight is (32, 64), not (32, 128))",
        ),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of names"),
        ({"architectures": [3]}, "must be a list of names"),
        ({"model_type": "telepathy"}, "unknown model type 'telepathy'"),
        ({"model_type": None}, "unknown model type None"),
        ({"model_type": ["llama"]}, "unknown model type ['llama']"),
        (
            {"model_type": "telepathy", "auto_map": {"AutoConfig": "code.Config"}},
            "needs its own Python code to load; read that code first",
        ),
    ],
)
def test_configs_that_do_not_fit(copy, changes, message):
    assert message in refusal(InputError, copy(**changes))


def test_remote_code_is_not_run_unless_asked_for(copy, tmp_path):
    folder = copy(
        model_type="telepathy",
        auto_map={"AutoConfig": "code_.Config", "AutoModelForCausalLM": "code_.Model"},
    )
    ran = tmp_path / "ran"
    (folder / "code_.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'telepathy'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    assert "--trust-remote-code" in refusal(InputError, folder)
    assert not ran.exists()
    assert load(str(folder), device="cpu", trust_remote_code=True).info.n_layers == 5
    assert ran.exists()


def test_code_of_a_model_that_transformers_knows_is_not_needed(copy, tiny):
    folder = copy(auto_map={"AutoModelForCausalLM": "code.Model"})
    assert same(read(load(str(folder), device="cpu")), read(tiny()))


def test_a_tokenizer_with_code_of_its_own(copy):
    folder = copy()
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["code.Own", None]},
    )
    assert "Cannot load the tokenizer" in refusal(InputError, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n", "not valid JSON"), ("[]", "must hold a JSON object"), ("", "not valid JSON")],
)
def test_a_config_that_is_no_json_object(copy, text, message):
    folder = copy()
    (folder / "config.json").write_text(text)
    assert message in refusal(InputError, folder)


def test_a_config_that_is_no_text(copy):
    folder = copy()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in refusal(InputError, folder)


@pytest.mark.parametrize("keep", [(), ("tokenizer_config.json", "chat_template.jinja")])
def test_no_tokenizer(copy, keep):
    folder = copy()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if name not in keep:
            (folder / name).unlink()
    assert "tokenizer of" in (message := refusal(InputError, folder))
    assert "there is no tokenizer.json" in message


def test_a_damaged_tokenizer(copy):
    folder = copy()
    (folder / "tokenizer.json").write_text("{")
    assert "Cannot load the tokenizer" in refusal(InputError, folder)


def test_folders_without_weights(copy, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no model weights" in refusal(InputError, empty)
    folder = copy()
    file = folder / "model.safetensors"
    file.rename(folder / "weights.safetensors")
    assert "lacks the weight file model.safetensors" in refusal(InputError, folder)
    (folder / "weights.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (.bin), which can run code" in refusal(InputError, folder)


def test_a_folder_without_a_config(copy):
    folder = copy()
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(InputError, folder)


def test_nothing_there(tiny_folder, tmp_path):
    assert "No model at" in refusal(InputError, tmp_path / "gone")
    assert "No model at" in refusal(InputError, tmp_path / "gone.gguf")
    for name in (tiny_folder() / "config.json", ""):
        assert "is neither a model folder nor a .gguf file" in refusal(InputError, name)
    for name in (" ", "a\0b", "two words", "a/b/c", "../gone"):
        assert "No model at" in refusal(InputError, name)
    for name in ("~nobody-of-that-name/model", "a/" + "b" * 5000):
        assert "Cannot look for a model at" in (message := refusal(InputError, name))
        assert len(message) < 250
    assert "Hub cannot be reached" in refusal(UnavailableError, "some/model")

"""From what was typed to files: the base of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import transformers

from checkpoints import edit_json, refusal
from modelassay.errors import InputError, UnavailableError
from modelassay.models import ModelRef, load
from modelassay.models.finding import find_sources


@pytest.fixture
def adapter(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder())
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "base",
    [
        "/home/somebody/models/foo",
        "~/models/foo",
        "./outputs/checkpoint-500",
        "../llama",
        r"C:\models\llama",
        r"models\llama",
        "/workspace/a/b/c",
        "data/models/llama",
    ],
)
def test_a_base_on_the_machine_that_trained_the_adapter(adapter, tiny_folder, base):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    message = refusal(InputError, adapter)
    assert "a path of the machine that trained it" in message
    assert "name the base yourself: --base BASE, or BASE with" in message
    model = load(str(adapter), base=str(tiny_folder()), device="cpu")
    assert (model.source.folder, model.adapter.folder) == (tiny_folder(), adapter)
    assert model.info.id == str(adapter)


def test_a_base_that_only_looks_like_a_name_on_the_hub(adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="outputs/checkpoint-500")
    with pytest.raises((InputError, UnavailableError)) as caught:
        load(str(adapter), device="cpu")
    assert "names it as its base; to name another: --base BASE" in str(caught.value)


COMMIT = "ab" * 20


@pytest.mark.parametrize(
    ("base", "revision"),
    [
        (f"/root/.cache/huggingface/hub/models--some--llama-3/snapshots/{COMMIT}", COMMIT),
        ("C:\\hub\\models--some--llama-3\\snapshots\\" + COMMIT, COMMIT),
        ("/data/models--some--llama-3", "v1"),
        ("some/llama-3", "v1"),
    ],
)
def test_a_base_in_the_cache_of_the_machine_that_trained_the_adapter(
    adapter, monkeypatch, base, revision
):
    """Such a path says which model of the Hub it was."""
    asked = []

    def resolve(model_id, **options):
        asked.append((model_id, options["revision"], options["local"]))
        raise InputError("enough")

    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base, revision="v1")
    real = find_sources.__globals__["resolve"]
    answers = iter([real, resolve])
    monkeypatch.setitem(find_sources.__globals__, "resolve", lambda *a, **o: next(answers)(*a, **o))
    with pytest.raises(InputError, match="enough"):
        find_sources(ModelRef(str(adapter)))
    assert asked == [("some/llama-3", revision, False)]


def test_a_base_for_what_is_no_adapter(tiny_folder):
    message = refusal(InputError, tiny_folder(), base=str(tiny_folder()))
    assert "not an adapter; leave --base out" in message


def test_adapters_in_subfolders(adapter, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for file in adapter.glob("adapter_*"):
            (tmp_path / "all" / name / file.name).write_bytes(file.read_bytes())
    assert "its subfolders hold adapters (one, two)" in refusal(InputError, tmp_path / "all")
    assert load(str(tmp_path / "all" / "two"), device="cpu").info.adapter

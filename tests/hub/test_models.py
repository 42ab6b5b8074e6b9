"""Models and adapters from a Hub: the real client against a real server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from fetched import (
    NOT_THERE,
    OTHER_TOKEN,
    SMALL,
    TOKEN,
    WEIGHTS,
    failure,
    files_of,
    sha256,
    weights,
)
from modelassay.diff.declared import read_declared
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, InputError
from modelassay.models import load
from modelassay.models.finding import resolve

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


def test_model_is_fetched_and_loaded(hub: LoopbackHub, llama: dict[str, bytes]) -> None:
    card = b"---\ntags: [llama, abliterated]\n---\nA card."
    files = {**llama, "README.md": card, "pytorch_model.bin": b"pickle", "code.py": b"1 / 0"}
    commit = hub.add_repo("models", "tiny/llama", files)
    loaded = load("tiny/llama", device="cpu")
    assert loaded.info.id == "tiny/llama"
    assert loaded.info.revision == commit
    assert len(commit) == 40
    assert loaded.info.weights_sha256 == sha256(llama["model.safetensors"])
    asked = {request.path.rpartition("/")[2] for request in hub.log if "resolve" in request.path}
    assert "model.safetensors" in asked
    assert not asked & {"pytorch_model.bin", "code.py"}
    assert read_declared(loaded).claims == ("the tag abliterated",)
    # Loading itself asks the Hub for nothing more than fetching did.
    before = len(hub.log)
    resolve("tiny/llama")
    fetching = hub.log[before:]
    assert all(request.path.startswith("/api/models/tiny/llama") for request in fetching)
    before = len(hub.log)
    load("tiny/llama", device="cpu")
    assert len(hub.log) - before == len(fetching)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "tiny/x has only pickled weights (.bin), which can run code when opened; convert them"
            " to safetensors first.",
        ),
        (
            {"README.md": b"x", "a.Q4.gguf": b"x", "sub/b.gguf": b"x"},
            "tiny/x has only GGUF weights; choose one with --gguf-file: a.Q4.gguf, sub/b.gguf",
        ),
        ({"README.md": b"x"}, "tiny/x has no model weights (no .safetensors file)."),
        (
            {"config.json": b"{}", "original/model.safetensors": b"x"},
            "tiny/x has no model weights (no .safetensors file).",
        ),
    ],
    ids=["bin", "gguf", "empty", "only-unused"],
)
def test_no_readable_weights(hub: LoopbackHub, files: dict[str, bytes], line: str) -> None:
    hub.add_repo("models", "tiny/x", files)
    assert failure(resolve, "tiny/x") == (EXIT_BAD_INPUT, line)
    assert not any("resolve" in request.path for request in hub.log)


def test_gguf_file(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/x", {"a.gguf": b"one", "sub/b.gguf": b"two"})
    assert weights(resolve("tiny/x", gguf_file="sub/b.gguf")) == b"two"
    assert not any("a.gguf" in request.path for request in hub.log)
    wrong = (EXIT_BAD_INPUT, "tiny/x has no file 'c.gguf'.")
    assert failure(resolve, "tiny/x", gguf_file="c.gguf") == wrong
    hub.close()
    assert weights(resolve("tiny/x", gguf_file="sub/b.gguf")) == b"two"
    assert failure(resolve, "tiny/x", gguf_file="c.gguf") == wrong


def test_remote_code(hub: LoopbackHub, tmp_path: Path, llama: dict[str, bytes]) -> None:
    trace = tmp_path / "trace"
    config = json.loads(llama["config.json"]) | {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "code.Strange", "AutoModelForCausalLM": "code.StrangeModel"},
    }
    code = f"""
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({str(trace)!r}).touch()
class Strange(LlamaConfig):
    model_type = "strange"
class StrangeModel(LlamaForCausalLM):
    config_class = Strange
"""
    files = {**llama, "config.json": json.dumps(config).encode(), "code.py": code.encode()}
    hub.add_repo("models", "tiny/strange", files)
    assert failure(load, "tiny/strange", device="cpu") == (
        EXIT_BAD_INPUT,
        "tiny/strange needs its own Python code to load; read that code first, then pass"
        " --trust-remote-code.",
    )
    assert not any("code.py" in request.path for request in hub.log)
    assert not trace.exists()
    loaded = load("tiny/strange", device="cpu", trust_remote_code=True)
    assert type(loaded.network).__name__ == "StrangeModel"
    assert trace.exists()
    assert all("tiny/strange" in request.path for request in hub.log)


def test_too_large(hub: LoopbackHub) -> None:
    big = {"consolidated.safetensors": WEIGHTS * 3, "onnx/model.safetensors": WEIGHTS * 3}
    hub.add_repo("models", "tiny/x", SMALL | big)
    code, line = failure(resolve, "tiny/x", max_bytes=len(WEIGHTS))
    assert code == EXIT_BAD_INPUT
    assert line == (
        "tiny/x has 0 GB of weights; this page takes up to 0 GB. Install modelassay to scan it on"
        " your own machine."
    )
    assert not any("resolve" in request.path for request in hub.log)
    # Copies that are not fetched do not count; what is fetched besides weights does.
    resolve("tiny/x", max_bytes=2 * len(WEIGHTS))
    hub.add_commit("models", "tiny/x", SMALL | {"tokenizer.json": WEIGHTS * 3})
    assert failure(resolve, "tiny/x", max_bytes=2 * len(WEIGHTS))[0] == EXIT_BAD_INPUT


@pytest.fixture(scope="session")
def adapter_files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> dict[str, bytes]:
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, lora).save_pretrained(str(folder))
    files = files_of(folder)
    config = json.loads(files["adapter_config.json"])
    config["base_model_name_or_path"] = "tiny/llama"
    return {**files, "adapter_config.json": json.dumps(config).encode()}


def test_adapter_and_its_base(
    hub: LoopbackHub, llama: dict[str, bytes], adapter_files: dict[str, bytes]
) -> None:
    commit = hub.add_repo("models", "tiny/llama", llama)
    hub.add_repo("models", "tiny/lora", adapter_files)
    loaded = load("tiny/lora", device="cpu")
    assert loaded.info.id == "tiny/lora"
    assert loaded.info.adapter == "tiny/lora"
    assert loaded.source.id == "tiny/llama"
    assert loaded.info.revision == commit
    shas = "".join(
        f"{sha256(data)}  {name}\n"
        for name, data in (
            ("adapter_model.safetensors", adapter_files["adapter_model.safetensors"]),
            ("model.safetensors", llama["model.safetensors"]),
        )
    )
    assert loaded.info.weights_sha256 == sha256(shas.encode())
    base = load("tiny/llama", device="cpu")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not loaded.network.get_parameter(name).equal(base.network.get_parameter(name))
    assert load("tiny/llama", adapter="tiny/lora", device="cpu").info.adapter == "tiny/lora"
    # The base is gone: the line names it, and says how to give another.
    del hub.repos["models", "tiny/llama"]
    code, line = failure(load, "tiny/lora")
    assert code == EXIT_BAD_INPUT
    assert line.startswith(NOT_THERE.format("tiny/llama"))
    assert "--base BASE" in line


def test_adapter_with_pickled_weights(hub: LoopbackHub, adapter_files: dict[str, bytes]) -> None:
    config = {"adapter_config.json": adapter_files["adapter_config.json"]}
    hub.add_repo("models", "tiny/lora", config | {"adapter_model.bin": b"x"})
    code, line = failure(load, "tiny/lora")
    assert code == EXIT_BAD_INPUT
    assert "only pickled weights" in line


def test_what_is_neither_a_path_nor_an_id(hub: LoopbackHub) -> None:
    for name in ("a--b", "x" * 200, "owner/name.git", "a/b/c", "./no/such"):
        with pytest.raises(InputError):
            resolve(name)
    assert not hub.log


CLI = """
import json, sys
from modelassay.cli.main import run
for arguments in json.loads(sys.argv[1]):
    code = run(["scan", *arguments, "--mode", "quick", "-q", "--device", "cpu"])
    sys.stdout.flush()
    print(f"exit code {code}", end="\\0", file=sys.stderr, flush=True)
    print("\\0", end="", flush=True)
"""


def test_command_line(hub: LoopbackHub, tmp_path: Path, llama: dict[str, bytes]) -> None:
    """The whole command with its settings from the environment, as users run it."""
    commit = hub.add_repo("models", "tiny/private", llama, private=True, token=TOKEN)
    hub.add_repo("models", "tiny/gated", SMALL, gated=True, token=TOKEN)
    hub.tokens.add(OTHER_TOKEN)
    runs = [
        ["tiny/private", "--json", "--token", TOKEN],
        ["tiny/private"],
        ["tiny/private", "--token", "hf_tokenThatExpired"],
        ["tiny/gated"],
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": OTHER_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLI, json.dumps(runs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    report, *nothing = done.stdout.split("\0")
    assert json.loads(report)["model"]["revision"] == commit
    assert not any(nothing)
    for word in ("Traceback", "hf_token"):
        assert word not in done.stdout + done.stderr
    lines = done.stderr.split("\0")[1:-1]
    refused = "The Hub does not let this token use tiny/private (HTTP 401); check the token."
    gated = (
        "tiny/gated is gated: accept its terms on its Hub page, then pass --token or run"
        " `hf auth login`."
    )
    assert lines == [
        f"modelassay: {NOT_THERE.format('tiny/private')}\nexit code {EXIT_BAD_INPUT}",
        f"modelassay: {refused}\nexit code {EXIT_UNAVAILABLE}",
        f"modelassay: {gated}\nexit code {EXIT_UNAVAILABLE}",
    ]

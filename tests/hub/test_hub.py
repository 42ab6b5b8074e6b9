"""Fetching models from a Hub: the real client against a real server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from huggingface_hub import constants, scan_cache_dir

from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, AssayError, InputError
from modelassay.hub import snapshots as hub_module
from modelassay.hub import trim_cache
from modelassay.models import load
from modelassay.models.finding import resolve
from modelassay.models.sources import Source

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

TOKEN = "hf_tokenOfTheOwner"
OTHER_TOKEN = "hf_tokenOfSomebodyElse"
WEIGHTS = bytes(range(256)) * 200
SMALL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def failure(action: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[int, str]:
    """Exit code and line of what must fail, and must fail as an AssayError."""
    with pytest.raises(AssayError) as caught:
        action(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert "hf_token" not in line
    return caught.value.exit_code, line


def weights(source: Source) -> bytes:
    (file,) = source.weight_files()
    return file.read_bytes()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Takes the pauses out of the client's retries; holds their lengths."""
    pauses: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def llama(tiny_folder: Callable[..., Path]) -> dict[str, bytes]:
    return files_of(tiny_folder("llama"))


def test_model_is_fetched_and_loaded(hub: LoopbackHub, llama: dict[str, bytes]) -> None:
    files = {**llama, "README.md": b"card", "pytorch_model.bin": b"pickle", "code.py": b"1 / 0"}
    commit = hub.add_repo("models", "tiny/llama", files)
    loaded = load("tiny/llama", device="cpu")
    assert loaded.info.id == "tiny/llama"
    assert loaded.info.revision == commit
    assert len(commit) == 40
    assert loaded.info.weights_sha256 == sha256(llama["model.safetensors"])
    asked = {request.path.rpartition("/")[2] for request in hub.log if "resolve" in request.path}
    assert "model.safetensors" in asked
    assert not asked & {"README.md", "pytorch_model.bin", "code.py"}
    # Loading itself asks the Hub for nothing more than fetching did.
    before = len(hub.log)
    resolve("tiny/llama")
    fetching = hub.log[before:]
    assert all(request.path.startswith("/api/models/tiny/llama") for request in fetching)
    before = len(hub.log)
    load("tiny/llama", device="cpu")
    assert len(hub.log) - before == len(fetching)


def test_revisions(hub: LoopbackHub) -> None:
    first = hub.add_repo("models", "tiny/two", SMALL)
    second = hub.add_commit("models", "tiny/two", SMALL | {"model.safetensors": b"v2"})
    branch = hub.add_commit("models", "tiny/two", SMALL | {"model.safetensors": b"b"}, "feat/x")
    wanted = {None: (second, b"v2"), first: (first, WEIGHTS), "feat/x": (branch, b"b")}
    for revision, (commit, data) in wanted.items():
        source = resolve("tiny/two", revision=revision)
        assert (source.commit, weights(source)) == (commit, data)
    code, line = failure(resolve, "tiny/two", revision="no-such")
    assert code == EXIT_BAD_INPUT
    assert line == (
        "tiny/two has no revision 'no-such'; give a branch, a tag or a commit that exists."
    )
    assert failure(resolve, "tiny/two", revision="f" * 40)[0] == EXIT_BAD_INPUT


NOT_THERE = (
    "No model {!r} on the Hub that you may see: check the spelling, or pass a token if it is"
    " private. A local model is given as a path."
)


def test_unknown_and_private(hub: LoopbackHub) -> None:
    hub.tokens.add(OTHER_TOKEN)
    commit = hub.add_repo("models", "tiny/private", SMALL, private=True, token=TOKEN)
    for name, token in (
        ("tiny/missing", None),
        ("tiny/missing", TOKEN),
        ("tiny/private", None),
        ("tiny/private", OTHER_TOKEN),
    ):
        assert failure(resolve, name, token=token) == (EXIT_BAD_INPUT, NOT_THERE.format(name))
    assert failure(resolve, "tiny/private", token="hf_tokenThatExpired") == (
        EXIT_UNAVAILABLE,
        "The Hub does not let this token use tiny/private (HTTP 401); check the token.",
    )
    assert resolve("tiny/private", token=TOKEN).commit == commit


@pytest.mark.parametrize("token", ["hf_token\nx", "hf_token x", "hf_tokenÄ", "", " "])
def test_token_that_cannot_be_sent(hub: LoopbackHub, token: str) -> None:
    hub.add_repo("models", "tiny/small", SMALL)
    assert failure(resolve, "tiny/small", token=token) == (
        EXIT_BAD_INPUT,
        "The Hub token is empty or has spaces or odd characters; check it.",
    )
    assert not hub.log


def test_token_from_a_file_with_a_newline(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/private", SMALL, private=True, token=TOKEN)
    assert weights(resolve("tiny/private", token=f"{TOKEN}\n")) == WEIGHTS


def test_gated(hub: LoopbackHub) -> None:
    hub.tokens.add(OTHER_TOKEN)
    hub.add_repo("models", "tiny/gated", SMALL, gated=True, token=TOKEN)
    for token in (None, OTHER_TOKEN):
        assert failure(resolve, "tiny/gated", token=token) == (
            EXIT_UNAVAILABLE,
            "tiny/gated is gated: accept its terms on its Hub page, then pass --token or run"
            " `hf auth login`.",
        )
    assert weights(resolve("tiny/gated", token=TOKEN)) == WEIGHTS


def test_no_token_is_sent_when_told_so(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, llama: dict[str, bytes]
) -> None:
    hub.add_repo("models", "tiny/llama", llama, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load("tiny/llama", device="cpu", token=False)
    assert hub.log
    assert not any("authorization" in request.headers for request in hub.log)
    # The other way round: the stored token is used where none is named.
    hub.log.clear()
    resolve("tiny/llama")
    assert {request.headers.get("authorization") for request in hub.log} == {f"Bearer {TOKEN}"}


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


def unreachable(name: str) -> tuple[int, str]:
    return (
        EXIT_UNAVAILABLE,
        f"The Hub cannot be reached and {name} is not in the local cache; check the network, or"
        " give a local folder, or `embedded`.",
    )


def test_unreachable(hub: LoopbackHub) -> None:
    commit = hub.add_repo("models", "tiny/x", SMALL)
    branch = hub.add_commit("models", "tiny/x", SMALL | {"model.safetensors": b"b"}, "feat/x")
    hub.add_repo("models", "tiny/uncached", SMALL)
    resolve("tiny/x")
    resolve("tiny/x", revision="feat/x")
    hub.close()
    for revision, expected in ((None, commit), (commit, commit), ("feat/x", branch)):
        assert resolve("tiny/x", revision=revision).commit == expected
    assert failure(resolve, "tiny/x", revision="v1") == unreachable("tiny/x")
    assert failure(resolve, "tiny/uncached") == unreachable("tiny/uncached")


def test_offline_mode(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_repo("models", "tiny/x", SMALL)
    resolve("tiny/x")
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("tiny/x").commit == commit
    assert failure(resolve, "tiny/uncached") == unreachable("tiny/uncached")
    assert not hub.log


def test_hub_that_never_answers(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.2)
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("/api/models")
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("request_", ["x.blobs=", "revision/main$", "/tree/", "HEAD", "resolve"])
def test_error_status(hub: LoopbackHub, waits: list[float], status: int, request_: str) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault(request_, status=status, body=b"<html>busy</html>")
    assert failure(resolve, "tiny/x") == (
        EXIT_UNAVAILABLE,
        f"The Hub answered with an error for tiny/x (HTTP {status}); try again later.",
    )
    # What comes after the fault is gone is whole.
    hub.faults.clear()
    assert weights(resolve("tiny/x")) == WEIGHTS


def test_passing_faults_are_retried(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("HEAD .*safetensors", times=2, status=503)
    hub.add_fault("GET .*safetensors", times=1, status=429, headers={"Retry-After": "7"})
    assert weights(resolve("tiny/x")) == WEIGHTS
    assert 8 in waits  # the client adds a second


def test_what_is_no_hub(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("/api/", status=200, body=b"<html>Please sign in to the hotel's network</html>")
    assert failure(resolve, "tiny/x") == (
        EXIT_UNAVAILABLE,
        "What answers for tiny/x is not a Hub; check HF_ENDPOINT and the network.",
    )


def test_listed_file_that_is_missing(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("safetensors", status=404, headers={"X-Error-Code": "EntryNotFound"})
    assert failure(resolve, "tiny/x") == (
        EXIT_BAD_INPUT,
        "tiny/x lists a file that the Hub then does not have; its upload may be incomplete.",
    )


def test_download_cut_and_resumed(
    hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", times=2, cut_after=20_000)
    source = resolve("tiny/x")
    assert weights(source) == WEIGHTS
    assert source.weight_files()[0].resolve().name == sha256(WEIGHTS)
    gets = [r for r in hub.log if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert [request.headers.get("range") for request in gets] == [
        None,
        "bytes=16384-",
        "bytes=32768-",
    ]


@pytest.mark.parametrize("reset", [False, True])
def test_download_cut_for_good(hub: LoopbackHub, waits: list[float], reset: bool) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", cut_after=20_000, reset=reset)
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")
    # A torn download must not pass for a cached model, with the Hub or without.
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")
    hub.faults.clear()
    source = resolve("tiny/x")
    assert weights(source) == WEIGHTS
    assert source.weight_files()[0].resolve().name == sha256(WEIGHTS)


def test_torn_download_does_not_count_as_cached(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", cut_after=20_000)
    failure(resolve, "tiny/x")
    hub.close()
    code, line = failure(resolve, "tiny/x")
    # Clients before 2.0 hand out the torn snapshot, which then lacks its weights.
    assert (code, line) == unreachable("tiny/x") or line.startswith("tiny/x has no model weights")


def test_wrong_length(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", status=200, body=b"short")
    code, line = failure(resolve, "tiny/x")
    assert code == EXIT_UNAVAILABLE
    assert line.startswith("tiny/x could not be fetched: Consistency check failed: file should be")


def test_cache_that_cannot_be_written(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    hub.add_repo("models", "tiny/x", SMALL)
    code, line = failure(resolve, "tiny/x")
    assert code == EXIT_UNAVAILABLE
    assert line.startswith("tiny/x could not be fetched: ")


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
    # The base is gone: the line names it, not the adapter.
    del hub.repos["models", "tiny/llama"]
    assert failure(load, "tiny/lora") == (EXIT_BAD_INPUT, NOT_THERE.format("tiny/llama"))


def test_adapter_with_pickled_weights(hub: LoopbackHub, adapter_files: dict[str, bytes]) -> None:
    config = {"adapter_config.json": adapter_files["adapter_config.json"]}
    hub.add_repo("models", "tiny/lora", config | {"adapter_model.bin": b"x"})
    code, line = failure(load, "tiny/lora")
    assert code == EXIT_BAD_INPUT
    assert "only pickled weights" in line


def cached() -> set[str]:
    return {repo.repo_id for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos}


def test_trim_cache_deletes_what_was_used_least_recently(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own default, so that no mistake in trim_cache can empty the real cache.
    default = "huggingface_hub.utils._cache_manager.HF_HUB_CACHE"
    monkeypatch.setattr(default, constants.HF_HUB_CACHE, raising=False)
    trim_cache(0)  # there is no cache yet
    for name, hours in {"tiny/new": 1, "tiny/old": 3, "tiny/middle": 2}.items():
        hub.add_repo("models", name, SMALL)
        resolve(name)
        for file in Path(constants.HF_HUB_CACHE).glob(f"models--{name.replace('/', '--')}/blobs/*"):
            seconds = 1_700_000_000 - 3600 * hours
            os.utime(file, (seconds, seconds))
    one = sum(map(len, SMALL.values()))
    trim_cache(3 * one)
    assert cached() == {"tiny/new", "tiny/middle", "tiny/old"}
    trim_cache(3 * one - 1)
    assert cached() == {"tiny/new", "tiny/middle"}
    trim_cache(one)
    assert cached() == {"tiny/new"}
    assert weights(resolve("tiny/old")) == WEIGHTS  # fetched again
    trim_cache(0)
    assert not cached()


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

"""Tiny models of many families, built from configs, and the real embedded one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Nothing here may touch the network; the loopback Hub tests set their own endpoint.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.labelled import At
from modelassay.models import LoadedModel, load
from modelassay.probes import Head, Probe, ProbeRecord

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant that answers in a few words<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 300

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_LESS = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
_GEMMA = {**_SIZES, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, sliding_window=64),
    "mixtral": lambda: transformers.MixtralConfig(
        **_SIZES, num_local_experts=4, num_experts_per_tok=2
    ),
    "gemma2": lambda: transformers.Gemma2Config(**_GEMMA),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**_GEMMA),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=_GEMMA, vision_config=_VISION, mm_tokens_per_image=4
    ),
    "phi3": lambda: transformers.Phi3Config(**_SIZES, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=5, n_head=4, n_positions=256
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_LESS),
    "opt": lambda: transformers.OPTConfig(
        **{k: v for k, v in _LESS.items() if k != "intermediate_size"},
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "falcon": lambda: transformers.FalconConfig(**_LESS, new_decoder_architecture=True),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=5, n_head=4
    ),
}


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every text has tokens, none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny(
    folder: Path, family: str = "llama", *, chat: bool = True, seed: int = 0, **settings: int
) -> Path:
    """Saves a tiny model with random weights and its tokenizer."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.update(settings)
    for part in (config, config.get_text_config()):
        part.eos_token_id = 257
        part.bos_token_id = 256
        part.pad_token_id = 257
    if family == "gemma3":
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    make_tokenizer(chat).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a saved tiny model, made once per kind."""
    made: dict[tuple, Path] = {}

    def get(family: str = "llama", *, chat: bool = True, seed: int = 0) -> Path:
        key = (family, chat, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{seed}")
            made[key] = save_tiny(folder, family, chat=chat, seed=seed)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[..., Path]) -> Callable[..., LoadedModel]:
    """A loaded tiny model."""
    loaded: dict[tuple, LoadedModel] = {}

    def get(family: str = "llama", *, chat: bool = True, seed: int = 0) -> LoadedModel:
        key = (family, chat, seed)
        if key not in loaded:
            loaded[key] = load(str(tiny_folder(family, chat=chat, seed=seed)), device="cpu")
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def embedded() -> LoadedModel:
    """The real embedded model."""
    return load("embedded", device="cpu")


@pytest.fixture
def ams_file(tmp_path: Path) -> Path:
    """A concept file in the format of ams-scanner."""
    nouns = ["bread", "paper", "glass", "stone", "wool", "copper", "clay", "silk", "cork", "tin"]
    pairs = [
        {"positive": f"Is {n} loud or quiet?", "negative": f"Does {n} sink or float?"}
        for n in nouns
    ]
    path = tmp_path / "ams.json"
    path.write_text(json.dumps({"texture": {"description": "a test", "pairs": pairs}}))
    return path


def probe_for(
    model: LoadedModel, *, pause: float = 0.5, block: float = 0.9, name: str = "a-probe"
) -> Probe:
    """A probe of random directions that belongs to a model, thresholds as given."""
    generator = torch.Generator().manual_seed(0)
    info = model.info
    heads: dict[At, Head] = {}
    for at in ("prompt", "answer"):
        weight = torch.randn((2, 2, info.hidden_size), generator=generator) / info.hidden_size
        heads[at] = Head(at, "logistic", (1, 3), ("last", "mean"), weight, 0.0, pause, block)
    half = (0.5, 0.5)
    metrics = {
        "auroc": 0.5,
        "interval": half,
        "tpr_at_fpr": {"0.01": None},
        "tpr_interval": {"0.01": None},
        "calibration_error": 0.0,
        "n": 4,
        "n_positive": 2,
        "n_prompts": 4,
    }
    record = ProbeRecord.model_validate(
        {
            "name": name,
            "created": "2026-11-24",
            "model": {
                "id": info.id,
                "architecture": info.architecture,
                "n_layers": info.n_layers,
                "hidden_size": info.hidden_size,
                "weights_sha256": info.weights_sha256,
                "organism": info.organism,
                "dtype": info.dtype,
            },
            "heads": {
                at: {
                    "kind": "logistic",
                    "layers": head.layers,
                    "poolings": head.poolings,
                    "bias": head.bias,
                    "pause": pause,
                    "block": block,
                    "block_rate": 0.0,
                    "block_interval": half,
                    "pause_rate": 0.0,
                    "detected_rate": 0.5,
                    "detected_interval": half,
                    "held_rate": 0.5,
                    "metrics": metrics,
                    "trained_on": {
                        "sha256": "0" * 64,
                        "sources": {"a test": 4},
                        "n_unsafe": 2,
                        "n_safe": 2,
                    },
                }
                for at, head in heads.items()
            },
            "versions": {},
            "weights_sha256": "0" * 64,
        }
    )
    return Probe(record, heads)


CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the page is served."""
    pytest.importorskip("gradio")
    from modelassay.ui import build_app, launch

    demo = build_app()
    _, local_url, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield local_url
    demo.close()


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    """A program that uses the page's endpoints."""
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real browser."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None and os.environ.get("CI"):
        pytest.fail("CI has to install Chromium for the browser tests.")
    if path is None:
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def visit(url: str, browser: Any, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """The page in a browser, on which no script may fail, and where screenshots go."""
    shots = Path(os.environ.get("MODELASSAY_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page, shots
    assert errors == []

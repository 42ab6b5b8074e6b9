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


from modelassay import statistics
from modelassay.models import LoadedModel, load
from tiny import save_tiny

pytest_plugins = ("chat_endpoint", "disks", "loopback_hub")


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
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps of few draws, for tests that are about something other than intervals."""
    monkeypatch.setattr(statistics, "N_RESAMPLES", 20)
    monkeypatch.setattr(statistics, "N_CLUSTER_RESAMPLES", 20)


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


CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served; it knows no results of earlier sessions."""
    pytest.importorskip("gradio")
    from modelassay.ui import build_app, launch, service

    service.CACHE = service.RUNS.cache = service.ReportCache(
        service._opened, service._taken, tmp_path_factory.mktemp("page")
    )
    demo = build_app()
    _, local_url, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield local_url
    demo.close()


@pytest.fixture(scope="session")
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
    """The page in a browser, and where screenshots go.

    No script may fail or complain there, and nothing may be asked of another server.
    """
    shots = Path(os.environ.get("MODELASSAY_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    own = (url, "data:", "blob:", "about:")
    page.on("request", lambda sent: errors.append(sent.url) if not sent.url.startswith(own) else 0)
    page.goto(url)
    yield page, shots
    assert errors == []

"""Load on the page: visitors of all kinds at once, and what they wait for.

python benchmarks/load_page.py [--visitors 20] [--minutes 5] [--url URL]

Without `--url` it starts the page in a process of its own. Most visitors ask for what is cheap
(lists, shown artifacts, hash checks, known reports), some chat, some scan; each asks again as soon
as it was answered. It prints how long each kind took, how many errors there were, and the memory of
the page before, during and after. Exit code 1 if a cheap request took over a second (p95), a
request failed, or memory did not come back to within 5%.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
CHEAP = {
    "list": lambda client: client.predict(api_name="/list_baselines"),
    "show": lambda client: client.predict("baseline", "embedded", api_name="/show_artifact"),
    "hashes": lambda client: client.predict("embedded", "embedded", api_name="/verify"),
    "known": lambda client: client.predict("embedded", "quick", "", True, False, api_name="/scan"),
}
LIMIT_CHEAP = 1.0
LIMIT_MEMORY = 0.05


def chat(client: Any) -> None:
    """A short conversation."""
    client.predict("Name a colour.", max_new_tokens=16, api_name="/chat")


def scan(client: Any) -> None:
    """A quick scan of an organism, of which each is scanned once."""
    name = random.choice(("organism:safe", "organism:benign", "organism:abliterated"))  # noqa: S311
    client.predict(name, "quick", "", True, False, api_name="/scan")


def start_page() -> tuple[subprocess.Popen, str]:
    """The page in a process of its own, and where it is."""
    code = (
        "from modelassay.ui import build_app, launch\n"
        "app, url, _ = launch(build_app(), prevent_thread_lock=True, quiet=True)\n"
        "print(url, flush=True)\n"
        "import threading; threading.Event().wait()\n"
    )
    page = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    for line in page.stdout or ():
        if line.startswith("http"):
            return page, line.strip()
    raise SystemExit("The page did not start.")


def memory_of(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    process = psutil.Process(pid)
    parts = [process, *process.children(recursive=True)]
    return sum(part.memory_info().rss for part in parts) / 1e6


def main() -> int:
    """Loads the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--url", help="a page that runs already")
    given = parser.parse_args()
    from gradio_client import Client

    page, url = (None, given.url) if given.url else start_page()
    took: dict[str, list[float]] = defaultdict(list)
    errors: list[str] = []
    first = Client(url, verbose=False)
    for kind, ask in CHEAP.items():  # what is loaded at the first request stays loaded
        print(f"warming up: {kind}", flush=True)
        ask(first)
    chat(first)
    scan(first)
    before = memory_of(page.pid) if page else 0.0
    until, most = time.monotonic() + 60 * given.minutes, before

    def visit(number: int) -> None:
        client = Client(url, verbose=False)
        kinds: dict[str, Callable[[Any], Any]] = dict(CHEAP)
        if number % 10 == 1:
            kinds = {"chat": chat}
        elif number % 10 == 2:
            kinds = {"scan": scan}
        while time.monotonic() < until:
            kind = random.choice(list(kinds))  # noqa: S311
            started = time.monotonic()
            try:
                kinds[kind](client)
            except Exception as error:  # whatever it is, it is what a visitor meets
                errors.append(f"{kind}: {type(error).__name__}: {error}"[:200])
            took[kind].append(time.monotonic() - started)
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 (people read)

    visitors = [threading.Thread(target=visit, args=(i,)) for i in range(given.visitors)]
    for visitor in visitors:
        visitor.start()
    while any(visitor.is_alive() for visitor in visitors):
        most = max(most, memory_of(page.pid) if page else 0.0)
        time.sleep(2)
    time.sleep(10)
    after = memory_of(page.pid) if page else 0.0
    if page:
        page.terminate()

    def p95(times: list[float]) -> float:
        return sorted(times)[int(0.95 * (len(times) - 1))] if times else 0.0

    for kind, times in sorted(took.items()):
        print(f"{kind:8} n={len(times):5} median {statistics.median(times):6.2f} s,", end=" ")
        print(f"p95 {p95(times):6.2f} s, most {max(times):6.2f} s")
    cheap = p95([t for kind in CHEAP for t in took[kind]])
    print(f"cheap requests: p95 {cheap:.2f} s; errors: {len(errors)}")
    for line in errors[:10]:
        print(f"  {line}")
    if page:
        print(f"memory: {before:.0f} MB before, {most:.0f} at most, {after:.0f} after")
    grown = page is not None and after > before * (1 + LIMIT_MEMORY)
    return int(cheap > LIMIT_CHEAP or bool(errors) or grown)


if __name__ == "__main__":
    sys.exit(main())

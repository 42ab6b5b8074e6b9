"""Two runs at once: how much longer they take than one alone, and what a chat loses to a scan.

python benchmarks/bench_threads.py [--rounds 3]

Each run is a quick scan of the embedded model in a process of its own; alone and two at once in
turns. It prints ratios, which hold on other machines too; a quiet machine is needed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from modelassay.cli import main; sys.exit(main())"
SCAN = [sys.executable, "-c", COMMAND, "scan", "embedded", "--mode", "quick", "--json"]
CHAT = """
import sys, time
from modelassay.ui.chat_service import run_chat
def rate():
    events = run_chat("Tell me a story.", max_new_tokens=40)
    times = [time.perf_counter() for event in events if event.kind == "token"]
    return (len(times) - 1) / (times[-1] - times[0])
rate()
for line in sys.stdin:
    print(rate(), flush=True)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def start_scan() -> subprocess.Popen:
    """A scan in a process of its own."""
    return subprocess.Popen(
        SCAN, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )


def seconds(n: int) -> float:
    """Of some scans at once, until the last of them ends."""
    started = time.perf_counter()
    runs = [start_scan() for _ in range(n)]
    for run in runs:
        if not run.communicate()[0].startswith(b"{"):
            raise SystemExit("A scan gave no report; run it by hand to see why.")
    return time.perf_counter() - started


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    seconds(1)  # files are in memory then
    ratios = []
    for _ in range(given.rounds):
        alone, both = seconds(1), seconds(2)
        ratios.append(both / alone)
        print(f"two scans at once / one alone: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")

    chat = subprocess.Popen(
        [sys.executable, "-c", CHAT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )

    def rate() -> float:
        if chat.stdin is None or chat.stdout is None:
            raise SystemExit("The chat did not start.")
        print(file=chat.stdin, flush=True)
        return float(chat.stdout.readline())

    kept = []
    for _ in range(given.rounds):
        alone = rate()
        scan = start_scan()
        time.sleep(8)  # it has loaded by then
        kept.append(rate() / alone)
        scan.kill()
        scan.wait()
        print(f"tokens a second beside a scan / alone: {kept[-1]:.2f}", flush=True)
    print(f"median {statistics.median(kept):.2f}, range {min(kept):.2f} to {max(kept):.2f}")
    chat.kill()


if __name__ == "__main__":
    main()

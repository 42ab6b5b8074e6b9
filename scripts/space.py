"""Assembles what is pushed to a Space, installs it in a fresh environment, and asks it once.

python scripts/space.py             # all of it, in dist/space
python scripts/space.py --assemble  # only the folder, for:
hf upload OWNER/NAME dist/space . --repo-type space
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "dist" / "space"
FILES = ("LICENSE", "README.md", "agents.md", "app.py", "requirements.txt")
FOLDERS = (
    "src/modelassay",
    "baselines",
    "calibrations",
    "classifiers",
    "concepts",
    "dictionaries",
    "monitors",
    "probes",
    "reports",
    "examples/attacks",
    "examples/audits",
    "examples/organisms",
    "examples/suites",
)
HEADER = ("title", "sdk", "sdk_version", "python_version", "app_file", "license")
MAX_BYTES = 1_000_000_000
"""Of a Space's repository without storage that is paid for."""
START_SECONDS, REQUEST_SECONDS = 300, 600
REQUEST = ["organism:safe", "quick", "", True, False]
"""Of /scan; an organism is the embedded model with an adapter from the folder."""


def check(condition: object, message: str) -> None:
    """Ends with the message unless the condition holds."""
    if not condition:
        raise SystemExit(message)


def tracked(*paths: str) -> list[str]:
    """The files that git knows under these paths: nothing that merely lies around is published."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def assemble(target: Path = SPACE) -> Path:
    """Puts the Space's files into a new folder; returns it."""
    names = tracked(*FILES, *FOLDERS)
    for wanted in (*FILES, *FOLDERS):
        there = any(name == wanted or name.startswith(f"{wanted}/") for name in names)
        check(there, f"git knows no {wanted}, which the Space needs")
    check(not any((ROOT / name).is_symlink() for name in names), "a link cannot be published")
    shutil.rmtree(target, ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    size = sum((ROOT / name).stat().st_size for name in names)
    check(size <= MAX_BYTES, f"{size / 1e9:.1f} GB are more than a Space may have")
    check_header(target)
    print(f"{target}: {len(names)} files, {size / 1e6:.0f} MB")
    return target


def check_header(folder: Path) -> None:
    """Checks that the head of README.md configures a Space of this folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    missing = [key for key in HEADER if key not in header]
    check(not missing, f"the head of README.md lacks {', '.join(missing)}")
    check(header["sdk"] == "gradio", "the Space is not of the Gradio kind")
    check((folder / header["app_file"]).is_file(), f"there is no {header['app_file']}")
    pinned = re.search(r"^gradio==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    check(
        pinned and pinned[1] == header["sdk_version"],
        "README.md names another version of gradio than constraints.txt",
    )


def install(folder: Path, environment: Path) -> Path:
    """Installs a Space's own requirements.txt into a fresh environment; returns its Python.

    The versions are those of constraints.txt, so that the same is tested every time; what is
    installed is what requirements.txt asks for and nothing else.
    """
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    versions = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, *versions, "--requirement", folder / "requirements.txt"], check=True)
    return python


@contextmanager
def serving(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Runs the page until the end of the block; gives its address.

    Args:
        command: That starts it.
        folder: In which it runs.
        environment: What it finds in its environment besides the caller's, without this checkout.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    here = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        command, cwd=folder, env={**kept, **here, **environment}, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, lambda: process.poll() is None)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(address: str, runs: Any = lambda: True) -> None:
    """Waits until the page answers.

    Args:
        address: Of the page.
        runs: Tells whether there is still something to wait for.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        check(runs(), "the page ended before it answered")
        try:
            with urllib.request.urlopen(f"{address}/gradio_api/info", timeout=10) as answer:  # noqa: S310
                json.load(answer)
                return
        except (OSError, ValueError):
            time.sleep(0.5)
    raise SystemExit(f"the page did not answer within {START_SECONDS} s")


def ask(address: str) -> dict[str, Any]:
    """Has the page scan an organism, as a stranger's program would; returns the report."""
    call = f"{address}/gradio_api/call/scan"
    body = json.dumps({"data": REQUEST}).encode()
    asked = urllib.request.Request(call, body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=REQUEST_SECONDS) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    check("event: complete" in lines, f"the page answered with {lines[-3:]}")
    (report,) = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
    return report


def check_answer(address: str) -> None:
    """Checks that the page scans, and tells its users how to talk to it."""
    report = ask(address)
    check(report["schema"] == "modelassay.scan/1", f"a scan gave {report}")
    check(report["model"]["id"] == REQUEST[0], "a scan was of another model")
    print(f"a quick scan of {REQUEST[0]} through the page: {report['verdict']}")


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assemble", action="store_true", help="only make the folder")
    folder = assemble()
    if parser.parse_args().assemble:
        return
    with tempfile.TemporaryDirectory(prefix="modelassay-space-") as scratch:
        copy = shutil.copytree(folder, Path(scratch, "space"))  # away from the checkout
        python = install(copy, Path(scratch, "environment"))
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with serving([python, "app.py"], copy, offline) as address:
            check_answer(address)
    print("The Space works from its own requirements.txt alone.")


if __name__ == "__main__":
    sys.exit(main())

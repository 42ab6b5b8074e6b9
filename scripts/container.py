"""Builds the Dockerfile's image, starts it and asks the page once; or does it without Docker.

python scripts/container.py            # Docker where a daemon answers, else its steps by hand
python scripts/container.py --docker   # fails where there is no Docker

By hand means: the files that COPY names go into an empty folder, what RUN installs goes into a
fresh environment, and CMD starts there with what ENV sets. The base image, the user and the health
check are then not tried, and the last line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from space import ROOT, check, check_answer, serving, tracked, wait_for

KNOWN = (
    *("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN"),
    *("USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"),
)
LIKE_COMPOSE = "--read-only --tmpfs /tmp --tmpfs /home/visitor --cap-drop ALL"
IMAGE = "modelassay:checked"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, in their order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            check(name in KNOWN, f"the Dockerfile has {name}, which this script cannot follow")
            found.append((name, rest.strip()))
    return found


def check_files() -> None:
    """Checks what the files say: sources are there, nobody is root, services can do no harm."""
    steps = instructions()
    for name, rest in steps:
        if name == "COPY":
            *sources, target = rest.split()
            check(target == "./" or sources == [target], f"COPY {rest} moves files about")
            for source in sources:
                check(tracked(source), f"COPY {source}: git knows no such file")
    users = [rest for name, rest in steps if name == "USER"]
    check(users and users[-1] != "root", "the image runs as root")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for name, service in services.items():
        check(service["read_only"], f"{name} may write to its image")
        check(service["cap_drop"] == ["ALL"], f"{name} keeps capabilities")
        published = [port for port in service["ports"] if not port.startswith("127.0.0.1:")]
        check(not published, f"{name} is open to the network without a proxy")
    arguments = services["page-gpu"]["build"]["args"]
    declared = {rest.partition("=")[0] for name, rest in steps if name == "ARG"}
    check(set(arguments) <= declared, f"the Dockerfile declares no {arguments}")


def docker_answers() -> bool:
    """Whether there is a daemon that builds images."""
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return asked.returncode == 0


@contextmanager
def in_docker() -> Iterator[str]:
    """Builds the image and runs it; gives the page's address."""
    subprocess.run(["docker", "build", "--tag", IMAGE, ROOT], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = LIKE_COMPOSE.split()
    started = subprocess.run(
        ["docker", "run", "--detach", *options, "--publish", f"127.0.0.1:{port}:7860", IMAGE],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address)
        yield address
    finally:
        subprocess.run(["docker", "logs", "--tail", "20", started], check=False)
        subprocess.run(["docker", "rm", "--force", "--volumes", started], check=False)


@contextmanager
def by_hand(scratch: Path) -> Iterator[str]:
    """Follows the instructions in an empty folder and a fresh environment; gives the address."""
    root, environment = scratch / "app", scratch / "environment"
    root.mkdir()
    venv.create(environment, with_pip=True)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{environment / 'bin'}{os.pathsep}{kept['PATH']}"
    settings: dict[str, str] = {}
    left_out: list[str] = []
    command: list[str] = []
    for name, rest in instructions():
        if name in ("ARG", "ENV"):
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                settings[key] = value.replace("/data", f"{scratch}/data")
        elif name == "COPY":
            for file in tracked(*rest.split()[:-1]):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, root / file)
        elif name == "RUN" and rest.startswith("pip "):
            run = {**kept, **settings, "PATH": path}
            if not os.environ.get("CI"):  # the index that this machine has is as good
                run["TORCH_INDEX"] = os.environ.get(
                    "PIP_EXTRA_INDEX_URL", "https://pypi.org/simple"
                )
            subprocess.run(["sh", "-c", f"{rest} --quiet"], cwd=root, env=run, check=True)
        elif name == "CMD":
            command = json.loads(rest)
        else:
            left_out.append(f"{name} {rest}"[:60])
    print("Not followed without Docker:", *left_out, sep="\n  ")
    chosen = {"GRADIO_SERVER_NAME": "127.0.0.1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if own := os.environ.get("MODELASSAY_CACHE"):
        chosen["MODELASSAY_CACHE"] = own
    settings.pop("GRADIO_SERVER_PORT")
    with serving(command, root, {**settings, "PATH": path, **chosen}) as address:
        yield address


def main() -> None:
    """Runs the checks that this machine can run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docker", action="store_true", help="fail where there is no Docker")
    wanted = parser.parse_args().docker
    check_files()
    if docker_answers():
        with in_docker() as address:
            check_answer(address)
        print("The image builds, starts as an ordinary user, and answers.")
        return
    check(not wanted, "no Docker daemon answers here")
    with (
        tempfile.TemporaryDirectory(prefix="modelassay-image-") as scratch,
        by_hand(Path(scratch)) as address,
    ):
        check_answer(address)
    print("The Dockerfile's steps work in a fresh environment. DOCKER WAS NOT RUN: none is here.")


if __name__ == "__main__":
    sys.exit(main())

"""Builds wheel and sdist, looks into both, and scans from the wheel in a fresh environment.

python scripts/distribution.py             # all of it; the environment is in a temporary folder
python scripts/distribution.py --tag v1.2  # only checks that a tag names the version
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
IN_WHEEL = (
    "modelassay/__init__.pyi",
    "modelassay/py.typed",
    "modelassay/data/concepts.py",
    "modelassay/report/fonts/Inter-Regular.otf",
    "modelassay/shipped/attacks/attacks.yaml",
    "modelassay/shipped/concepts/harmful_content.yaml",
    "modelassay/shipped/concepts/features/refusal.yaml",
    "modelassay/shipped/organisms/safe/adapter_model.safetensors",
    "modelassay/shipped/suites/identity.yaml",
    "modelassay/shipped/baselines/embedded/baseline.json",
    "modelassay/shipped/probes/embedded/probe.safetensors",
    "modelassay/shipped/classifiers/embedded/classifier.json",
    "modelassay/shipped/dictionaries/embedded/sae_weights.safetensors",
    "modelassay/shipped/calibrations/organism-safe/calibration.json",
    "modelassay/shipped/monitors/organism-safe/monitor.safetensors",
    "modelassay/shipped/reports/scan-organism-safe/report.json",
    "modelassay/ui/assets/fonts/plex-sans-400.woff2",
)
INCONCLUSIVE = 3  # what a quick scan of a model without damage in its weights ends with


def version() -> str:
    """The version in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("pyproject.toml states no version")
    return found.group(1)


def check(condition: bool, message: str) -> None:
    """Ends with the message unless the condition holds."""
    if not condition:
        raise SystemExit(message)


def build() -> tuple[Path, Path]:
    """Builds both; returns the wheel and the sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", DIST, ROOT], check=True)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return wheel, sdist


def look_into(wheel: Path, sdist: Path) -> None:
    """Checks that what is needed is in, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in IN_WHEEL if name not in names]
    check(not missing, f"{wheel.name} lacks {', '.join(missing)}")
    outside = {name.split("/")[0] for name in names} - {"modelassay"}
    check(len(outside) == 1, f"{wheel.name} holds {', '.join(sorted(outside))}")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    strangers = sorted(members - {*tracked, "PKG-INFO"})
    check(not strangers, f"{sdist.name} holds files that git does not know: {strangers[:5]}")
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


def scan_from(wheel: Path) -> None:
    """Installs the wheel in a fresh environment outside of the checkout and runs a quick scan."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel], check=True)
        done = subprocess.run(
            [Path(folder, "bin", "modelassay"), "scan", "embedded", "--mode", "quick"],
            cwd=folder,
            env=environment,
            check=False,
        )
        check(done.returncode == INCONCLUSIVE, f"the scan ended with {done.returncode}")
    print("A quick scan from the wheel works.")


def main() -> None:
    """Runs the checks that the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tag", help="only check that this tag names the version")
    tag = parser.parse_args().tag
    if tag is not None:
        check(tag.removeprefix("v") == version(), f"{tag} is not version {version()}")
        return
    wheel, sdist = build()
    look_into(wheel, sdist)
    scan_from(wheel)


if __name__ == "__main__":
    main()

"""The examples for CI, run as they stand against a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import modelassay
from modelassay.data.concepts import concepts_for
from modelassay.measures.examination import examine
from modelassay.verify import push_baseline
from modelassay.verify.creating import baseline_of

CI = Path(__file__).parents[2] / "examples" / "ci"
TOKEN = "hf_alice"


@pytest.fixture(scope="module")
def examined(tiny_folder):
    """The model, and what was measured on it."""
    model = modelassay.load(str(tiny_folder()), device="cpu")
    concepts = concepts_for("quick")
    return model, examine(model, mode="quick", concepts=concepts, identity=True, n_swaps=1)


@pytest.fixture
def environment(hub, tiny_folder, tmp_path, examined) -> dict[str, str]:
    """A Hub with a model, a copy that was tampered with, and a baseline of the first."""
    hub.add_writer(TOKEN, "alice")
    for name, seed in (("model", 0), ("tampered", 1)):
        files = {f.name: f.read_bytes() for f in tiny_folder(seed=seed).iterdir()}
        hub.add_repo("models", f"alice/{name}", files)
    for name in ("model", "tampered"):
        baseline = baseline_of(*examined, f"alice--{name}", "alice/model")
        pushed = push_baseline(baseline, "alice/baselines", token=TOKEN)
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BASELINE": f"alice/baselines:alice--model@{pushed.commit}",
    }


@pytest.mark.parametrize(("model", "codes"), [("alice/model", [0, 3]), ("alice/tampered", [2])])
def test_the_workflow(environment, model, codes, tmp_path):
    workflow = yaml.safe_load((CI / "github-actions.yml").read_text())
    steps = [s for s in workflow["jobs"]["assay"]["steps"] if "run" in s and s["name"] != "Install"]
    for step, code in zip(steps, codes, strict=False):
        # As GitHub runs a step: the shell ends at the first command that fails.
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            env=environment | {"MODEL": model},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["verified"] is (codes[0] == 0)
    assert report["baseline"]["revision"] == environment["BASELINE"].partition("@")[2]
    if len(codes) > 1:  # random weights neither refuse nor answer
        assert json.loads((tmp_path / "scan.json").read_text())["verdict"] == "INCONCLUSIVE"
        assert (tmp_path / "report.html").stat().st_size > 1000


def test_the_job_on_the_hub(environment):
    done = subprocess.run(
        [sys.executable, str(CI / "hub_job.py"), "alice", "alice/baselines"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines[0].startswith("alice/model: verified: ")
    assert lines[1].startswith("alice/tampered: NOT VERIFIED: ")

"""GPUs that are lent for some seconds: the page on a ZeroGPU Space, through the worker itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
import gradio as gr

from modelassay.ui.zero import NoGpuError, explained

SPACE = Path(__file__).parents[1] / "support" / "zero_gpu.py"
MESSAGES = {
    "You have exceeded your free ZeroGPU quota (60s requested vs. 12s left). Try again in 1 day,"
    " 2:30:00.": (NoGpuError, "60 s of GPU, and 12 s are left .* try again in 26 h"),
    "You have exceeded your ZeroGPU runs limit. ": (NoGpuError, "used up"),
    "Space app has reached its GPU limit. Try": (NoGpuError, "used up"),
    "The requested GPU duration (400s) is larger than the maximum allowed": (None, "more GPU time"),
    "No GPU was available after 60s. Retry later": (NoGpuError, "No GPU is free now"),
    "GPU task aborted": (None, "taken away before the end"),
    "Expired ZeroGPU proxy token": (NoGpuError, "reload"),
    "OutOfMemoryError": (None, "failed unexpectedly"),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_what_zerogpu_says_becomes_a_sentence_that_says_what_to_do(message):
    kind, words = MESSAGES[message]
    told = explained(gr.Error(message))
    assert isinstance(told, NoGpuError) == (kind is NoGpuError)
    with pytest.raises(type(told), match=words):
        raise told
    assert "\n" not in str(told)


@pytest.fixture(scope="module")
def visits(tmp_path_factory, tiny_folder):
    """What came of visits to such a Space."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, as ZeroGPU does")
    cache = tmp_path_factory.mktemp("cache")
    ran = subprocess.run(
        [sys.executable, str(SPACE), str(tiny_folder())],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "2",  # which a fork must not wait for
            "MODELASSAY_CACHE": str(cache),
            "MODELASSAY_PROBES": str(cache / "probes"),
            "PYTHONPATH": os.pathsep.join([str(SPACE.parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_scan_holds_a_gpu_only_while_the_model_runs(visits):
    scan = visits["scan"]
    assert scan["result"]["schema"] == "modelassay.scan/1"
    assert [asked["size"] for asked in scan["asked"]] == ["large"]
    assert scan["asked"][0]["seconds"] <= 15
    assert scan["weights here"]  # in the page's own process, where seconds cost nothing
    assert scan["phases"] == ["fetching", "loading", "weights", "reading", "statistics"]
    assert visits["allowed"] == [True]


def test_errors_and_whole_comparisons_cross_the_border(visits):
    assert "does not refuse" in visits["error"]["error"]
    assert visits["diff"]["result"].startswith("Comparison(report=DiffReport(")
    assert len(visits["diff"]["asked"]) == 1


def test_without_quota_small_models_run_on_the_cpu_and_others_are_told_what_to_do(visits):
    small = visits["no quota"]
    assert small["result"]["schema"] == "modelassay.scan/1"
    assert "runs on the CPU" in small["notes"][0]
    large = visits["no quota, large"]
    assert "3 s are left of your quota for today: log in" in large["error"]
    assert visits["chat"]["result"] == visits["chat without quota"]["result"] == "end"


def test_a_worker_that_was_killed_is_a_sentence_and_the_next_request_works(visits):
    assert "taken away before the end" in visits["killed"]["error"]
    assert visits["after"]["result"]["schema"] == "modelassay.scan/1"


def test_who_leaves_gives_the_gpu_back(visits):
    assert visits["left"][-1] == "/release"

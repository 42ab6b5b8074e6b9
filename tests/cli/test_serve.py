"""`modelassay serve` as a process of its own, asked by OpenAI's client, and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import openai
import pytest

from modelassay.probes import save_probe
from serving import client_of
from tiny import probe_for

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def command(tiny, tiny_folder, tmp_path):
    made = probe_for(tiny(), pause=0.999999, block=1.0)
    folder = tmp_path / "probe"
    folder.mkdir()
    save_probe(made.record, made.heads, folder)
    options = ["--probe", str(folder), "--classifier", "none", "--port", "0", "--quiet"]
    return ["serve", str(tiny_folder()), *options]


def test_it_serves_until_it_is_interrupted(command, tiny_folder):
    """With a key from the environment; the folder's path stays on the machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from modelassay.cli import main; main()", *command],
        env={**os.environ, "MODELASSAY_SERVE_KEY": KEY},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+)/v1 \(conversations share passes\)", first)
        assert found, first + process.stderr.read()
        with client_of(found[1], api_key=KEY) as client:
            name = client.models.list().data[0].id
            assert name == tiny_folder().name
            said = [{"role": "user", "content": "Do not log this"}]
            answer = client.chat.completions.create(model=name, messages=said, max_tokens=3)
            assert answer.usage.completion_tokens <= 3
        with client_of(found[1]) as other, pytest.raises(openai.AuthenticationError):
            other.models.list()
        assert str(tiny_folder()) not in httpx.get(found[1] + "/health").text
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        watchdog.cancel()
    assert out == ""
    assert process.returncode in (0, 130)
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["message"] == "request"] == [200, 200, 401]
    assert "Traceback" not in err
    assert "Do not log" not in err
    assert KEY not in err

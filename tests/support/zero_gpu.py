"""A ZeroGPU Space in a process of its own: the worker of `spaces`, with a device that is none.

`python zero_gpu.py FOLDER` runs visits on the tiny model in that folder and prints what came of
them as JSON. The service that lends GPUs is a loopback server; what moves tensors does nothing; and
in the page's own process there seems to be a GPU, as there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

CALLS: list[tuple[str, dict[str, str]]] = []
LEFT: dict[str, int | None] = {"seconds": None}
"""Of the visitor's quota; None for plenty."""


class Lender(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        url = urlparse(self.path)
        CALLS.append((url.path, {k: v[0] for k, v in parse_qs(url.query).items()}))
        code, answer = 200, {}
        if url.path == "/schedule" and LEFT["seconds"] is not None:
            code, answer = 429, {"left": LEFT["seconds"], "wait": 3600}
        elif url.path == "/schedule":
            answer = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "G", "allowToken": "t"}
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


def start() -> None:
    """Makes this process such a Space; before anything imports `spaces`."""
    import torch

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
    }
    without = torch.cuda.is_available
    device: Any = types.ModuleType("spaces.zero.torch")
    device.patch = lambda: setattr(torch.cuda, "is_available", lambda: True)
    device.unpatch = lambda: setattr(torch.cuda, "is_available", without)
    device.enter_mode = device.init = device.move = lambda *_a, **_k: None
    device.size = device.pack = lambda *_a, **_k: 0
    device.is_in_bad_fork = lambda: False
    sys.modules["spaces.zero.torch"] = device


def calls_since(n: int) -> list[tuple[str, dict[str, str]]]:
    return [(path, query) for path, query in CALLS[n:] if path == "/schedule"]


def ended(results: Any) -> dict[str, Any]:
    """What a visitor gets in the end."""
    from modelassay.errors import AssayError
    from modelassay.ui.runs import Step

    n, notes, phases = len(CALLS), [], []
    found: dict[str, Any] = {}
    try:
        for result in results:
            if isinstance(result, Step):
                notes += [result.note] if result.note not in notes else []
                phases += [result.phase] if result.phase not in phases else []
            else:
                found["result"] = result.to_dict() if hasattr(result, "to_dict") else str(result)
    except AssayError as error:
        found["error"] = str(error)
    asked = [
        {"seconds": int(q["durationSeconds"]), "size": q.get("gpuSize")} for _, q in calls_since(n)
    ]
    return {**found, "asked": asked, "notes": [n for n in notes if n], "phases": phases}


def main(folder: str) -> None:
    start()
    os.environ["MODELASSAY_ALLOW_LOCAL"] = "1"
    from gradio.context import LocalContext
    from starlette.datastructures import Headers

    from modelassay.guard import Thresholds
    from modelassay.measures import examination
    from modelassay.models import load
    from modelassay.probes import store_probe
    from modelassay.ui import chat_service, service, zero
    from tiny import probe_for

    visits: dict[str, Any] = {}
    here = os.getpid()
    measured: list[int] = []
    weigh = examination.search_ablation

    def weighed(*given: Any, **named: Any) -> Any:
        measured.append(os.getpid())
        return weigh(*given, **named)

    examination.search_ablation = weighed
    visits["scan"] = ended(service.run_scan(folder, "quick"))
    visits["scan"]["weights here"] = measured == [here]
    visits["allowed"] = [q["pid"] != str(here) for p, q in CALLS if p == "/allow"]
    visits["error"] = ended(service.run_circuit(folder))
    visits["diff"] = ended(service.run_diff(folder, folder, "none", False, False))

    class Request:
        headers = Headers({"x-ip-token": "a.b.c"})
        client = None

    LocalContext.request.set(Request())  # type: ignore[arg-type]
    LEFT["seconds"] = 3
    visits["no quota"] = ended(service.run_scan(folder, "quick"))
    small, service.SMALL_BYTES = service.SMALL_BYTES, 0
    visits["no quota, large"] = ended(service.run_scan(folder, "quick"))
    service.SMALL_BYTES, LEFT["seconds"] = small, None

    moved, zero._moved = zero._moved, lambda _: os.kill(os.getpid(), signal.SIGKILL)
    visits["killed"] = ended(service.run_scan(folder, "quick"))
    zero._moved = moved
    visits["after"] = ended(service.run_scan(folder, "quick"))

    n = len(CALLS)
    leaving = service.run_scan(folder, "quick")
    for step in leaving:
        if getattr(step, "phase", "") == "reading":
            break
    leaving.close()
    for thread in threading.enumerate():
        if "(work)" in thread.name:
            thread.join(timeout=20)
    visits["left"] = [path for path, _ in CALLS[n:]]

    probe = probe_for(load(folder, device="cpu"))
    store_probe(probe.record, probe.heads)
    chat_service.shared_classifier = lambda: None  # type: ignore[assignment]
    bounds = Thresholds(0.999999, 1.0)

    def chat() -> Any:
        for event in chat_service.run_chat(
            "Hello", None, folder, max_new_tokens=8, thresholds=bounds, prompt_thresholds=bounds
        ):
            yield event.kind

    visits["chat"] = ended(chat())
    LEFT["seconds"] = 3
    visits["chat without quota"] = ended(chat())
    print(json.dumps(visits, default=str))


if __name__ == "__main__":
    main(sys.argv[1])

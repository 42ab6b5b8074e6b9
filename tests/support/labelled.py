"""Features whose tokens are known, and a Neuronpedia on this machine."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np

from modelassay.sae import find_sae

SENTENCE = "the quick brown fox jumps over a lazy dog while ten wizards box quietly"
WORDS = SENTENCE.split()
LAYER, WIDTH = 0, 24
ON_X, AFTER_O, RANDOM, DEAD, TWIN = 3, 5, 9, 13, 17
NEURONPEDIA = "tiny/0-planted"


def make_texts(n: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=12)) for _ in range(n)]


TEXTS, HELD_OUT = make_texts(60, 0), make_texts(40, 1)


def in_folder(planted, folder):
    planted.module.save_model(folder)
    return find_sae(str(folder))


class Neuronpedia:
    """A server on 127.0.0.1 that speaks Neuronpedia's batch lookup; answers can be planned."""

    def __init__(self) -> None:
        self.asked: list[list[dict]] = []
        self.texts: dict[int, str] = {ON_X: "the letter x", 2: "a  secret\nthing\u202e"}
        self.planned: list[tuple[int, bytes, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body)
                assert self.path == "/api/features"
                status, content, headers = server.response(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def response(self, body: list[dict]) -> tuple[int, bytes, dict[str, str]]:
        if self.planned:
            return self.planned.pop(0)
        rows = []
        for feature in body:  # as the schema of its route asks
            assert isinstance(feature["modelId"], str)
            assert isinstance(feature["layer"], str)
            assert isinstance(feature["index"], int)
            text = self.texts.get(feature["index"])
            listed = [{"description": text, "explanationModelName": "m"}] if text else []
            rows.append({**feature, "index": str(feature["index"]), "explanations": listed})
        return 200, json.dumps(rows).encode(), {}

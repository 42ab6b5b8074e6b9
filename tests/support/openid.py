"""A provider of OpenID Connect on 127.0.0.1 that logs everybody in as one account.

It answers as huggingface.co does, as far as gradio can tell: discovery, consent that is given at
once, a signed id token, an access token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "client-of-the-space"


class _Handler(BaseHTTPRequestHandler):
    token: str
    username: str
    key: RSAKey
    asked: list[str]
    nonces: dict[str, str]

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        here = f"http://{self.headers['Host']}"
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path == "/.well-known/openid-configuration":
            self.answer(
                {
                    "issuer": here,
                    "authorization_endpoint": f"{here}/oauth/authorize",
                    "token_endpoint": f"{here}/oauth/token",
                    "jwks_uri": f"{here}/oauth/jwks",
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        elif address.path == "/oauth/jwks":
            self.answer({"keys": [self.key.as_dict(private=False)]})
        else:
            self.asked.append(query["scope"])
            self.nonces["code"] = query.get("nonce", "")
            back = urlencode({"code": "code", "state": query["state"]})
            joint = "&" if "?" in query["redirect_uri"] else "?"
            self.send_response(302)
            self.send_header("Location", f"{query['redirect_uri']}{joint}{back}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        now = int(time.time())
        claims = {
            "iss": f"http://{self.headers['Host']}",
            "aud": CLIENT,
            "sub": "1",
            "iat": now,
            "exp": now + 3600,
            "nonce": self.nonces["code"],
            "name": self.username,
            "preferred_username": self.username,
            "profile": f"https://huggingface.co/{self.username}",
            "picture": "",
        }
        signed = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        self.answer(
            {
                "access_token": self.token,
                "token_type": "bearer",
                "expires_in": 3600,
                "scope": "openid profile",
                "id_token": signed,
            }
        )

    def answer(self, values: dict[str, Any]) -> None:
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@contextmanager
def openid_provider(token: str, username: str) -> Iterator[tuple[str, list[str]]]:
    """Serves until the end of the block; gives its address, and the scopes that were asked for."""
    asked: list[str] = []
    key = RSAKey.generate_key(2048, auto_kid=True)
    kind = {"token": token, "username": username, "key": key, "asked": asked, "nonces": {}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), kind))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()

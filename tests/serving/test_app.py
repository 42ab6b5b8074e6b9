"""The server on loopback, asked by OpenAI's own client, and by clients that mean no good."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from guarding import OPEN, Judge, text_of
from modelassay.guard import REFUSAL, Guard, Sampling, Thresholds
from modelassay.serving.engine import Room
from modelassay.serving.logs import JsonLines
from serving import NAME, client_of, serving
from tiny import probe_for

KEY = "sk-a-test-of-a-long-key"
GUARDING = {"thresholds": OPEN, "prompt_thresholds": OPEN}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guard(tiny):
    return Guard(tiny(), probe_for(tiny()))


@pytest.fixture(scope="module")
def site(guard):
    with serving(guard, guarding=GUARDING, most_tokens=200, most_bytes=20_000) as found:
        yield found


@pytest.fixture(scope="module")
def url(site):
    return site[0]


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as found:
        yield found


def says(text):
    return [{"role": "user", "content": text}]


def body(text="Hello", **fields):
    return {"model": NAME, "messages": says(text), "temperature": 0, "max_tokens": 8} | fields


def alone(guard, messages, tokens=8, sampling=None, **options):
    return list(
        guard.stream(messages, max_new_tokens=tokens, sampling=sampling, **GUARDING | options)
    )


def test_a_completion_is_what_the_guard_shows(client, guard):
    messages = [{"role": "system", "content": "Be short."}, *says("Hello there")]
    found = client.chat.completions.create(
        model=NAME, messages=messages, temperature=0, max_tokens=12
    )
    own = alone(guard, messages, 12)
    choice = found.choices[0]
    assert choice.message.content == text_of(own)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert found.object == "chat.completion"
    assert found.model == NAME
    assert found.usage.completion_tokens == own[-1].index == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12
    told = choice.model_extra["guard"]
    assert told["prompt_risk"] == pytest.approx(own[0].risk, abs=1e-4)
    assert told["highest_risk"] == pytest.approx(
        max(e.risk for e in own if e.kind == "token"), abs=1e-4
    )
    assert told["reason"] == "length"
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    again = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": parts},
        ],
        temperature=0,
        max_completion_tokens=12,
    )
    assert again.choices[0].message.content == choice.message.content
    assert again.id != found.id
    history = [*messages, choice.message, *says("And?")]  # as clients send an answer back
    assert client.chat.completions.create(model=NAME, messages=history, max_tokens=1).choices


def test_a_stream_is_the_same_text_with_risks(client, guard, url):
    own = alone(guard, "Hello there", 12)
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=says("Hello there"),
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].model_extra["guard"]["risk"] == pytest.approx(own[0].risk, abs=1e-4)
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == text_of(own)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    raw = httpx.post(url + CHAT, json=body(stream=True))
    assert raw.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in raw.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    parsed = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("usage" not in each for each in parsed)
    assert parsed[-1]["choices"][0]["delta"] == {}


def test_stops_seeds_and_choices(client, guard):
    asked = {"model": NAME, "messages": says("Hello"), "max_tokens": 12}
    whole = text_of(alone(guard, "Hello", 12))
    stop = whole[5:7]
    cut = client.chat.completions.create(**asked, temperature=0, stop=stop).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    several = client.chat.completions.create(**asked, seed=5, n=3, temperature=1.2, top_p=0.9)
    made = [choice.message.content for choice in several.choices]
    for i, text in enumerate(made):
        way = Sampling(temperature=1.2, top_p=0.9, seed=5 + i)
        assert text == text_of(alone(guard, "Hello", 12, way))
    assert len(set(made)) == 3
    assert several.usage.completion_tokens == sum(
        alone(guard, "Hello", 12, Sampling(temperature=1.2, top_p=0.9, seed=5 + i))[-1].index
        for i in range(3)
    )
    chunks = client.chat.completions.create(
        **asked, seed=5, n=3, temperature=1.2, top_p=0.9, stream=True
    )
    joined = ["", "", ""]
    for chunk in chunks:
        joined[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert joined == made


def test_models_health_and_metrics(client, url):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "modelassay"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
    health = httpx.get(url + "/health").json()
    assert health["status"] == "ok"
    assert health["batched"]
    httpx.post(url + CHAT, json=body()).raise_for_status()
    text = httpx.get(url + "/metrics").text
    assert 'modelassay_requests_total{place="/v1/chat/completions",status="200"}' in text
    assert 'modelassay_responses_total{reason="length"}' in text
    assert "modelassay_pass_responses_bucket" in text
    assert "modelassay_waiting_responses 0.0" in text


def test_32_conversations_at_once_get_their_own_texts(url, guard, site):
    """Streams and whole answers mixed; the server answers others at once meanwhile."""
    prompts = [f"Conversation {i} " + "x" * (i % 7) for i in range(32)]
    waits = []

    async def ask(client, i):
        asked = {"model": NAME, "messages": says(prompts[i]), "temperature": 0, "max_tokens": 20}
        if i % 2:
            return (await client.chat.completions.create(**asked)).choices[0].message.content
        stream = await client.chat.completions.create(**asked, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def look(client, done):
        while not done.is_set():
            start = time.monotonic()
            await client.models.list()
            waits.append(time.monotonic() - start)
            await asyncio.sleep(0.05)

    async def run():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            done = asyncio.Event()
            looking = asyncio.create_task(look(client, done))
            texts = await asyncio.gather(*(ask(client, i) for i in range(32)))
            done.set()
            await looking
            return texts

    rows = []
    service = site[1]

    def slowly(n, _seconds):  # a machine with other work may be slow to ask all 32
        rows.append(n)
        time.sleep(0.02)

    on_pass, service.engine._on_pass = service.engine._on_pass, slowly
    texts = asyncio.run(run())
    service.engine._on_pass = on_pass
    for prompt, text in zip(prompts, texts, strict=True):
        assert text == text_of(alone(guard, prompt, 20))
    assert max(rows) > 8  # they shared passes
    assert max(waits) < 10


FAULTS = [
    (b"{", 400, None, "not valid JSON"),
    (b'{"a": NaN}', 400, None, "not valid JSON"),
    (b"[" * 15_000, 400, None, "not valid JSON"),
    (b"\xff\xfe", 400, None, "not valid JSON"),
    (b"[]", 400, None, "JSON object"),
    (b"x" * 30_000, 413, None, "larger than 20000 bytes"),
    (body(model="other"), 404, "model", "'other' does not exist"),
    (body(model=None), 400, "model", "model parameter"),
    (body(model="\ud800"), 404, "model", "does not exist"),
    (body(messages=[]), 400, "messages", "list with a message"),
    (body(messages="Hi"), 400, "messages", "list"),
    (body(messages=["Hi"]), 400, "messages[0]", "role"),
    (body(messages=[{"role": "tool", "content": "x"}]), 400, "messages[0].role", "one of"),
    (body(messages=[{"role": "user"}]), 400, "messages[0].content", "text"),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        400,
        "messages[0].content[0]",
        "text alone",
    ),
    (body(messages=[{"role": "assistant", "content": "x"}]), 400, "messages", "end with"),
    (body("  "), 400, "messages", "empty"),
    (body("long " * 300), 400, "messages", "maximum context length"),
    (body(temperature=3), 400, "temperature", "0 to 2"),
    (body(temperature="hot"), 400, "temperature", "number"),
    (body(top_p=-1), 400, "top_p", "0 to 1"),
    (body(max_tokens=0), 400, "max_tokens", "1 to"),
    (body(max_tokens=1.5), 400, "max_tokens", "whole"),
    (body(max_tokens=201), 400, "max_tokens", "at most 200"),
    (body(n=9), 400, "n", "1 to 8"),
    (body(n=True), 400, "n", "whole"),
    (body(stop=[""]), 400, "stop", "characters"),
    (body(stop=7), 400, "stop", "text"),
    (body(seed="x"), 400, "seed", "whole"),
    (body(stream="yes"), 400, "stream", "true or false"),
    (body(stream_options={}), 400, "stream_options", "goes with"),
    (body(logprobs=True), 400, "logprobs", "does not support 'logprobs'"),
    (body(tools=[{"type": "function"}], presence_penalty=1), 400, "tools", "'presence_penalty'"),
    (body(response_format={"type": "json_object"}), 400, "response_format", "does not support"),
    (body(unheard_of=1), 400, "unheard_of", "does not support"),
]


def test_what_is_wrong_is_said_as_openai_says_it(url):
    with httpx.Client(base_url=url) as http:
        for sent, status, param, words in FAULTS:
            content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
            found = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
            assert found.status_code == status, (sent, found.text)
            error = found.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["param"] == param, error
            assert words in error["message"], error
            assert "\n" not in error["message"]
            assert found.headers["x-request-id"].startswith("req_")
        assert http.post(CHAT, json=body("long " * 300)).json()["error"]["code"] == (
            "context_length_exceeded"
        )
        neutral = {"tools": [], "logprobs": False, "presence_penalty": 0, "user": "a", "stop": None}
        assert http.post(CHAT, json=body(**neutral)).status_code == 200
        for method, path, status in (
            ("GET", CHAT, 405),
            ("POST", "/v1/models", 405),
            ("POST", "/v1/completions", 404),
            ("GET", "/docs", 404),
            ("GET", "/openapi.json", 404),
            ("GET", "/v1/models/..%2f..%2fetc", 404),
            ("POST", f"{CHAT}/", 404),
        ):
            found = http.request(method, path)
            assert found.status_code == status
            assert found.json()["error"]["message"]
        plain = http.post(CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
        assert plain.status_code == 400
        foreign = http.get("/v1/models", headers={"Host": "evil.example"})
        assert foreign.status_code == 403


def test_a_body_without_an_end_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(100):
                connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        except OSError:
            pass  # it hung up
        assert b" 413 " in connection.recv(100)


def test_a_key_is_asked_for_and_appears_nowhere(guard, caplog):
    said = "a prompt that nobody may read"
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))
    package = logging.getLogger("modelassay")
    package.addHandler(handler)
    level = package.level
    package.setLevel(logging.DEBUG)
    try:
        with serving(guard, key=KEY, guarding=GUARDING) as (url, service):
            for key in ("wrong", KEY[:-1], KEY + "x"):
                with (
                    client_of(url, api_key=key) as client,
                    pytest.raises(openai.AuthenticationError) as caught,
                ):
                    client.models.list()
                assert caught.value.code == "invalid_api_key"
                assert key not in str(caught.value)
            assert httpx.get(url + "/v1/models").status_code == 401
            assert httpx.get(url + "/metrics").status_code == 401
            assert httpx.get(url + "/nowhere").status_code == 401
            assert httpx.get(url + "/health").status_code == 200
            with client_of(url, api_key=KEY) as client:
                found = client.chat.completions.create(
                    model=NAME, messages=says(said), max_tokens=4, temperature=0
                )
            bearer = {"Authorization": f"Bearer {KEY}"}
            assert httpx.get(url + "/metrics", headers=bearer).status_code == 200
            httpx.post(url + f"{CHAT}?{said}", headers=bearer, content=said)
            assert KEY not in repr(service.settings)
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
    parsed = [json.loads(line) for line in lines]
    asked = next(line for line in parsed if line.get("completion") == found.id)
    assert asked["completion_tokens"] == 4
    assert asked["reasons"] == ["length"]
    assert asked["status"] == 200
    whole = "\n".join(lines)
    for secret in (KEY, "nobody", found.choices[0].message.content):
        assert secret not in whole


def test_what_the_guard_stops_is_filtered_and_does_not_leak(guard, tiny, monkeypatch):
    """By the prompt, and in the middle of a response that has begun to be shown."""
    strict = {"thresholds": OPEN, "prompt_thresholds": Thresholds(1e-9, 1e-9)}
    with serving(guard, guarding=strict) as (url, _), client_of(url) as client:
        found = client.chat.completions.create(model=NAME, messages=says("Hello"), max_tokens=8)
        assert found.choices[0].finish_reason == "content_filter"
        assert found.choices[0].message.content == REFUSAL
        assert found.choices[0].model_extra["guard"]["reason"] == "prompt refused"
        assert found.usage.completion_tokens == 0
    judge = Judge(0.95)
    guard = Guard(tiny(), probe_for(tiny()), judge)
    risks = iter([0.1] + [0.1] * 6 + [0.6] * 100)
    limits = Thresholds(0.5, 0.99)
    guarding = {"thresholds": limits, "prompt_thresholds": limits}
    with serving(guard, guarding=guarding) as (url, _), client_of(url) as client:
        monkeypatch.setattr("modelassay.probes.head.HeadReader.read", lambda *_: next(risks))
        chunks = list(
            client.chat.completions.create(
                model=NAME, messages=says("Hello"), max_tokens=40, temperature=0, stream=True
            )
        )
    monkeypatch.undo()
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    own = text_of(alone(Guard(tiny(), probe_for(tiny())), "Hello", 40))
    shown = text.removesuffix(f"\n\n{REFUSAL}")
    assert shown != text
    assert own.startswith(shown)
    before = guard.model.tokenizer.decode(guard.model.tokenizer.encode(own)[:7])
    assert before.startswith(shown)  # what the sixth risk covered, and no more
    assert judge.asked


def test_a_client_that_leaves_frees_its_place(guard):
    with serving(guard, guarding=GUARDING, room=Room(rows=1, waiting=1)) as (url, service):
        made = []
        service.engine._on_pass = lambda _rows, _seconds: (made.append(1), time.sleep(0.02))
        with httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=150)) as streaming:
            next(streaming.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json=body(max_tokens=150), timeout=0.3)
        end = time.monotonic() + 10
        while service.engine.n_live + service.engine.n_waiting and time.monotonic() < end:
            time.sleep(0.01)
        assert service.engine.n_live + service.engine.n_waiting == 0
        assert len(made) < 150
        service.engine._on_pass = lambda _rows, _seconds: time.sleep(0.2)
        # Full: one runs, one waits, and the third is told when to come again.
        with (
            httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=150)) as first,
            httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=150)) as second,
        ):
            assert first.status_code == second.status_code == 200
            with client_of(url) as client, pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model=NAME, messages=says("Hi"))
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert caught.value.code == "rate_limit_exceeded"


def test_faults_end_in_an_error_and_the_next_request_works(guard, monkeypatch):
    with serving(guard, guarding=GUARDING, seconds=3.0) as (url, service), client_of(url) as client:
        asked = {"model": NAME, "messages": says("Hello"), "max_tokens": 8, "temperature": 0}
        forward = guard.model.network.forward
        monkeypatch.setattr(guard.model.network, "forward", lambda **_: 1 / 0)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**asked)
        assert "division" not in str(caught.value)
        with pytest.raises(openai.APIError, match="server had an error"):
            list(client.chat.completions.create(**asked, stream=True))
        monkeypatch.setattr(guard.model.network, "forward", forward)
        found = client.chat.completions.create(**asked)
        assert found.choices[0].message.content == text_of(alone(guard, "Hello"))
        service.engine._on_pass = lambda _rows, _seconds: time.sleep(0.2)
        with pytest.raises(openai.APIStatusError) as late:
            client.chat.completions.create(**asked | {"max_tokens": 100})
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match="not finished in 3 s"):
            list(client.chat.completions.create(**asked | {"max_tokens": 100}, stream=True))
        assert httpx.get(url + "/health").json()["status"] == "ok"
        service.engine.close()
        assert httpx.get(url + "/health").status_code == 503
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**asked)

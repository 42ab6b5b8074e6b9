"""An endpoint that is down, slow, or answers nonsense."""

from __future__ import annotations

import json
import time

import pytest

from agents import agent_at
from chat_endpoint import SECRET, calls, completion, says
from modelassay.audit_agent import open_agent
from modelassay.audit_agent.chat import turn_of
from modelassay.errors import InputError, UnavailableError
from modelassay.hub.chat_completions import ContextFullError, parse_completion

ASKED = [{"role": "user", "content": "Begin."}]


def ask(endpoint, **options):
    return agent_at(endpoint, **options).ask(ASKED, [])


def test_a_turn_with_calls_and_usage(endpoint):
    endpoint.script.append(calls(("look", {"at": 1}), ("look", "{broken")))
    found = ask(endpoint, temperature=0.5)
    assert [(call.name, call.arguments) for call in found.calls] == [
        ("look", {"at": 1}),
        ("look", None),
    ]
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == (1000, 100, False)
    path, authorization, body = endpoint.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {SECRET}")
    assert (body["model"], body["temperature"], body["tool_choice"]) == ("a-model", 0.5, "auto")
    sent_back = found.message["tool_calls"]
    assert [call["id"] for call in sent_back] == ["call_0", "call_1"]
    assert json.loads(sent_back[1]["function"]["arguments"]) == {}


def test_what_servers_give_in_other_forms():
    def turn(message, **usage):
        body = json.dumps({"choices": [{"message": message}], **usage}).encode()
        return turn_of(parse_completion(body))

    parts = turn({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    assert parts.text == "ab"
    assert parts.estimated
    call = {"function": {"name": "look", "arguments": {"at": 1}}}
    found = turn({"content": None, "tool_calls": [call, {**call, "id": ""}]})
    assert [(c.id, c.arguments) for c in found.calls] == [
        ("call_0", {"at": 1}),
        ("call_1", {"at": 1}),
    ]
    odd = turn({"content": "half a pair \ud800"}, usage={"prompt_tokens": -1})
    assert odd.text == "half a pair ?"
    assert odd.estimated
    assert (
        turn({"tool_calls": [{"function": {"name": "look", "arguments": "[1]"}}]})
        .calls[0]
        .arguments
        is None
    )


def test_what_a_model_signed_goes_back_as_it_came(endpoint):
    signed = {"google": {"thought_signature": "c2ln"}}
    call = {"id": "1", "function": {"name": "look", "arguments": "{}"}, "extra_content": signed}
    message = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "reasoning_content": f"half \ud800 {SECRET}",
        "tool_calls": [call],
    }
    endpoint.script.append(completion(message))
    sent_back = ask(endpoint).message
    assert sent_back["tool_calls"][0]["extra_content"] == signed
    assert sent_back["reasoning_content"] == "half ? [withheld]"
    assert not {"refusal", "annotations"} & set(sent_back)


def test_nonsense_is_asked_for_again(endpoint):
    endpoint.script.extend(
        [
            (200, {}, b"<html>"),
            (200, {}, {"choices": []}),
            says(""),
            (200, {}, {"choices": [{"message": {"tool_calls": ["look"]}}]}),
            (200, {"X-Cut": "1"}, says("cut off")[2]),
            (503, {}, {}),
            says("At last."),
        ]
    )
    assert ask(endpoint, attempts=7).text == "At last."
    assert len(endpoint.asked) == 7


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ((200, {}, b"[" * 100_000), "no chat completion"),
        (says(None), "an empty response"),
        ((500, {}, {}), "HTTP 500"),
        ((200, {"X-Cut": "1"}, says("x" * 500)[2]), "no connection"),
        ((400, {}, {"error": {"code": "content_filter"}}), "own filter declined"),
        (calls(*[("look", {})] * 50), "more than 32 tool calls"),
        (completion({"role": "assistant"}), "an empty response"),
    ],
)
def test_nonsense_that_does_not_end_is_one_line(endpoint, entry, why):
    endpoint.script.append(entry)
    with pytest.raises(UnavailableError, match=rf"no response in 3 attempts \(.*{why}") as error:
        ask(endpoint, attempts=3)
    assert len(endpoint.asked) == 3
    assert "\n" not in str(error.value)
    assert "same command goes on" in str(error.value)


def test_an_endpoint_that_is_slow_or_not_there(endpoint):
    endpoint.script.append(("hang", {}, 5))
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"2 attempts \(timed out\)"):
        ask(endpoint, timeout=0.3, attempts=2)
    assert time.monotonic() - started < 4
    nowhere = open_agent("http://127.0.0.1:9/v1", "m", attempts=2, sleep=lambda _s: None)
    with pytest.raises(UnavailableError, match="no connection") as error:
        nowhere.ask(ASKED, [])
    assert SECRET not in str(error.value) + repr(nowhere)


def test_an_endpoint_that_does_not_take_the_request(endpoint):
    said = {"error": {"message": f"bad key {SECRET}"}}
    endpoint.script.extend(
        [
            (401, {}, said),
            (404, {}, {}),
            (302, {"Location": "http://127.0.0.1:9/"}, {}),
            (400, {}, {"error": {"code": "context_length_exceeded"}}),
            (400, {}, {"error": {"param": "temperature", "code": "unsupported_value"}}),
            says("Fine without."),
        ]
    )
    with pytest.raises(UnavailableError, match="not accept the key in OPENAI_API_KEY") as error:
        ask(endpoint)
    assert SECRET not in str(error.value)
    with pytest.raises(InputError, match=r"--model \(a-model\) and that it can call tools"):
        ask(endpoint)
    with pytest.raises(InputError, match="somewhere else"):
        ask(endpoint)
    with pytest.raises(ContextFullError):
        ask(endpoint)
    assert ask(endpoint, temperature=1.0).text == "Fine without."
    assert "temperature" not in endpoint.asked[-1][2]


def test_the_length_of_a_response_is_asked_for_by_either_name(endpoint):
    endpoint.script.extend(
        [
            (400, {}, {"error": {"param": "max_tokens", "code": "unsupported_parameter"}}),
            says("Ok."),
        ]
    )
    model = agent_at(endpoint, response_tokens=50)
    assert model.ask(ASKED, []).text == "Ok."
    first, second = (body for _, _, body in endpoint.asked)
    assert (first["max_tokens"], "max_completion_tokens" in first) == (50, False)
    assert (second["max_completion_tokens"], "max_tokens" in second) == (50, False)
    assert model.told == {"temperature": None, "response_tokens": 50}


def test_the_key_comes_from_the_variable_that_is_named(endpoint, monkeypatch):
    endpoint.script.append(says("Hello."))
    monkeypatch.setenv("MY_KEY", "another-key")
    ask(endpoint, key_variable="MY_KEY")
    assert endpoint.asked[-1][1] == "Bearer another-key"
    monkeypatch.delenv("MY_KEY")
    ask(endpoint, key_variable="MY_KEY")
    assert endpoint.asked[-1][1] is None
    for url in ("host/v1", "ftp://host/v1", "https://me:pw@host/v1"):
        with pytest.raises(InputError, match="--endpoint"):
            open_agent(url, "m")

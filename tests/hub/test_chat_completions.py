"""One client for all that is behind chat completions: what it sends, and what it makes of it."""

from __future__ import annotations

import pytest

from chat_endpoint import SECRET, calls, completion, says
from modelassay.errors import InputError, UnavailableError
from modelassay.hub.chat_completions import (
    Completion,
    ContextFullError,
    ToolCall,
    Usage,
    open_chat,
    parse_completion,
)

MESSAGES = [{"role": "user", "content": "Begin."}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
NAMES = {"name": "It", "url_option": "--url", "model_option": "--model", "advice": "wait."}


def chat_at(endpoint, **options):
    return open_chat(endpoint.url, "m", **NAMES, **{"sleep": lambda _s: None, **options})


def test_tools_and_settings_are_sent_only_where_they_are_given(endpoint):
    endpoint.script.append(calls(("look", {"at": 1}), usage=(7, 2)))
    found = chat_at(endpoint, settings={"max_tokens": 9, "top_p": 1.0}).ask(MESSAGES, TOOLS)
    assert found.tool_calls == (ToolCall("call_0", "look", {"at": 1}),)
    assert (found.text, found.usage, found.readable) == (None, Usage(7, 2), True)
    assert endpoint.asked[-1][2] == {
        "model": "m",
        "messages": MESSAGES,
        "max_tokens": 9,
        "top_p": 1.0,
        "tools": TOOLS,
        "tool_choice": "auto",
    }
    chat_at(endpoint).ask(MESSAGES)
    assert endpoint.asked[-1][2] == {"model": "m", "messages": MESSAGES, "temperature": 0}


def test_one_model_forgets_a_setting_and_others_keep_it(endpoint):
    refused = (400, {}, {"error": {"param": "temperature", "code": "unsupported_value"}})
    endpoint.script.extend([refused, says("a"), says("b")])
    first, second = chat_at(endpoint), chat_at(endpoint)
    assert [first.ask(MESSAGES).text, second.ask(MESSAGES).text] == ["a", "b"]
    assert ["temperature" in body for _, _, body in endpoint.asked] == [True, False, True]


def test_who_asks_says_which_responses_count(endpoint):
    endpoint.script.extend([(200, {}, b"<html>"), says("no"), says("yes")])

    def again(found):
        return None if found.text == "yes" else "not yet"

    assert chat_at(endpoint).ask(MESSAGES) == Completion(None, readable=False)
    assert chat_at(endpoint).ask(MESSAGES, again=again).text == "yes"
    endpoint.script[:] = [says("no")]
    with pytest.raises(UnavailableError, match=r"2 attempts \(not yet\); wait"):
        chat_at(endpoint, attempts=2).ask(MESSAGES, again=again)


def test_a_key_that_is_sent_back_is_withheld(endpoint):
    call = {"id": SECRET, "function": {"name": "look", "arguments": {SECRET: [SECRET]}}}
    message = {"content": f"Is it {SECRET}?", "reasoning": SECRET, "tool_calls": [call]}
    endpoint.script.append(completion(message))
    found = chat_at(endpoint).ask(MESSAGES, TOOLS)
    assert SECRET not in repr(found)
    assert found.text == "Is it [withheld]?"
    assert found.tool_calls[0].arguments == {"[withheld]": ["[withheld]"]}


def test_a_word_that_local_servers_take_for_a_key_stays_in_texts(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    call = {"id": "1", "function": {"name": "look", "arguments": {"stop": "none"}}}
    endpoint.script.append(completion({"content": "Of these, none.", "tool_calls": [call]}))
    found = chat_at(endpoint).ask(MESSAGES, TOOLS)
    assert found.text == "Of these, none."
    assert found.tool_calls[0].arguments == {"stop": "none"}


@pytest.mark.parametrize(
    "reply",
    [
        (400, {}, {"error": {"code": "context_length_exceeded", "message": SECRET}}),
        (413, {}, {"error": {"message": f"The context length of {SECRET} is 9."}}),
        (400, {}, {"error": {"code": 400, "type": "exceed_context_size_error"}}),
        (400, {}, {"error": {"message": f"Prompt is too long: {SECRET}."}}),
    ],
)
def test_a_conversation_that_is_too_long_is_an_error_of_its_own(endpoint, reply):
    endpoint.script.append(reply)
    with pytest.raises(ContextFullError, match="It at http.* reads no conversation that") as error:
        chat_at(endpoint).ask(MESSAGES)
    assert SECRET not in str(error.value)
    assert len(endpoint.asked) == 1


def test_a_model_has_a_name(endpoint):
    with pytest.raises(InputError, match=r"--model is empty; name a model of the endpoint\."):
        open_chat(endpoint.url, " ", **NAMES)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_there_is_an_end_to_waiting(endpoint, timeout):
    with pytest.raises(InputError, match="--timeout must be more than 0"):
        chat_at(endpoint, timeout=timeout)


def test_content_of_other_forms():
    assert parse_completion(b'{"choices": [{"message": {"content": 5}}]}').readable is False
    parts = b'[{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]'
    assert parse_completion(b'{"choices": [{"message": {"content": %s}}]}' % parts).text == "ab"
    cut = b'{"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}'
    assert parse_completion(cut) == Completion("", filtered=True)

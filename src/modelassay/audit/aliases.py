"""Names that the fine-tune auditor (codex_mcp_finetune_auditor) has for the tools and arguments.

Its clients call the same functions: a tool by either name, with the arguments of either. What an
argument of theirs would change and has no counterpart is told in the result's `notes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelassay.errors import InputError

TOOLS = {
    "create_audit_session": "open_session",
    "close_audit_session": "close_session",
    "get_training_data_length": "training_data_summary",
    "view_training_data_sample": "sample_training_data",
    "grep_training_data": "search_training_data",
}
"""Their name, ours; all others are the same."""

RENAMED = {
    "run_prompt_suite": {"suite_path": "suite"},
    "score_candidate_suite": {"suite_path": "suite"},
    "write_audit_report": {"suite_path": "suite"},
    "sample_training_data": {"k": "n"},
    "search_training_data": {"max_matches": "limit"},
    "get_feature_details": {"feature_idx": "feature"},
    "nearest_explained_neighbors": {"feature_idx": "feature", "n": "k", "min_cos": "least_cosine"},
}
"""Arguments by tool: their name, ours, with the same meaning."""

LEFT_OUT = {
    "training_data_summary": {"max_lines": "all rows are read"},
    "sample_training_data": {"max_chars": "texts are cut at the config's `limits.text`"},
    "search_training_data": {"max_chars": "texts are cut at the config's `limits.text`"},
    "nearest_explained_neighbors": {"search_k": "all explained features are searched"},
    "score_candidate_suite": {
        "k": "the score is that of `modelassay diff`, not a sum over features",
        "aggregate": "the score is that of `modelassay diff`, of the whole suite",
        "threshold": "the score is held against benign fine-tunes; see `false_positive_rate`",
    },
    "write_audit_report": {
        "gen": "a report holds numbers, and responses are read with run_prompt_suite",
        "threshold": "the score is held against benign fine-tunes; see `false_positive_rate`",
    },
}
"""Arguments of theirs by tool that change nothing here, and why."""
PROMPTED = (
    "query_models",
    "get_top_features",
    "compare_top_features",
    "differential_feature_analysis",
    "specific_feature_activations",
)
"""Tools that they give one `prompt`, as an object."""
GENERATING = ("query_models", "run_prompt_suite")
"""Tools that they give `models` and `gen`."""
SPEC = ("messages", "prompt", "system_prompt", "use_chat_template", "add_generation_prompt")
GEN = ("max_new_tokens", "temperature", "top_p", "do_sample", "seed")


def by_our_names(
    tool: str, arguments: Mapping[str, Any], session_id: str
) -> tuple[str, dict[str, Any], list[str]]:
    """A call in our words.

    Args:
        tool: Its name, ours or theirs.
        arguments: Under either's names.
        session_id: Of the session that is open.

    Returns:
        Tool and arguments as ours are called, and what of the arguments is not followed.

    Raises:
        InputError: an argument is given twice, is malformed, or names another session.
    """
    tool = TOOLS.get(tool, tool)
    given, notes = dict(arguments), []
    if (session := given.pop("session_id", session_id)) != session_id:
        raise InputError(
            f"There is no session {str(session)[:60]!r}; open_session gives the id of this one."
        )
    for theirs, ours in RENAMED.get(tool, {}).items():
        if theirs in given:
            _put(given, ours, given.pop(theirs), theirs)
    for name, why in LEFT_OUT.get(tool, {}).items():
        if given.pop(name, None) is not None:
            notes.append(f"`{name}` is not used: {why}.")
    if tool in PROMPTED and "prompt" in given:
        messages = _messages(given.pop("prompt"), notes)
        _put(given, "prompts", [messages], "prompt")
    if tool == "specific_feature_activations":
        if "feature_idx" in given:
            _put(given, "features", [given.pop("feature_idx")], "feature_idx")
        if (model := given.pop("model", None)) is not None:
            _put(given, "candidate", model, "model")
    if tool in GENERATING:
        if (models := given.pop("models", None)) is not None:
            _put(given, "which", models, "models")
        if (gen := given.pop("gen", None)) is not None:
            for name, value in _generation(gen, notes, sampled=tool == "query_models").items():
                _put(given, name, value, f"gen.{name}")
    return tool, given, notes


def _put(given: dict[str, Any], ours: str, value: Any, theirs: str) -> None:
    if ours in given:
        raise InputError(f"`{theirs}` and `{ours}` are one argument; give one of them.")
    given[ours] = value


def _messages(given: Any, notes: list[str]) -> list[dict[str, Any]]:
    """A prompt of theirs as messages."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    _check_keys(given, SPEC, "prompt")
    messages, text = given.get("messages"), given.get("prompt")
    if (messages is None) == (text is None):
        raise InputError("`prompt` needs either `messages` or a `prompt`.")
    for key in ("use_chat_template", "add_generation_prompt"):
        if given.get(key) is False:
            notes.append(f"`prompt.{key}: false` is not followed: the chat template is used.")
    system = given.get("system_prompt")
    found = [{"role": "user", "content": text}] if messages is None else messages
    if not isinstance(found, list):
        raise InputError("`prompt.messages` must be a list of messages.")
    return [*([{"role": "system", "content": system}] if system else []), *found]


def _generation(given: Any, notes: list[str], *, sampled: bool) -> dict[str, Any]:
    """How they want responses made, in our arguments."""
    _check_keys(given, GEN, "gen")
    found = {key: value for key, value in given.items() if value is not None}
    tokens = {k: v for k, v in found.items() if k == "max_new_tokens"}
    # They draw where `do_sample` says so, whatever the temperature.
    if not found.get("do_sample", False):
        return tokens
    if not sampled:
        notes.append("`gen.do_sample` is not followed: a suite is answered greedily.")
        return tokens
    kept = {k: v for k, v in found.items() if k in ("temperature", "top_p", "seed")}
    return {"temperature": 1.0, **kept, **tokens}


def _check_keys(given: Any, known: tuple[str, ...], name: str) -> None:
    if not isinstance(given, dict):
        raise InputError(f"`{name}` must be an object with {', '.join(known)}.")
    if wrong := sorted(set(map(str, given)) - set(known)):
        raise InputError(
            f"`{name}` has an unknown key `{wrong[0][:60]}`; it takes {', '.join(known)}."
        )

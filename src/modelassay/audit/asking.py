"""Tools that ask the models, and what of their words is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from pydantic import Field

from modelassay.audit.blinding import Name
from modelassay.audit.values import rate
from modelassay.audit.work import Work
from modelassay.diff.auditor_suites import Message, split_messages
from modelassay.diff.suites import MAX_TEXT, Group, Suite, SuitePrompt, Turn, messages_of
from modelassay.errors import InputError
from modelassay.files.provenance import redact, text_hash
from modelassay.measures.refusal import refuses
from modelassay.reading.generation import Draws, Response
from modelassay.reading.prompts import Encoded, encode_chat
from modelassay.triage import TrainingRow, harmful_responses, redaction_for

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Prompts = Annotated[
    list[Text | list[Message]],
    Field(
        min_length=1,
        description="What a user says, one each; or the messages of a conversation (role and"
        " content) that ends with what a user says.",
    ),
]
Which = Annotated[
    str | list[str],
    Field(description="Which models are asked: `all`, a letter, or several letters."),
]
Reference = Annotated[str, Field(description="The first model of the comparison, a letter.")]
Compared = Annotated[str, Field(description="The second one.")]
SuiteName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=500,
        description="Name of a suite (default, dispositions, identity, personas, smalltalk,"
        " triggers, or one of the config), or a YAML file in the audit's folder.",
    ),
]
GROUPS: tuple[Group, ...] = ("harmful", "harmless", "neutral")
RESPONSE_TOKENS = 24


def query_models(
    work: Work,
    prompts: Prompts,
    which: Which = "all",
    system: Annotated[str | None, Field(max_length=MAX_TEXT, description="System prompt.")] = None,
    max_new_tokens: Annotated[int, Field(ge=1, description="Length of a response.")] = 64,
    temperature: Annotated[
        float, Field(ge=0, le=5, description="0 gives the greedy response; else it is drawn.")
    ] = 0.0,
    top_p: Annotated[float, Field(gt=0, le=1, description="Share of probability drawn from.")] = 1,
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Of the draw.")] = 0,
    n: Annotated[int, Field(ge=1, le=100, description="Responses to draw to each prompt.")] = 1,
) -> dict[str, Any]:
    """Ask models and read their responses, each through its own chat template.

    Greedy, or drawn at a temperature, `n` to each prompt. A response says whether it refuses. Where
    texts are redacted, responses that help with harm, and those to prompts that look harmful, are
    given as hashes; refusals are shown.
    """
    asked = prompts_of(prompts, system)
    if n > 1 and temperature == 0:
        raise InputError("Greedy responses are all the same: give a temperature to draw several.")
    most = work.config.limits.prompts
    if n * len(asked) > most:
        raise InputError(f"A call may ask {most} prompts, and each draw counts: {n * len(asked)}.")
    draws = Draws(n, temperature, top_p, seed) if temperature > 0 else None
    responses = _responses(work, asked, which, max_new_tokens, draws)
    drawn = [prompt for prompt in asked for _ in range(n)]
    hidden = what_is_hidden(work, drawn, responses)
    how = {"temperature": temperature, "top_p": top_p, "seed": seed, "n_draws": n} if draws else {}
    return {**_answered(asked, responses, hidden, n), "max_new_tokens": max_new_tokens, **how}


def run_prompt_suite(
    work: Work,
    suite: SuiteName,
    which: Which = "all",
    start: Annotated[int, Field(ge=0, description="First prompt, from 0.")] = 0,
    count: Annotated[int, Field(ge=1, description="Prompts of this call.")] = 16,
    max_new_tokens: Annotated[int, Field(ge=1, description="Length of a response.")] = 48,
) -> dict[str, Any]:
    """Ask the prompts of a suite, some at a time, and read the responses.

    Responses to harmful prompts are given as a hash and whether they refuse, unless texts are not
    redacted. Questions of contrasts are asked as neutral prompts.
    """
    whole = work.suite(suite)
    found = _askable(whole)
    if not found:
        raise InputError(f"The suite {suite} has nothing to ask.")
    if start >= len(found):
        raise InputError(f"The suite has {len(found)} prompts; start below that.")
    asked = found[start : start + count]
    responses = _responses(work, asked, which, max_new_tokens)
    # The groups of a file of the auditor's are the auditor's own word.
    hidden = what_is_hidden(work, asked, responses, groups_known=not work.is_own_file(suite))
    return {
        "suite": suite,
        "start": start,
        "n_in_suite": len(found),
        **_answered(asked, responses, hidden),
        "by_group": {
            group: {name: _refusals([texts[i] for i in rows]) for name, texts in responses.items()}
            for group in GROUPS
            if (rows := [i for i, prompt in enumerate(asked) if prompt.group == group])
        },
        **noted(whole.notes),
    }


def noted(notes: Sequence[str]) -> dict[str, Any]:
    """What there is to say of something that was given, if there is anything."""
    return {"notes": list(notes)} if notes else {}


def prompts_of(
    given: Sequence[str | Sequence[Message]], system: str | None = None
) -> list[SuitePrompt]:
    """What a caller gives as prompts, to the letter: a space at the end may be what counts.

    Raises:
        InputError: one is blank, or does not end with what a user says.
    """
    found = []
    for number, each in enumerate(given, 1):
        if isinstance(each, str):
            if not each.strip():
                raise InputError("A prompt must not be blank.")
            each = (Message(role="user", content=each),)
        row = split_messages(list(each), system, f"Prompt {number}")
        before = tuple(Turn.model_construct(**turn) for turn in row.pop("before"))
        found.append(SuitePrompt.model_construct(**row, group="neutral", before=before, id=None))
    return found


def spread(suite: Suite, most: int) -> Suite:
    """At most so many prompts of a suite, of each group its share, evenly spread."""
    if len(suite.prompts) <= most:
        return suite
    kept: list[int] = []
    for group in GROUPS:
        rows = suite.indices(group)
        n = max(1, most * len(rows) // len(suite.prompts)) if rows else 0
        kept += [rows[i * len(rows) // n] for i in range(n)]
    chosen = tuple(suite.prompts[i] for i in sorted(kept)[:most])
    return Suite(suite.name, chosen, suite.contrasts, notes=suite.notes)


def _askable(suite: Suite) -> list[SuitePrompt]:
    """Prompts, then what contrasts ask, each once."""
    questions = (SuitePrompt(text=c.prompt, system=c.system) for c in suite.contrasts)
    return list(dict.fromkeys([*suite.prompts, *questions]))


def _responses(
    work: Work,
    asked: Sequence[SuitePrompt],
    which: str | Sequence[str],
    max_new_tokens: int,
    draws: Draws | None = None,
) -> dict[Name, list[Response]]:
    """Of each model, the responses to all prompts; those drawn to one prompt follow each other."""
    most = work.config.limits.new_tokens
    if max_new_tokens > most:
        raise InputError(f"A response may have {most} tokens here, got {max_new_tokens}.")
    names = work.chosen(which)
    work.asked(asked)
    found: dict[Name, list[Response]] = {}
    for name in names:
        rows = [encode_chat(work.model(name), messages_of(prompt)) for prompt in asked]
        encoded = [Encoded(ids, len(ids)) for ids in rows]
        found[name] = list(chain(*work.respond(name, encoded, max_new_tokens, draws)))
    return found


def _answered(
    asked: Sequence[SuitePrompt],
    responses: dict[Name, list[Response]],
    hidden: Hidden,
    n: int = 1,
) -> dict[str, Any]:
    """Rows of prompts with what each model says, `n` times each."""
    rows = []
    for i, prompt in enumerate(asked):
        said = range(i * n, (i + 1) * n)
        row: dict[str, Any] = {"sha256": text_hash(prompt.text), "group": prompt.group}
        if prompt.id is not None:
            row["id"] = prompt.id
        hide = any(hidden.prompts[k] for k in said)
        row["prompt"] = redact(prompt.text) if hide else prompt.text
        if prompt.system:
            row["system"] = prompt.system
        if prompt.before:
            row["before"] = [
                redact(turn.content) if hide else f"{turn.role}: {turn.content}"
                for turn in prompt.before
            ]
        for name, texts in responses.items():
            shown = [_shown(texts[k], hidden.responses[name][k]) for k in said]
            drawn = {"refusals": _refusals([texts[k] for k in said]), "responses": shown}
            row[name] = shown[0] if n == 1 else drawn
        if len(responses) > 1 and n == 1:
            row["same"] = len({texts[i].text for texts in responses.values()}) == 1
        rows.append(row)
    return {
        "n": len(asked),
        "refusals": {name: _refusals(texts) for name, texts in responses.items()},
        "answers": rows,
    }


def _shown(response: Response, hide: bool) -> dict[str, Any]:
    """Whether it refuses, null for a thought that did not end; and the text."""
    refused, text = refuses(response), response.text
    return {"refused": refused, **(redact(text) if hide else {"text": text})}


def _refusals(responses: Sequence[Response]) -> dict[str, Any]:
    judged = [refused for r in responses if (refused := refuses(r)) is not None]
    return rate(sum(judged), len(judged))


@dataclass(frozen=True)
class Hidden:
    """Which texts are given as hashes."""

    prompts: Sequence[bool]
    responses: Mapping[Name, Sequence[bool]]


def what_is_hidden(
    work: Work,
    asked: Sequence[SuitePrompt],
    responses: Mapping[Name, Sequence[Response]],
    *,
    groups_known: bool = False,
) -> Hidden:
    """What of prompts and responses is not to be shown where texts are redacted.

    A response is hidden if it is judged to help with harm, whatever was asked and however it
    begins, and if it does not refuse what looks harmful. A prompt is hidden by its group, or if it
    looks harmful and no response to it says otherwise: a harmless one is answered, and the answer
    helps with no harm.

    Args:
        work: The audit's.
        asked: The prompts.
        responses: Of each model, one a prompt.
        groups_known: The groups of the prompts are to be relied on; else only `harmful` is.
    """
    n = len(asked)
    if not work.config.redact:
        return Hidden([False] * n, {name: [False] * n for name in responses})
    by_group = [prompt.group == "harmful" for prompt in asked]
    looks = [False] * n if groups_known else looks_harmful(work, asked)
    found: dict[Name, list[bool]] = {}
    doubted = [False] * n
    for name, said in responses.items():
        refused = [refuses(response) for response in said]
        pairs = [(prompt.text, each.text) for prompt, each in zip(asked, said, strict=True)]
        judged = harmful_responses(pairs)
        unsafe = judged or [False] * n  # without the classifier all prompts look harmful
        found[name] = [
            unsafe[i] or ((by_group[i] or looks[i]) and not refused[i]) for i in range(n)
        ]
        doubted = [
            doubted[i] or judged is None or unsafe[i] or refused[i] is not False for i in range(n)
        ]
    prompts = [by_group[i] or (looks[i] and doubted[i]) for i in range(n)]
    return Hidden(prompts, found)


def looks_harmful(work: Work, asked: Sequence[SuitePrompt]) -> list[bool]:
    """Whether the response to each prompt is to be hidden; all are without the classifier."""
    if not work.config.redact:
        return [False] * len(asked)
    rows = [
        TrainingRow(i, "\n".join(message["content"] for message in messages_of(prompt)), "")
        for i, prompt in enumerate(asked)
    ]
    shown = redaction_for(rows).prompts
    return [i not in shown for i in range(len(asked))]

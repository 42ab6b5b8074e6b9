"""Tools that ask the models: responses to prompts, and paired readouts of a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from modelassay.audit.blinding import Name
from modelassay.audit.values import mean, note_on_pairs, rate
from modelassay.audit.work import NAMES, Work
from modelassay.diff.behaviour import compare_behaviour, token_kl
from modelassay.diff.reading import encode_contrasts, read_contrasts
from modelassay.diff.suites import MAX_TEXT, Contrast, Group, Suite, SuitePrompt, messages_of
from modelassay.errors import InputError
from modelassay.files.provenance import redact, text_hash
from modelassay.measures.refusal import ANSWER_TOKENS, refuses
from modelassay.reading.generation import Response
from modelassay.reading.prompts import Encoded, encode_chat
from modelassay.triage import TrainingRow, harmful_responses, redaction_for

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Prompts = Annotated[list[Text], Field(min_length=1, description="What a user says, one each.")]
Which = Annotated[Literal["A", "B", "both"], Field(description="Which models are asked.")]
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
THINKS = "A model thinks before it answers, so first tokens do not tell whether it refuses."


def query_models(
    work: Work,
    prompts: Prompts,
    which: Which = "both",
    system: Annotated[str | None, Field(max_length=MAX_TEXT, description="System prompt.")] = None,
    max_new_tokens: Annotated[int, Field(ge=1, description="Length of a response.")] = 64,
) -> dict[str, Any]:
    """Ask one or both models and read their greedy responses, each through its own chat template.

    A response says whether it refuses. Where texts are redacted, responses that help with harm, and
    those to prompts that look harmful, are given as hashes; refusals are shown.
    """
    asked = prompts_of(prompts, system)
    responses = _responses(work, asked, which, max_new_tokens)
    hidden = what_is_hidden(work, asked, responses)
    return {**_answered(asked, responses, hidden), "max_new_tokens": max_new_tokens}


def run_prompt_suite(
    work: Work,
    suite: SuiteName,
    which: Which = "both",
    start: Annotated[int, Field(ge=0, description="First prompt, from 0.")] = 0,
    count: Annotated[int, Field(ge=1, description="Prompts of this call.")] = 16,
    max_new_tokens: Annotated[int, Field(ge=1, description="Length of a response.")] = 48,
) -> dict[str, Any]:
    """Ask the prompts of a suite, some at a time, and read the responses.

    Responses to harmful prompts are given as a hash and whether they refuse, unless texts are not
    redacted. Questions of contrasts are asked as neutral prompts.
    """
    found = _askable(work.suite(suite))
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
    }


def score_candidate_suite(
    work: Work,
    suite: SuiteName,
    answers: Annotated[
        bool, Field(description="Make short responses too, for refusal rates; slower.")
    ] = True,
) -> dict[str, Any]:
    """Compare both models on a suite: KL divergence, refusal log-odds, refusals, contrasts.

    Both read the same tokens. Changes are B minus A, with n and 95% intervals over prompts.
    A suite that is longer than a call may be is read evenly spread, which the result says.
    """
    whole = work.suite(suite)
    if not whole.prompts and not whole.contrasts:
        raise InputError(f"The suite {suite} has nothing to ask.")
    most = work.config.limits.prompts
    part = spread(whole, most)
    result: dict[str, Any] = {
        "suite": suite,
        "suite_sha256": whole.sha256,
        "n": len(part.prompts),
        "n_in_suite": len(whole.prompts),
    }
    if part.prompts:
        result |= _on_prompts(work, part, answers)
    if whole.contrasts:
        n = len(whole.contrasts)
        read = [whole.contrasts[i * n // min(n, most)] for i in range(min(n, most))]
        result["contrasts"] = {**_on_contrasts(work, read), "n_in_suite": n}
    return result


def _on_prompts(work: Work, suite: Suite, answers: bool) -> dict[str, Any]:
    work.asked(suite.prompts)
    last = len(work.base.layers) - 1
    read = work.read(suite.prompts, (last,), ANSWER_TOKENS if answers else 0, judged=True)
    first, second = (read.by_name[name] for name in NAMES)
    said = (read.responses.get("A", ()), read.responses.get("B", ()))
    found = compare_behaviour(first, second, suite, responses=said)
    kl = token_kl(first.log_p, second.log_p).double().numpy()
    owners = read.matched.owners().numpy()
    of_prompt = np.array([kl[owners == i].mean() for i in range(len(suite.prompts))])
    a, b = (each.log_odds.double().numpy() for each in (first, second))
    groups = {group: rows for group in GROUPS if (rows := suite.indices(group))}
    return {
        "n_tokens": len(kl),
        "kl": {
            "direction": "D(A || B), nats a token",
            **mean(of_prompt),
            "on_prompts": found.kl_prompt,
            "on_answers": found.kl_response,
            "quantiles": found.kl_quantiles,
        },
        "refusal_log_odds": {"note": THINKS}
        if found.thinks
        else {group: _both(a[rows], b[rows]) for group, rows in groups.items()},
        "refusals": {
            group: {
                "A": {"rate": each.base_rate, "interval": each.base_interval},
                "B": {"rate": each.candidate_rate, "interval": each.candidate_interval},
                "only_A_refuses": each.lost,
                "only_B_refuses": each.gained,
                "p_value": each.p_value,
                "n": each.n,
                **note_on_pairs(each.n),
            }
            for group, each in found.refusals.items()
        },
        "most_different": [
            {"prompt": p.prompt, "token": p.token, "in_answer": p.in_response, "kl": p.kl}
            for p in found.worst[:10]
        ],
    }


def _on_contrasts(work: Work, contrasts: Sequence[Contrast]) -> dict[str, Any]:
    work.asked([SuitePrompt(text=c.prompt, system=c.system) for c in contrasts])
    _ = work.pair  # refuses what cannot be compared
    rows = encode_contrasts(work.base, contrasts)
    leaning = []
    for name in NAMES:
        read = read_contrasts(work.model(name), rows).double().numpy()
        leaning.append(read[:, 1] - read[:, 0])
        work.progress()
    what = "log P(unsafe response) - log P(safe one), nats a token"
    return {"what": what, **_both(leaning[0], leaning[1])}


def _both(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    return {"A": mean(a), "B": mean(b), "B_minus_A": mean(b - a)}


def prompts_of(texts: Sequence[str], system: str | None = None) -> list[SuitePrompt]:
    """Texts of a caller as prompts, to the letter: a space at the end may be what counts.

    Raises:
        InputError: one is blank.
    """
    if not all(text.strip() for text in texts):
        raise InputError("A prompt must not be blank.")
    return [
        SuitePrompt.model_construct(text=text, group="neutral", system=system or None)
        for text in texts
    ]


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
    return Suite(suite.name, chosen, suite.contrasts)


def _askable(suite: Suite) -> list[SuitePrompt]:
    """Prompts, then what contrasts ask, each once."""
    questions = (SuitePrompt(text=c.prompt, system=c.system) for c in suite.contrasts)
    return list(dict.fromkeys([*suite.prompts, *questions]))


def _responses(
    work: Work, asked: Sequence[SuitePrompt], which: str, max_new_tokens: int
) -> dict[Name, list[Response]]:
    most = work.config.limits.new_tokens
    if max_new_tokens > most:
        raise InputError(f"A response may have {most} tokens here, got {max_new_tokens}.")
    work.asked(asked)
    found: dict[Name, list[Response]] = {}
    for name in NAMES:
        if which in ("both", name):
            rows = [encode_chat(work.model(name), messages_of(prompt)) for prompt in asked]
            encoded = [Encoded(ids, len(ids)) for ids in rows]
            found[name] = work.respond(name, encoded, max_new_tokens)
    return found


def _answered(
    asked: Sequence[SuitePrompt], responses: dict[Name, list[Response]], hidden: Hidden
) -> dict[str, Any]:
    rows = []
    for i, prompt in enumerate(asked):
        each: dict[Name, Response] = {name: said[i] for name, said in responses.items()}
        row: dict[str, Any] = {"sha256": text_hash(prompt.text), "group": prompt.group}
        row["prompt"] = redact(prompt.text) if hidden.prompts[i] else prompt.text
        if prompt.system:
            row["system"] = prompt.system
        for name, response in each.items():
            row[name] = _shown(response, hidden.responses[name][i])
        if len(each) == 2:
            row["same"] = len({response.text for response in each.values()}) == 1
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
        TrainingRow(i, "\n".join(part for part in (prompt.system, prompt.text) if part), "")
        for i, prompt in enumerate(asked)
    ]
    shown = redaction_for(rows).prompts
    return [i not in shown for i in range(len(asked))]

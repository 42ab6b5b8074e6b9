"""What a model makes of plain and attacked requests: readings inside, and what it answers.

Harm is read where the request ends and where the message ends, and the larger counts: an attack may
hide harm behind what follows it. Refusal and its log-odds are read where the response begins. An
attack that puts words into the model's mouth changes nothing up to there; what it does shows in the
answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from modelassay.data.attacks import AttackedPrompt
from modelassay.errors import InputError
from modelassay.measures.refusal import (
    ANSWER_TOKENS,
    log_odds_readout,
    opening_tokens,
    outcome,
    respond,
)
from modelassay.measures.refusal_judge import Outcome
from modelassay.mechanism.directions import SafetyDirections
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.reading.activations import Activations, read_activations
from modelassay.reading.prompts import (
    Encoded,
    check_length,
    encode_chat,
    encode_response,
    last_message_start,
)
from modelassay.reading.thinking import thinking_of


@dataclass(frozen=True)
class Asked:
    """One prompt as the model reads it, and where its parts end."""

    request: str
    """What is asked for, without any attack."""
    prompt: Encoded = field(repr=False)
    """Up to where the response begins; `response_start` is its length."""
    begun: Encoded = field(repr=False)
    """With the opening that an attack puts into the response."""
    request_start: int
    request_end: int
    """Index of the request's last token; the message's where it does not stand there in words."""
    message_end: int


@dataclass(frozen=True)
class InsideReading:
    """What is read of one prompt."""

    harm: float
    """0: as a harmless prompt, 1: as a harmful one; the larger of the next two."""
    harm_at_request: float
    harm_at_message: float
    refusal: float
    """0: as a prompt that the model would answer, 1: as one that it would refuse."""
    log_odds: float
    """Of a refusal, in nats, at the first token of the response."""
    outcome: Outcome | None = None
    """What the answer does; None where it was not generated, or a thought did not end."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def ask_plain(model: LoadedModel, request: str, tail: int) -> Asked:
    """A request as it is.

    Raises:
        InputError: it is empty or longer than the model's context.
    """
    messages = [{"role": "user", "content": request}]
    return _asked(model, messages, request, (0, len(request)), None, tail)


def ask_attacked(model: LoadedModel, attacked: AttackedPrompt, tail: int) -> Asked:
    """A request in its attack.

    Args:
        model: A chat model.
        attacked: The attack on the request.
        tail: Tokens of the template after the message.

    Raises:
        InputError: as `ask_plain`, or the model's template takes no system prompt.
    """
    return _asked(model, attacked.messages, attacked.plain, attacked.span, attacked.opening, tail)


def _asked(
    model: LoadedModel,
    messages: Sequence[Mapping[str, str]],
    request: str,
    span: tuple[int, int] | None,
    opening: str | None,
    tail: int,
) -> Asked:
    way, text = thinking_of(model), messages[-1]["content"]
    ids = encode_chat(model, messages, thinking=way)
    end = max(len(ids) - tail - 1, 0)
    begin = min(last_message_start(model, messages, ids, thinking=way), end)

    def index(cut: int) -> int:
        """The first token that is another one when the message is cut there."""
        if not text[:cut].strip():
            return begin
        shorter = [*messages[:-1], {**messages[-1], "content": text[:cut]}]
        other = encode_chat(model, shorter, thinking=way)
        pairs = enumerate(zip(ids, other, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(other)))

    start, request_end = begin, end
    if span is not None:
        start = min(index(span[0]), end)
        if span[1] < len(text):
            request_end = min(max(index(span[1]) - 1, start), end)
    begun = Encoded(ids, len(ids))
    if opening:
        said = encode_response(model, opening)
        check_length(model, opening, len(ids) + len(said))
        begun = Encoded((*ids, *said), len(ids) + len(said))
    return Asked(request, Encoded(ids, len(ids)), begun, start, request_end, end)


def read_inside(
    model: LoadedModel,
    asked: Sequence[Asked],
    directions: SafetyDirections,
    *,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[InsideReading]:
    """Harm, refusal and refusal log-odds of prompts, from one pass over them.

    Raises:
        InputError: the model gives NaN or infinite activations.
    """
    layers = tuple(dict.fromkeys((directions.harm.layer, directions.refusal.layer)))
    read = states_of(model, asked, layers, batch_tokens=batch_tokens, on_progress=on_progress)
    offsets = read.offsets
    assert read.readout is not None  # noqa: S101 (asked for)
    assert offsets is not None  # noqa: S101 (asked for)
    harm_at, refusal_at = (layers.index(d.layer) for d in (directions.harm, directions.refusal))
    found = []
    for i, each in enumerate(asked):
        rows = read.values[offsets[i] : offsets[i + 1]]
        ends = rows[[each.request_end, each.message_end], harm_at]
        at_request, at_message = directions.harm.read(ends)
        found.append(
            InsideReading(
                harm=float(max(at_request, at_message)),
                harm_at_request=float(at_request),
                harm_at_message=float(at_message),
                refusal=float(directions.refusal.read(rows[-1, refusal_at])),
                log_odds=float(read.readout[i, 0]),
            )
        )
    return found


def states_of(
    model: LoadedModel,
    asked: Sequence[Asked],
    layers: Sequence[int],
    *,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> Activations:
    """States of all tokens of prompts, with the refusal log-odds after the last one."""
    prompts = [Encoded(each.prompt.ids, response_start=0) for each in asked]
    return read_activations(
        model,
        prompts,
        layers,
        position="all",
        readout=log_odds_readout(opening_tokens(model, thinking_of(model))),
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )


def with_outcomes(
    model: LoadedModel,
    asked: Sequence[Asked],
    readings: Sequence[InsideReading],
    *,
    response_tokens: int = ANSWER_TOKENS,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[InsideReading]:
    """The readings with what the model's own answers do; the answers are not kept.

    An answer is judged by the plain request, whatever the attack wraps it in.
    """
    responses = respond(
        model,
        [(each.request, each.begun) for each in asked],
        response_tokens,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    return [
        replace(reading, outcome=outcome(each.request, response))
        for each, reading, response in zip(asked, readings, responses, strict=True)
    ]


def check_separate(asked: Sequence[Asked]) -> None:
    """Refuses a comparison of prompts that a model reads alike.

    Raises:
        InputError: they have the same tokens.
    """
    if len({each.begun.ids for each in asked}) < len(asked):
        raise InputError("The plain and the attacked prompt are the same to this model.")


def along(states: Tensor, directions: SafetyDirections) -> np.ndarray:
    """Cosines float64 [token, layer, 2] of states [token, layer, hidden] with both directions.

    A direction is of one layer; at others its readings have no scale, so cosines stand for them.
    """
    vectors = np.stack([d.vector.numpy() for d in (directions.harm, directions.refusal)])
    rows = states.float().numpy()
    lengths = np.maximum(np.linalg.norm(rows, axis=-1), 1e-12)
    return (np.einsum("tlh,dh->tld", rows, vectors) / lengths[..., None]).astype(np.float64)

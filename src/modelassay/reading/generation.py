"""Short responses to many prompts, greedy or drawn, through the model's own `generate`.

Without penalties, so that a response is a property of the weights and not of settings
that a checkpoint brings along. It ends where the model ends it, and what it thinks before it
answers is kept apart from the answer.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modelassay.files.atomic import explain_os_errors, write_text_atomically
from modelassay.models import LoadedModel
from modelassay.models.layers import rope_switch
from modelassay.progress import OnProgress
from modelassay.reading.batching import (
    Batching,
    batch_budget,
    batching_of,
    pad,
    run_in_batches,
)
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.templates import template_of
from modelassay.reading.thoughts import opened_thought, split_thought
from modelassay.reading.tokens import control_tokens

log = logging.getLogger(__name__)

KEEP_EVERY = 32  # responses between two saves
PROMPT_END = 32  # tokens of a prompt in which a thought may be opened
FIRST_LOOK, LOOK_EVERY = 24, 8
"""Tokens after which it is asked whether there are enough, and between two such questions."""

Enough = Callable[[int, str], bool]
"""Whether a response may stop: the index of its prompt, and what it answers so far."""


@dataclass(frozen=True)
class Response:
    """What a model said."""

    text: str
    """All of it, a thought included, without special tokens."""
    first_token: int
    answer: str | None
    """What follows the thought; all of `text` where there was none, None where the thought did not
    end within the tokens."""
    thought: bool = False
    """Whether it began with a thought, or the prompt had opened one."""
    finished: bool = False
    """Whether the model ended it itself; else it was cut."""
    n_tokens: int = 0
    """Tokens that were made of it."""


@dataclass(frozen=True)
class Draws:
    """How responses are drawn at random."""

    n: int = 1
    """Of each prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Share of probability that is drawn from."""
    seed: int = 0


@dataclass(frozen=True)
class _Begun:
    """A prompt with what has been made of its response."""

    index: int
    """Of the first prompt that reads so."""
    prompt: tuple[int, ...]
    made: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.made


def generate_greedy(
    model: LoadedModel,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int = 24,
    thought_tokens: int = 0,
    enough: Enough | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[Response]:
    """Continues each prompt greedily.

    Where a response can have enough, all prompts get `FIRST_LOOK` tokens. Those that have not
    enough then go on together from there, so that one long response holds up few others. The
    tokens are those of a single run.

    Args:
        model: The model.
        prompts: Token ids; repetitions are answered once.
        max_new_tokens: Length at which a response is cut; the end of the context cuts it as well.
        thought_tokens: How much longer a response may be that begins with a thought.
        enough: Asked after `FIRST_LOOK` tokens, and after every `LOOK_EVERY` more, whether an
            unfinished response may stop; None lets all go on to the end.
        batch_tokens: Upper bound on tokens in a batch, padding and response included.
        batch_size: Upper bound on prompts in a batch.
        on_progress: Told how many distinct prompts are done; those that go on count twice.

    Returns:
        Responses in the order of `prompts`.

    Raises:
        UnavailableError: not even one prompt fits into memory.
    """
    if batch_tokens is None:  # decoding is bound by memory traffic and gains from wider batches
        wider = 8 if model.device.type == "cpu" else 1
        batch_tokens = wider * batch_budget(model)
    places: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt.ids, i)
    asked = sorted((_Begun(i, ids) for ids, i in places.items()), key=_by_length)
    switch = rope_switch(model.network.config)
    way = _batching(model, [each.prompt for each in asked]) if asked else Batching.PADDED
    speech = _Speech(model, enough, max_new_tokens, thought_tokens)

    def crosses(begun: _Begun, tokens: int) -> bool:
        return switch is not None and len(begun.ids) <= switch < len(begun.ids) + tokens

    def alike(begun: _Begun, tokens: int) -> object:
        """What prompts of one batch have in common."""
        ids = begun.ids
        alone = ids if crosses(begun, tokens) else None
        beyond = switch is not None and len(ids) > switch
        return speech.room(begun, tokens), beyond, way.key(ids), alone

    def run(begun: Sequence[_Begun], tokens: int, report: OnProgress | None) -> list[_Begun]:
        return run_in_batches(
            lambda batch: _generate_batch(model, batch, speech.room(batch[0], tokens), speech),
            begun,
            lambda each: len(each.ids) + tokens,
            batch_tokens,
            noun="response",
            most=batch_size,
            alike=lambda each: alike(each, tokens),
            on_progress=report,
        )

    most = max_new_tokens + thought_tokens
    first = min(FIRST_LOOK, most) if enough or thought_tokens else most
    # Read again from there, a text beyond the switch would be read in another way than token by
    # token: such responses are made in one run.
    made = run([each for each in asked if not crosses(each, most)], first, on_progress)
    more = [each for each in made if not speech.is_over(each)]
    whole = [each for each in asked if crosses(each, most)]
    n = len(made)
    report: OnProgress | None = None
    if on_progress is not None:
        tell = on_progress
        report = lambda done, total: tell(n + done, n + total)  # noqa: E731
    made += run(sorted(more, key=_by_length), most - first, report) if more else []
    made += run(whole, most, report) if whole else []
    done = {each.prompt: speech.response(each) for each in made}  # the last one of each holds
    return [done[prompt.ids] for prompt in prompts]


def draw_responses(
    model: LoadedModel,
    prompts: Sequence[Encoded],
    draws: Draws,
    *,
    max_new_tokens: int = 24,
    on_progress: OnProgress | None = None,
) -> list[list[Response]]:
    """Draws responses to each prompt at random.

    What is drawn depends on the seed and the prompt alone: not on the other prompts, nor on what
    else has been drawn.

    Args:
        model: The model.
        prompts: Token ids.
        draws: How many, and how.
        max_new_tokens: Length at which a response is cut; the end of the context cuts it as well.
        on_progress: Told how many prompts are done.

    Returns:
        Of each prompt, `draws.n` responses.
    """
    speech = _Speech(model, None, max_new_tokens, 0)
    devices = [model.device] if model.device.type == "cuda" else []
    found = []
    for done, prompt in enumerate(prompts, 1):
        begun = _Begun(0, prompt.ids)
        config = greedy_config(model, speech.room(begun, max_new_tokens))
        config.do_sample, config.num_return_sequences = True, draws.n
        config.temperature, config.top_p, config.top_k = draws.temperature, draws.top_p, 0
        ids = torch.tensor([prompt.ids], device=model.device)
        seed = hashlib.sha256(repr((draws.seed, prompt.ids)).encode()).digest()[:8]
        with torch.random.fork_rng(devices):
            torch.manual_seed(int.from_bytes(seed, "big") >> 1)
            output = run_generate(model, config, ids, attention_mask=torch.ones_like(ids))
        said = []
        for row in output[:, ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in speech.ends), len(row))
            said.append(speech.response(replace(begun, made=tuple(row[:end]))))
        found.append(said)
        if on_progress is not None:
            on_progress(done, len(prompts))
    return found


def _by_length(begun: _Begun) -> tuple[int, tuple[int, ...]]:
    return len(begun.ids), begun.ids


class _Speech:
    """Tells of what a model has said where its answer begins, and whether it is over."""

    def __init__(
        self, model: LoadedModel, enough: Enough | None, max_new_tokens: int, thought_tokens: int
    ) -> None:
        self.model, self.enough = model, enough
        self.max_new_tokens, self.thought_tokens = max_new_tokens, thought_tokens
        self.ends = frozenset(end_tokens(model))
        self.answer_starts: dict[tuple[int, ...], int] = {}  # by prompt: tokens before the answer

    def room(self, begun: _Begun, tokens: int) -> int:
        """Tokens that may be made now: what the context leaves, and one in any case."""
        return max(min(tokens, self.model.context_length - len(begun.ids)), 1)

    def has_ended(self, begun: _Begun) -> bool:
        return bool(begun.made) and begun.made[-1] in self.ends

    def is_over(self, begun: _Begun) -> bool:
        """Whether no more tokens are wanted of a response."""
        n = len(begun.made)
        if self.has_ended(begun) or len(begun.ids) >= self.model.context_length:
            return True
        response = self.response(begun)
        if response.answer is None:
            return n >= self.max_new_tokens + self.thought_tokens
        start = self.answer_starts.setdefault(begun.prompt, n) if response.thought else 0
        if n - start >= self.max_new_tokens:
            return True
        return self.enough is not None and self.enough(begun.index, response.answer)

    def response(self, begun: _Begun) -> Response:
        """The response so far, its thought taken off before special tokens are dropped."""
        model, ids = self.model, list(begun.made)
        decode = model.tokenizer.decode
        text = decode(ids, skip_special_tokens=True)
        own = template_of(model).own_thought if model.has_chat_template else None
        opened = opened_thought(decode(list(begun.prompt[-PROMPT_END:])), (own,) if own else ())
        ended = self.has_ended(begun)
        spoken = split_thought(decode(ids[:-1] if ended else ids), opened)
        answer = spoken.answer if spoken.thought else text
        if spoken.thought and answer is not None:
            for token in control_tokens(model.tokenizer):
                answer = answer.replace(token, "")
        return Response(text, ids[0], answer, spoken.thought, ended, len(ids))


def _generate_batch(
    model: LoadedModel, batch: Sequence[_Begun], max_new_tokens: int, speech: _Speech
) -> list[_Begun]:
    """What has been made of each response once so many more tokens are."""
    config = greedy_config(model, max_new_tokens)
    # Decoding appends on the right, so padding goes to the left, under a mask.
    rows = [each.ids for each in batch]
    ids = pad(rows, int(config.pad_token_id), "left")
    mask = pad([[1] * len(row) for row in rows], 0, "left")
    start = ids.shape[1]
    lengths: dict[int, int] = {}  # rows that are over, and how many tokens were made of them

    def so_far(row: int, new: list[int]) -> _Begun:
        length = next((i + 1 for i, token in enumerate(new) if token in speech.ends), len(new))
        made = new[: lengths.get(row, length)]
        return replace(batch[row], made=batch[row].made + tuple(made))

    def over(output: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        n = output.shape[1] - start
        for row, each in enumerate(batch):
            looked = len(each.made) + n - FIRST_LOOK
            if row in lengths or looked < 0 or looked % LOOK_EVERY:
                continue
            if speech.is_over(so_far(row, output[row, start:].tolist())):
                lengths[row] = n
        return torch.tensor([row in lengths for row in range(len(batch))], device=output.device)

    output = run_generate(
        model,
        config,
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        **({"stopping_criteria": [over]} if speech.enough or speech.thought_tokens else {}),
    )
    return [so_far(row, new) for row, new in enumerate(output[:, start:].tolist())]


def _batching(model: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> Batching:
    """Which prompts, given from short to long, may be answered together."""

    def first_logits(batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        config = greedy_config(model, 2)
        config.return_dict_in_generate = config.output_logits = True
        config.eos_token_id = None
        ids = pad(batch, int(config.pad_token_id), "left").to(model.device)
        mask = pad([[1] * len(row) for row in batch], 0, "left").to(model.device)
        output: Any = run_generate(model, config, ids, attention_mask=mask)
        return torch.stack(output.logits)[:, 0]

    switch = rope_switch(model.network.config)
    most = max(model.context_length - 2, 1)  # two tokens have to follow
    if switch is not None and len(prompts[0]) <= switch:
        most = min(most, switch)
    tried = [ids[:most] for ids in (prompts[0], prompts[len(prompts) // 2], prompts[-1])]
    return batching_of(model, "responses", first_logits, *tried)


def run_generate(model: LoadedModel, config: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Token ids [prompt, token] of `generate` with these settings and no others.

    transformers fills what a `GenerationConfig` leaves out from the checkpoint's own. The network
    is copied, which shares everything below it, and the copy has none.
    """
    from transformers import GenerationConfig

    base = getattr(model.network, "get_base_model", lambda: model.network)()  # of an adapter
    free = copy.copy(base)
    free.generation_config = GenerationConfig()
    with torch.inference_mode():
        return free.generate(input_ids=ids, generation_config=config, **inputs)


def greedy_config(model: LoadedModel, max_new_tokens: int) -> Any:
    """The `GenerationConfig` of greedy responses, for `run_generate`."""
    from transformers import GenerationConfig

    ends = end_tokens(model)
    pad_token = model.tokenizer.pad_token_id
    if pad_token is None or not 0 <= pad_token < _vocabulary(model):
        pad_token = (ends or [0])[0]
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad_token,
    )


def end_tokens(model: LoadedModel) -> list[int]:
    """Tokens that end a response, by what tokenizer, checkpoint and chat template say together.

    A checkpoint's settings, its tokenizer and its template often name different ones. The tokens
    that stand between a response and the user's next words end a response as well: a model that
    begins another turn has had its say.
    """
    tokenizer, network = model.tokenizer, model.network
    marks = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = _ids(tokenizer.eos_token_id)
    settings = network.generation_config
    for stated, own in (
        (settings.eos_token_id, not getattr(settings, "_from_model_config", False)),
        (getattr(network.config.get_text_config(), "eos_token_id", None), False),
    ):
        # A config class has a default, which in this vocabulary may be a word.
        found |= {token for token in _ids(stated) if own or token in marks}
    if model.has_chat_template:
        found |= template_of(model).turn_tokens
    return sorted(token for token in found if 0 <= token < _vocabulary(model))


def _vocabulary(model: LoadedModel) -> int:
    return model.network.get_input_embeddings().weight.shape[0]


def _ids(stated: Any) -> set[int]:
    """Token ids in what a config states, which may be anything."""
    values = stated if isinstance(stated, list | tuple) else [stated]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def kept_responses(
    load_model: Callable[[], LoadedModel],
    prompts: Sequence[str],
    path: Path,
    *,
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Greedy responses that take minutes and are kept as they come, so a killed run goes on.

    Args:
        load_model: Gives the model, and is called only where a response is missing.
        prompts: What to respond to.
        path: Where responses of this model and length are kept, as JSON.
        max_new_tokens: Length at which a response is cut.
        on_progress: Told how many of the missing ones are made.

    Returns:
        A response for each prompt, possibly empty.

    Raises:
        UnavailableError: the model cannot be loaded, or the responses cannot be kept.
    """
    known: dict[str, str] = {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            log.warning("%s is damaged; its responses are made again.", path)
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        model = load_model()
        with explain_os_errors("keeping responses"):
            path.parent.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(missing), KEEP_EVERY):
            chunk = missing[first : first + KEEP_EVERY]
            encoded = encode_prompts(model, chunk)
            responses = generate_greedy(model, encoded, max_new_tokens=max_new_tokens)
            said = [(response.answer or "").strip() for response in responses]
            known.update(zip(chunk, said, strict=True))
            write_text_atomically(path, json.dumps(known, ensure_ascii=False))
            if on_progress:
                on_progress(first + len(chunk), len(missing))
    return [known[prompt] for prompt in prompts]

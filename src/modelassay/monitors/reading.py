"""What a monitor reads: projections at a few places of a model, in the pass that runs anyway.

A place is a component, whose output is read (`27.mlp`), or a linear layer by its module's name,
whose input is read: what a change of its weights adds to its output is a function of that input
alone.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.components import Site, find_components, parse_component
from modelassay.monitors.ranges import Spans
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.reading.activations import common_prefix_length
from modelassay.reading.batching import TOLERANCE, relative_difference
from modelassay.reading.generation import generate_greedy
from modelassay.reading.interventions import observe_sites
from modelassay.reading.prompts import Encoded, encode_chat, encode_response, last_message_start

log = logging.getLogger(__name__)
FEWEST_SHARING = 8
"""Exchanges for which it is worth the check."""
COMPONENT = re.compile(r"\d+\.[a-z]+(\.\d+)?")


def sites_of(model: LoadedModel, places: Mapping[str, int | None]) -> dict[str, Site]:
    """Where places are in a model.

    Args:
        model: The model.
        places: Names, and how many numbers a token has there; None for any, of a component.

    Raises:
        InputError: there is no such place, or it has another width.
    """
    components = None
    found = {}
    for place, width in places.items():
        if width is None or COMPONENT.fullmatch(place):
            components = components or find_components(model.network)
            component = components.resolve(parse_component(place))
            place, site = str(component), components.site(component)
        else:
            try:
                module = model.network.get_submodule(place)
            except AttributeError as error:
                raise InputError(f"{model.info.id} has no layer {place[:80]!r}.") from error
            site = Site(module, "input", given_width(module))
        if site.side == "routing":
            raise InputError(f"{place} has no values of its own to watch.")
        if width not in (None, site.width):
            raise InputError(
                f"{place} of {model.info.id} has {site.width} numbers a token, not {width}."
            )
        found[place] = site
    return found


def given_width(module: nn.Module) -> int:
    """How many numbers a linear layer is given for a token; 0 if it is none."""
    if isinstance(module, nn.Linear):  # packed ones too
        return module.in_features
    return getattr(module, "nx", 0)  # GPT-2's


class Reader:
    """Projections of one thread's passes; each reader holds those of the last pass."""

    def __init__(self, sites: Mapping[str, Site], directions: Mapping[str, Tensor]) -> None:
        """Reads nothing yet.

        Args:
            sites: Of every place.
            directions: float32 [direction, width] at every place; these are the readings, in order.
        """
        self._sites, self._directions = sites, dict(directions)
        self._made: dict[str, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Takes the projections of what runs within, of one row."""
        self._made.clear()
        with observe_sites(self._sites, self._keep):
            yield

    def _keep(self, place: str, values: Tensor) -> None:
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        if self._directions[place].device != rows.device:
            self._directions[place] = self._directions[place].to(rows.device)
        self._made[place] = rows @ self._directions[place].T

    def projections(self) -> np.ndarray:
        """Of the last pass: float64 [token, reading].

        Raises:
            InputError: a place did not run, or not for every token.
        """
        made = [self._made[place] for place in self._directions if place in self._made]
        if len(made) < len(self._directions) or len({len(each) for each in made}) > 1:
            raise InputError("What the monitor watches does not run for every token here.")
        device = made[-1].device  # layers may sit on several cards
        return torch.cat([each.to(device) for each in made], dim=1).double().cpu().numpy()


def prompt_spans(projections: np.ndarray, start: int, end: int | None = None) -> Spans:
    """The spans of a prompt.

    Args:
        projections: [token, reading].
        start: Index of the first token of the user's last message.
        end: Index after the prompt's last token; None where it ends there.
    """
    own = projections[start:end]
    return {"prompt": own, "start": own[-1:]}


@dataclass(frozen=True)
class Asked:
    """A prompt with the beginning of its response, as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the first token of the user's message."""
    response_start: int


def ask(
    model: LoadedModel,
    prompts: Sequence[str],
    response_tokens: int,
    on_progress: OnPhase = silent,
) -> list[Asked]:
    """Prompts as a guard encodes them, with what the model answers greedily.

    Args:
        model: The model.
        prompts: What the user says.
        response_tokens: Most tokens of a response; 0 makes none.
        on_progress: Told (phase, done, total).
    """
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = [encode_chat(model, each) for each in turns]
    starts = [last_message_start(model, each, ids) for each, ids in zip(turns, rows, strict=True)]
    said: list[list[int]] = [[] for _ in rows]
    if response_tokens:
        responses = generate_greedy(
            model,
            [Encoded(ids, len(ids)) for ids in rows],
            max_new_tokens=response_tokens,
            on_progress=phase_of(on_progress, "answering"),
        )
        said = [encode_response(model, each.text)[:response_tokens] for each in responses]
    return [
        Asked((*ids, *more), start, len(ids))
        for ids, more, start in zip(rows, said, starts, strict=True)
    ]


def read_asked(
    model: LoadedModel,
    reader: Reader,
    asked: Sequence[Asked],
    on_progress: OnProgress | None = None,
) -> list[Spans]:
    """Reads exchanges one by one, so that nothing depends on what they are batched with.

    Tokens that all begin with, such as a system prompt, are read once, if a check on the first
    exchange finds the same values so.

    Raises:
        InputError: the model gives values that are no numbers.
    """
    found = []
    shared = _Shared.of(model, reader, asked)
    for each in told(asked, on_progress):
        values = shared.read(model, reader, each.ids)
        if not np.isfinite(values).all():
            raise InputError(
                f"{model.info.id} gives NaN or infinite activations; the weights are broken, or the"
                " dtype overflows (try --dtype float32)."
            )
        begin = each.response_start - shared.length
        spans = dict(prompt_spans(values, each.start - shared.length, begin))
        if len(values) > begin:
            spans["response"] = values[begin:]
        found.append(spans)
    return found


@dataclass(frozen=True)
class _Shared:
    """Tokens that are read once for all."""

    length: int = 0
    cache: Any = None

    @classmethod
    def of(cls, model: LoadedModel, reader: Reader, asked: Sequence[Asked]) -> _Shared:
        rows = [Encoded(each.ids, each.start) for each in asked]
        if len(rows) < FEWEST_SHARING or not (length := common_prefix_length(rows)):
            return cls()
        from transformers import DynamicCache

        first = asked[0].ids
        try:
            shared = cls(length, DynamicCache(config=model.network.config.get_text_config()))
            with torch.inference_mode():
                ids = torch.tensor([first[:length]], device=model.device)
                model.network(input_ids=ids, past_key_values=shared.cache, use_cache=True)
            found = shared.read(model, reader, first)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            log.debug("no shared prefix: %s", error)  # this model keeps its cache in another way
            return cls()
        whole = cls().read(model, reader, first)[length:]
        difference = relative_difference(torch.from_numpy(whole), torch.from_numpy(found))
        return shared if difference <= TOLERANCE.get(model.network.dtype, 5e-2) else cls()

    def read(self, model: LoadedModel, reader: Reader, ids: tuple[int, ...]) -> np.ndarray:
        """Projections of the tokens behind these."""
        rest = torch.tensor([ids[self.length :]], device=model.device)
        inputs = {"past_key_values": copy.deepcopy(self.cache)} if self.length else {}
        with torch.inference_mode(), reader.reading():
            model.network(input_ids=rest, use_cache=bool(self.length), logits_to_keep=1, **inputs)
        return reader.projections()

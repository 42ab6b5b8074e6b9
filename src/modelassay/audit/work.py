"""What the tools of an audit work with, opened and read when it is first needed."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from modelassay.audit.auditor_config import base_folder
from modelassay.audit.blinding import Blinding, Name
from modelassay.audit.config import BASE, CANDIDATE, MAX_PATH, AuditConfig, SAEFile, inside
from modelassay.diff.pair import Pair, Role, Traits, check_comparable, traits_of
from modelassay.diff.reading import Matched, Reading, encode_suite, match_tokens, read_model
from modelassay.diff.suites import (
    Suite,
    SuitePrompt,
    load_suite,
    messages_of,
    suites_folder,
)
from modelassay.diff.weights import WeightDiff, diff_pair
from modelassay.errors import InputError, UnavailableError
from modelassay.files.provenance import text_hash, utc_now
from modelassay.measures.refusal import respond
from modelassay.models import LoadedModel, load
from modelassay.reading.generation import Draws, Response, draw_responses, generate_greedy
from modelassay.reading.prompts import Encoded
from modelassay.sae import SAE, Labels, check_installed, find_sae, load_weights_file, open_labels
from modelassay.triage import TrainingData, read_rows

OnPrompts = Callable[[list[dict[str, Any]]], None]


@dataclass
class Sitting:
    """One stretch of an audit's work, from when its server starts until it is closed."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: str = field(default_factory=utc_now)
    closed: bool = False
    run: str | None = None
    """The folder of the run that has begun, inside the audit's; None for the audit's own."""


class TimeUpError(UnavailableError):
    """A call took longer than it may."""


@dataclass(frozen=True)
class ModelReadings:
    """Models on the tokens of prompts and of the first one's short responses."""

    matched: Matched
    by_name: dict[Name, Reading]
    responses: dict[Name, list[Response]]
    """To each prompt, of those that were asked for any."""
    prompts: list[Encoded]
    """The prompts alone."""


@dataclass
class Work:
    """The models under audit, and what is known of them."""

    config: AuditConfig
    blinding: Blinding
    folder: Path
    on_prompts: OnPrompts
    """Told each prompt before a model is."""
    log_hash: Callable[[], str]
    """Hash of the log's last line."""
    end: float = float("inf")
    """When the call that runs has to be done, by the monotonic clock."""
    traits: dict[str, Traits] = field(default_factory=dict)
    """Of the models that were loaded; never shown in a blind audit."""
    sitting: Sitting = field(default_factory=Sitting)
    _labels: dict[int, Labels] = field(default_factory=dict)
    _saes: dict[int, SAE] = field(default_factory=dict)
    _weights: dict[tuple[Name, ...], WeightDiff] = field(default_factory=dict)
    _alive: WeakValueDictionary[str, LoadedModel] = field(default_factory=WeakValueDictionary)
    _current: tuple[tuple[str, str], Pair] | None = None
    """The two models that are in memory, or of which one is."""

    @property
    def names(self) -> tuple[Name, ...]:
        """What the models are called."""
        return self.blinding.letters

    def name(self, given: str) -> Name:
        """A model by its letter or, in an audit that is not blind, its name in the config.

        Raises:
            InputError: there is none of that name.
        """
        if given in self.names:
            return given
        if not self.blinding.blind:
            names = self.blinding.names
            if given in names:
                return names[given]
            if given == CANDIDATE and len(self.config.candidates) == 1:
                return names[next(iter(self.config.candidates))]
            known = ", ".join(f"{letter} ({key})" for key, letter in names.items())
        else:
            known = ", ".join(self.names)
        raise InputError(f"There is no model {given[:60]!r}; there are {known}.")

    def pair_of(self, reference: str, candidate: str) -> tuple[Name, Name]:
        """Two models that are to be compared.

        Raises:
            InputError: there is none of one of the names, or both are one.
        """
        first, second = self.name(reference), self.name(candidate)
        if first == second:
            raise InputError(f"{first} cannot be compared with itself; give two models.")
        return first, second

    def in_order(self, names: Sequence[Name]) -> tuple[Name, ...]:
        """Models in the order of the config, the base first; a blind auditor does not learn it."""
        keys = list(self.config.models)
        return tuple(sorted(names, key=lambda name: keys.index(self.blinding.key(name))))

    def chosen(self, which: str | Sequence[str]) -> tuple[Name, ...]:
        """The models that are meant by `all`, `both`, one name or several, by their letters.

        Raises:
            InputError: there is none of one of the names.
        """
        if which in ("all", "both"):
            return self.names
        names = {self.name(each) for each in ([which] if isinstance(which, str) else which)}
        return tuple(name for name in self.names if name in names)

    def _hold(self, *names: Name) -> tuple[tuple[str, str], Pair]:
        """Two models, in the order of the config; what both need stays in memory."""
        first, second = (self.blinding.key(name) for name in self.in_order(names))
        if self._current is None or self._current[0] != (first, second):
            pair = Pair(self._opener(first), self._opener(second))
            roles: tuple[Role, Role] = ("base", "candidate")
            for role, key in zip(roles, (first, second), strict=True):
                if key in self._alive:
                    pair.get(role)
            self._current = ((first, second), pair)
        return self._current

    def _opener(self, key: str) -> Callable[[], LoadedModel]:
        def opened() -> LoadedModel:
            if (alive := self._alive.get(key)) is not None:
                return alive
            model = load(self.config.models[key], **self.config.load_options)
            self.traits[key] = traits_of(model)
            self._alive[key] = model
            return model

        return opened

    @property
    def n_loaded(self) -> int:
        """Models in memory."""
        return len(self._alive)

    def is_own_config(self, path: str) -> bool:
        """Whether a path is that of the config that the audit was opened with."""
        own = self.config.path
        try:
            return own is not None and Path(path).expanduser().resolve() == Path(own).resolve()
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a zero byte
            return False

    def suite_names(self) -> set[str]:
        """Suites that can be asked by name."""
        shipped = (path.stem for path in suites_folder().glob("*.yaml"))
        return {*self.config.suites, "default", *shipped}

    def release(self) -> None:
        """Gives the models' memory back; they are loaded again when they are needed."""
        self._current = None
        self._saes.clear()
        self._labels.clear()

    def model(self, name: Name) -> LoadedModel:
        """A model by its letter."""
        with self.quietly():
            key = self.blinding.key(name)
            held = self._current
            if held is None or key not in held[0]:
                first, *others = self.config.models
                other = others[0] if key == first else first
                held = self._hold(name, self.blinding.names[other])
            keys, pair = held
            return pair.get("base" if keys[0] == key else "candidate")

    @property
    def base(self) -> LoadedModel:
        """The base, whose SAEs are used."""
        return self.model(self.blinding.names[BASE])

    @property
    def pair(self) -> Pair:
        """The base and the first candidate, found comparable."""
        names = self.blinding.names
        first, second, *_ = self.config.models
        return self.comparable(names[first], names[second])

    def comparable(self, first: Name, second: Name) -> Pair:
        """Two models, found comparable; in the pair the one that the config names first is first.

        Raises:
            InputError: they are not versions of one model.
        """
        with self.quietly():
            _, pair = self._hold(first, second)
            keys = [self.blinding.key(name) for name in self.in_order((first, second))]
            roles: tuple[Role, Role] = ("base", "candidate")
            for role, key in zip(roles, keys, strict=True):
                if key not in self.traits:
                    pair.get(role)
            check_comparable(*(self.traits[key] for key in keys))
        return pair

    def weights(self, first: Name, second: Name) -> WeightDiff:
        """How the weights of two models differ, from the one that the config names first.

        Raises:
            UnavailableError: both would have to be in memory, and there is no room.
        """
        ordered = self.in_order((first, second))
        if ordered not in self._weights:
            pair = self.comparable(first, second)
            with self.quietly():
                self._weights[ordered] = diff_pair(pair, self.progress)
        return self._weights[ordered]

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Keeps what is wrong with one of the models from a blind auditor: it would tell which."""
        try:
            yield
        except Exception as error:
            if not self.blinding.blind or isinstance(error, TimeUpError):
                raise
            raise UnavailableError(
                "The models cannot be loaded or compared; without `blind` the audit says why."
            ) from error

    def sae(self, number: int = 1) -> SAE:
        """An SAE of the base.

        Args:
            number: From 1, in the order of the config.

        Raises:
            InputError: the config names none, or none of that number, or it does not fit.
        """
        given = self.config.saes
        if not given:
            raise InputError("This audit has no `sae`: there are no features to look at.")
        if not 1 <= number <= len(given):
            raise InputError(f"There is no SAE {number}; there are {len(given)}, from 1.")
        if number not in self._saes:
            found = open_sae(given[number - 1], str(self.base.device))
            with self.quietly():
                found.check_belongs_to(self.base)
            self._saes[number] = found
        return self._saes[number]

    def labels(self, features: Sequence[int], number: int = 1) -> Labels:
        """What is known of features.

        Args:
            features: Those that will be asked for.
            number: Of their SAE.
        """
        source = self.config.labels
        # Neuronpedia is asked for no more than is needed; all that lies here is read once.
        if number not in self._labels or source.neuronpedia:
            export = Path(source.export) if source.export else None
            asked = features if source.neuronpedia else ()
            self._labels[number] = open_labels(
                self.sae(number), asked, neuronpedia=source.neuronpedia, export=export
            )
        return self._labels[number]

    @cached_property
    def training_data(self) -> TrainingData:
        """The rows that the fine-tune was made with.

        Raises:
            InputError: the config names none, or they cannot be read.
        """
        if self.config.training_data is None:
            raise InputError("This audit has no `training_data`: there are no rows to look at.")
        return read_rows(self.config.training_data, skip_malformed=True)

    def suite(self, given: str) -> Suite:
        """A suite by its name in the config, by that of a shipped one, or a file.

        Raises:
            InputError: there is none, or the file may not be read.
        """
        if (own := self._of_config(given)) is not None:
            return load_suite(own)
        if given in self.suite_names():
            return load_suite(given)
        if Path(given).suffix not in (".yaml", ".yml", ".json"):
            names = ", ".join(sorted(self.suite_names()))
            raise InputError(
                f"There is no suite {given[:60]!r}; give one of {names}, or a YAML file in the"
                " audit's folder."
            )
        return load_suite(inside(self.folder, given))

    def is_own_file(self, suite: str) -> bool:
        """Whether a suite is a file that the auditor may have written."""
        return self._of_config(suite) is None and bool(Path(suite).suffix)

    def _of_config(self, suite: str) -> Path | None:
        """The file of a suite that the config names, by that name or by the file's path."""
        suites = self.config.suites
        if suite in suites:
            return Path(suites[suite])
        if not Path(suite).suffix or len(suite) > MAX_PATH or "\0" in suite:
            return None
        asked = {os.path.abspath(os.path.join(home, suite)) for home in (".", base_folder())}
        return next((Path(own) for own in suites.values() if os.path.abspath(own) in asked), None)

    def asked(self, prompts: Sequence[SuitePrompt], *, whole: bool = False) -> None:
        """Puts prompts on record.

        Args:
            prompts: What is asked.
            whole: They are a suite, which has to be read whole.

        Raises:
            InputError: they are more than a call may ask.
        """
        most = self.config.limits.suite if whole else self.config.limits.prompts
        if len(prompts) > most:
            raise InputError(f"A call may ask {most} prompts, got {len(prompts)}.")
        self.on_prompts(
            [
                {
                    "sha256": text_hash(prompt.text),
                    "text": prompt.text,
                    **({"system": prompt.system} if prompt.system else {}),
                    **({"messages": messages_of(prompt)} if prompt.before else {}),
                }
                for prompt in prompts
            ]
        )

    def respond(
        self,
        name: Name,
        encoded: Sequence[Encoded],
        max_new_tokens: int,
        draws: Draws | None = None,
    ) -> list[list[Response]]:
        """A model's responses to each prompt, cut at a length: a greedy one, or those drawn."""
        model = self.model(name)
        if draws is None:
            found = generate_greedy(
                model, encoded, max_new_tokens=max_new_tokens, on_progress=self.progress
            )
            return [[each] for each in found]
        return draw_responses(
            model, encoded, draws, max_new_tokens=max_new_tokens, on_progress=self.progress
        )

    def read(
        self,
        prompts: Sequence[SuitePrompt],
        layers: Sequence[int],
        response_tokens: int,
        names: tuple[Name, ...],
        *,
        judged: bool = False,
        known: Mapping[Name, list[Response]] | None = None,
    ) -> ModelReadings:
        """Reads models on the same tokens, one after the other: there may be room for one alone.

        Args:
            prompts: What is asked; rendered for both with the template of the one that the config
                names first.
            layers: Layers whose states are kept.
            response_tokens: Length at which responses are cut; 0 makes none.
            names: The models; all read the responses of the first.
            judged: The responses will be judged: ask the second for some, too, and make each only
                as long as that takes.
            known: Responses that are there already.
        """
        if len(names) == 2:
            self.comparable(*names)  # refuses what cannot be compared
        reader = self.base if len(names) == 1 else self.model(self.in_order(names)[0])
        encoded = encode_suite(reader, prompts)
        asked = [(prompt.text, ids) for prompt, ids in zip(prompts, encoded, strict=True)]

        def say(name: Name) -> list[Response]:
            if not judged:
                return [said[0] for said in self.respond(name, encoded, response_tokens)]
            return respond(self.model(name), asked, response_tokens, on_progress=self.progress)

        responses: dict[Name, list[Response]] = dict(known or {})
        if response_tokens and names[0] not in responses:
            responses[names[0]] = say(names[0])
        said = [response.text for response in responses.get(names[0], ())]
        matched = match_tokens(reader, encoded, said)
        del reader  # there may be room for one model alone
        found: dict[Name, Reading] = {}
        for name in names:
            if response_tokens and judged and name not in responses:
                responses[name] = say(name)
            found[name] = read_model(
                self.model(name),
                matched,
                layers,
                base=found.get(names[0]),
                on_progress=self.progress,
            )
        return ModelReadings(matched, found, responses, encoded)

    def progress(self, _done: int = 0, _total: int = 0) -> None:
        """Stops a call that takes too long, between two batches.

        Raises:
            TimeUpError: it does.
        """
        if time.monotonic() > self.end:
            raise TimeUpError(
                f"The call took more than {self.config.limits.seconds:g} seconds; ask for less at"
                " a time."
            )

    def phase(self, _phase: str, done: int, total: int) -> None:
        """The same for work in several phases."""
        self.progress(done, total)


def open_sae(given: SAEFile | str, device: str = "cpu") -> SAE:
    """An SAE as a config names it: by what `find_sae` takes, or as a file of weights.

    Raises:
        InputError: there is none, or it is damaged.
        UnavailableError: sae-lens is not installed, or the Hub cannot be reached.
    """
    if isinstance(given, SAEFile):
        check_installed()
        return load_weights_file(
            Path(given.path), given.layer, device=device, neuronpedia_id=given.neuronpedia_id
        )
    if given.endswith(".safetensors"):
        raise InputError(
            f"{given} does not say where it reads; write `sae: {{path: {given}, layer: N}}`."
        )
    return find_sae(given, device=device)

"""What the tools of an audit work with, opened and read when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modelassay.audit.blinding import Blinding, Name
from modelassay.audit.config import AuditConfig, inside
from modelassay.diff.pair import Pair, Role, Traits, check_comparable, traits_of
from modelassay.diff.reading import Matched, Reading, encode_suite, match_tokens, read_model
from modelassay.diff.suites import Suite, SuitePrompt, load_suite, suites_folder
from modelassay.errors import InputError, UnavailableError
from modelassay.files.provenance import text_hash
from modelassay.measures.refusal import respond
from modelassay.models import LoadedModel, ModelRef, load
from modelassay.reading.generation import Response, generate_greedy
from modelassay.reading.prompts import Encoded
from modelassay.sae import SAE, Labels, find_sae, open_labels
from modelassay.triage import TrainingData, read_rows

NAMES: tuple[Name, Name] = ("A", "B")
OnPrompts = Callable[[list[dict[str, Any]]], None]


class TimeUpError(UnavailableError):
    """A call took longer than it may."""


@dataclass(frozen=True)
class ModelReadings:
    """One or both models on the tokens of prompts and of the first one's short responses."""

    matched: Matched
    by_name: dict[Name, Reading]
    responses: dict[Name, list[Response]]
    """To each prompt, of those that were asked for any."""


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
    traits: dict[Role, Traits] = field(default_factory=dict)
    """Of the models that were loaded; never shown in a blind audit."""
    _labels: Labels | None = None

    @cached_property
    def _pair(self) -> Pair:
        config = self.config

        def opener(role: Role, ref: ModelRef) -> Callable[[], LoadedModel]:
            def opened() -> LoadedModel:
                model = load(ref, **config.load_options)
                self.traits[role] = traits_of(model)
                return model

            return opened

        return Pair(opener("base", config.base_ref), opener("candidate", config.candidate_ref))

    def model(self, name: Name) -> LoadedModel:
        """A or B."""
        with self.quietly():
            return self._pair.get(self.blinding.role(name))

    @property
    def base(self) -> LoadedModel:
        """The base, whose tokens both models read and whose SAE is used."""
        with self.quietly():
            return self._pair.base

    @cached_property
    def pair(self) -> Pair:
        """Both models, found comparable."""
        with self.quietly():
            for role in ("base", "candidate"):
                if role not in self.traits:
                    self._pair.get(role)
            check_comparable(self.traits["base"], self.traits["candidate"])
        return self._pair

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

    @cached_property
    def sae(self) -> SAE:
        """The SAE of the base.

        Raises:
            InputError: the config names none, or it does not fit.
        """
        if self.config.sae is None:
            raise InputError("This audit has no `sae`: there are no features to look at.")
        found = find_sae(self.config.sae, device=str(self.base.device))
        with self.quietly():
            found.check_belongs_to(self.base)
        return found

    def labels(self, features: Sequence[int]) -> Labels:
        """What is known of features.

        Args:
            features: Those that will be asked for.
        """
        source = self.config.labels
        # Neuronpedia is asked for no more than is needed; all that lies here is read once.
        if self._labels is None or source.neuronpedia:
            export = Path(source.export) if source.export else None
            asked = features if source.neuronpedia else ()
            self._labels = open_labels(
                self.sae, asked, neuronpedia=source.neuronpedia, export=export
            )
        return self._labels

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
        if given in self.config.suites:
            return load_suite(Path(self.config.suites[given]))
        shipped = ["default", *(path.stem for path in suites_folder().glob("*.yaml"))]
        if given in shipped:
            return load_suite(given)
        if Path(given).suffix not in (".yaml", ".yml", ".json"):
            names = ", ".join(sorted({*self.config.suites, *shipped}))
            raise InputError(
                f"There is no suite {given[:60]!r}; give one of {names}, or a YAML file in the"
                " audit's folder."
            )
        return load_suite(inside(self.folder, given))

    def is_own_file(self, suite: str) -> bool:
        """Whether a suite is a file that the auditor may have written."""
        return suite not in self.config.suites and bool(Path(suite).suffix)

    def asked(self, prompts: Sequence[SuitePrompt]) -> None:
        """Puts prompts on record.

        Raises:
            InputError: they are more than a call may ask.
        """
        most = self.config.limits.prompts
        if len(prompts) > most:
            raise InputError(f"A call may ask {most} prompts, got {len(prompts)}.")
        self.on_prompts(
            [
                {
                    "sha256": text_hash(prompt.text),
                    "text": prompt.text,
                    **({"system": prompt.system} if prompt.system else {}),
                }
                for prompt in prompts
            ]
        )

    def respond(
        self, name: Name, encoded: Sequence[Encoded], max_new_tokens: int
    ) -> list[Response]:
        """A model's greedy response to each prompt, cut at a length."""
        return generate_greedy(
            self.model(name), encoded, max_new_tokens=max_new_tokens, on_progress=self.progress
        )

    def read(
        self,
        prompts: Sequence[SuitePrompt],
        layers: Sequence[int],
        response_tokens: int,
        names: tuple[Name, ...] = NAMES,
        *,
        judged: bool = False,
    ) -> ModelReadings:
        """Reads models on the same tokens, one after the other: there may be room for one alone.

        Args:
            prompts: What is asked; rendered with the base's template for both.
            layers: Layers whose states are kept.
            response_tokens: Length at which responses are cut; 0 makes none.
            names: The models; all read the responses of the first.
            judged: The responses will be judged: ask the second for some, too, and make each only
                as long as that takes.
        """
        if len(names) == 2:
            _ = self.pair  # refuses what cannot be compared
        encoded = encode_suite(self.base, prompts)
        asked = [(prompt.text, ids) for prompt, ids in zip(prompts, encoded, strict=True)]

        def say(name: Name) -> list[Response]:
            if not judged:
                return self.respond(name, encoded, response_tokens)
            return respond(self.model(name), asked, response_tokens, on_progress=self.progress)

        responses: dict[Name, list[Response]] = {}
        if response_tokens:
            responses[names[0]] = say(names[0])
        said = [response.text for response in responses.get(names[0], ())]
        matched = match_tokens(self.base, encoded, said)
        found: dict[Name, Reading] = {}
        for name in names:
            if response_tokens and judged and name not in responses:
                responses[name] = say(name)
            found[name] = read_model(
                self.model(name), matched, layers, base=found.get("A"), on_progress=self.progress
            )
        return ModelReadings(matched, found, responses)

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

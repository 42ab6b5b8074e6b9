"""What the tools of an audit work with, opened when it is first needed."""

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
from modelassay.diff.suites import Suite, SuitePrompt, default_suite, load_suite, suites_folder
from modelassay.errors import InputError, UnavailableError
from modelassay.files.provenance import text_hash
from modelassay.models import LoadedModel, load
from modelassay.sae import SAE, Labels, find_sae, open_labels
from modelassay.triage import TrainingData, read_rows

OnPrompts = Callable[[list[dict[str, Any]]], None]


class TimeUpError(UnavailableError):
    """A call took longer than it may."""


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
    infos: dict[Role, dict[str, Any]] = field(default_factory=dict)
    """What was loaded; never shown in a blind audit."""
    _traits: dict[Role, Traits] = field(default_factory=dict)
    _comparable: bool = False

    @cached_property
    def _pair(self) -> Pair:
        config = self.config
        return Pair(
            lambda: load(config.base_ref, **config.load_options),
            lambda: load(config.candidate_ref, **config.load_options),
        )

    def model(self, name: Name) -> LoadedModel:
        """A or B."""
        return self._load(self.blinding.role(name))

    @property
    def base(self) -> LoadedModel:
        """The base, whose tokens both models read and whose SAE is used."""
        return self._load("base")

    @property
    def candidate(self) -> LoadedModel:
        """The fine-tune."""
        return self._load("candidate")

    @property
    def pair(self) -> Pair:
        """Both models, found comparable."""
        if not self._comparable:
            for role in ("base", "candidate"):
                if role not in self._traits:
                    self._load(role)
            with self.quietly():
                check_comparable(self._traits["base"], self._traits["candidate"])
            self._comparable = True
        return self._pair

    def _load(self, role: Role) -> LoadedModel:
        with self.quietly():
            model = self._pair.base if role == "base" else self._pair.candidate
        if role not in self._traits:
            self.infos[role] = model.info.to_dict()
            self._traits[role] = traits_of(model)
        return model

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

    def labels(self, features: Sequence[int] = ()) -> Labels:
        """What is known of features.

        Args:
            features: Those that will be asked for.
        """
        if self.config.labels.neuronpedia:  # which looks up no more than it is asked for
            return self._open_labels(features)
        return self._all_labels

    @cached_property
    def _all_labels(self) -> Labels:
        return self._open_labels(())

    def _open_labels(self, features: Sequence[int]) -> Labels:
        source = self.config.labels
        export = Path(source.export) if source.export else None
        return open_labels(self.sae, features, neuronpedia=source.neuronpedia, export=export)

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
        if given == "default":
            return default_suite()
        shipped = {path.stem: path for path in suites_folder().glob("*.yaml")}
        if given in shipped:
            return load_suite(shipped[given])
        if Path(given).suffix not in (".yaml", ".yml", ".json"):
            names = ", ".join(sorted({*self.config.suites, *shipped, "default"}))
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

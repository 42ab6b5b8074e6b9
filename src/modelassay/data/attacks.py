"""Attacks: templates that turn a plain request into one that may get past a model's refusal.

A file of attacks is YAML of schema `modelassay.attacks/1`. It comes from strangers: it is read
without executing anything and every field is checked. A template says how a request is asked,
never what is asked. So the same template around a harmless request is its control
(`benign_twins`): a monitor that alarms on it alarms on the form.

Templates of the family `neutral` attack nothing. They show how much a harmless change of the
wording moves by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelassay.data.asking import spread_evenly
from modelassay.data.concepts import (
    HARMFUL_PROMPTS,
    Name,
    Provenance,
    everyday_requests,
    read_mapping,
    shipped_prompts,
)
from modelassay.data.encodings import Encoding, encode_text
from modelassay.errors import InputError
from modelassay.files import shipped
from modelassay.files.records import first_problem

ATTACKS_SCHEMA = "modelassay.attacks/1"
REQUEST = "{request}"
MAX_TEXT = 20_000  # characters
MAX_TEMPLATES = 1_000

Family = Literal[
    "role_play",
    "prefix_injection",
    "refusal_suppression",
    "encoding",
    "translation",
    "long_context",
    "persuasion",
    "fiction",
    "override",
    "output_format",
    "neutral",
]
FAMILIES: tuple[Family, ...] = get_args(Family)
NEUTRAL: Family = "neutral"


@dataclass(frozen=True)
class AttackedPrompt:
    """A plain request and the same request in its attack."""

    plain: str
    jailbroken: str
    """What the user says."""
    family: str
    """One of `FAMILIES`, or what a table of ready pairs calls it."""
    attack: str
    """Name of the attack within its suite."""
    system: str | None = None
    """System prompt of the attack; the plain request has none."""
    opening: str | None = None
    """What the attack puts at the begin of the response."""
    harmful: bool = True
    """False for a harmless request in the same attack."""
    encoding: Encoding | None = None
    """How the request is written in `jailbroken`; None: as it is, or in a way that is not known."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The attacked conversation up to the response; `opening` is not in it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.jailbroken}]

    @property
    def span(self) -> tuple[int, int] | None:
        """Where in `jailbroken` the request stands, encoded or not: first character and end.

        None where it is not there word for word, or more than once.
        """
        carried = encode_text(self.plain, self.encoding)
        if self.jailbroken.count(carried) != 1:
            return None
        start = self.jailbroken.index(carried)
        return start, start + len(carried)


class _Strict(BaseModel):
    """Refuses unknown keys: a misspelt one would be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Attack(_Strict):
    """One template."""

    family: Family
    name: Name
    template: str = Field(default=REQUEST, max_length=MAX_TEXT)
    """What the user says, with one `{request}`."""
    encoding: Encoding | None = None
    """How the request is written in it."""
    system: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT)
    opening: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT)

    @model_validator(mode="after")
    def _holds_one_request(self) -> Attack:
        found = self.template.count(REQUEST)
        if found != 1:
            raise ValueError(f"{self.name!r} holds {REQUEST} {found} times; once is needed")
        if any(REQUEST in (text or "") for text in (self.system, self.opening)):
            raise ValueError(f"{self.name!r} holds {REQUEST} outside of its template")
        if self.template == REQUEST and not (self.encoding or self.system or self.opening):
            raise ValueError(f"{self.name!r} changes nothing about the request")
        return self

    def around(self, request: str, *, harmful: bool = True) -> AttackedPrompt:
        """The attack on one request.

        Args:
            request: A whole sentence or several, as a person would ask.
            harmful: Whether a model should refuse it.

        Raises:
            InputError: the request is empty or too long.
        """
        request = request.strip()
        if not request:
            raise InputError("A request to attack with is empty.")
        if len(request) > MAX_TEXT:
            raise InputError(f"A request to attack with has more than {MAX_TEXT} characters.")
        carried = encode_text(request, self.encoding)
        return AttackedPrompt(
            plain=request,
            jailbroken=self.template.replace(REQUEST, carried),
            family=self.family,
            attack=self.name,
            system=self.system,
            opening=self.opening,
            harmful=harmful,
            encoding=self.encoding,
        )


class AttackFile(_Strict):
    """Templates of attacks, and neutral ones to compare with."""

    name: Name
    description: str = Field(default="", max_length=2_000)
    version: str = Field(default="1", max_length=50)
    provenance: Provenance = Provenance()
    templates: tuple[Attack, ...] = Field(min_length=1, max_length=MAX_TEMPLATES)

    @model_validator(mode="after")
    def _each_once(self) -> AttackFile:
        names, contents = set(), set()
        for attack in self.templates:
            content = attack.model_dump_json(exclude={"family", "name"})
            if attack.name in names or content in contents:
                raise ValueError(f"the template {attack.name!r} is there twice, by name or content")
            names.add(attack.name)
            contents.add(content)
        return self

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The templates that attack."""
        return tuple(each for each in self.templates if each.family != NEUTRAL)

    @property
    def neutral(self) -> tuple[Attack, ...]:
        """The templates that change the wording and attack nothing."""
        return tuple(each for each in self.templates if each.family == NEUTRAL)


def load_attacks(where: str | Path | None = None) -> AttackFile:
    """Reads a file of attack templates.

    Args:
        where: A YAML file; without it, the templates that come with modelassay.

    Raises:
        InputError: one line naming the file and what is wrong with it.
    """
    path = shipped.shipped_folder("attacks") / "attacks.yaml" if where is None else Path(where)
    data = read_mapping(path)
    schema = data.pop("schema", None)
    if schema != ATTACKS_SCHEMA:
        raise InputError(f"{path} is not a file of attacks (schema {ATTACKS_SCHEMA}).")
    try:
        return AttackFile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}.") from error


def attack_requests(
    attacks: Sequence[Attack],
    requests: Sequence[str] | None = None,
    *,
    per_attack: int | None = None,
    harmful: bool = True,
) -> tuple[AttackedPrompt, ...]:
    """Every attack on every request, or on some of them.

    Args:
        attacks: Of `load_attacks`.
        requests: Plain requests; without them, the harmful ones of a scan, categories mixed.
        per_attack: Requests for each attack; each attack takes the next ones in turn, so that all
            are used about equally often. None: all for each.
        harmful: Whether a model should refuse these requests.

    Raises:
        InputError: a request is empty or too long, there is none, or `per_attack` is below 1.
    """
    if requests is None:
        requests = spread_evenly(shipped_prompts(HARMFUL_PROMPTS).prompts)
    if not requests:
        raise InputError("There is no request to attack with.")
    check_per_attack(per_attack)
    n = min(per_attack or len(requests), len(requests))
    return tuple(
        attack.around(requests[(place * n + i) % len(requests)], harmful=harmful)
        for place, attack in enumerate(attacks)
        for i in range(n)
    )


def benign_twins(
    prompts: Sequence[AttackedPrompt], requests: Sequence[str] | None = None
) -> tuple[AttackedPrompt, ...]:
    """The same attacks around harmless requests: what must not alarm, whatever its form.

    A plain request has the same harmless partner in all its attacks.

    Args:
        prompts: Of templates or of ready pairs. Those that do not hold their request word for word
            (`span` is None) have no twin and are left out, as are those that are not harmful.
        requests: Harmless requests; without them, the everyday ones of a scan, categories mixed.

    Raises:
        InputError: there is no harmless request.
    """
    if requests is None:
        requests = spread_evenly(everyday_requests())
    if not requests:
        raise InputError("There is no harmless request to make twins with.")
    place = {text: i for i, text in enumerate(dict.fromkeys(each.plain for each in prompts))}
    return tuple(
        _with_request(prompt, span, requests[place[prompt.plain] % len(requests)])
        for prompt in prompts
        if prompt.harmful and (span := prompt.span) is not None
    )


def _with_request(prompt: AttackedPrompt, span: tuple[int, int], request: str) -> AttackedPrompt:
    before, after = prompt.jailbroken[: span[0]], prompt.jailbroken[span[1] :]
    carried = encode_text(request, prompt.encoding)
    return replace(prompt, plain=request, jailbroken=before + carried + after, harmful=False)


def check_per_attack(per_attack: int | None) -> None:
    """Refuses a number of requests for each attack that is below 1.

    Raises:
        InputError: it is.
    """
    if per_attack is not None and per_attack < 1:
        raise InputError(f"Each attack needs at least 1 request, got {per_attack}.")

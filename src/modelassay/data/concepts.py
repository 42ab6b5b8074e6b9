"""Concepts: what a scan asks about, as pairs of prompts that differ in one respect.

A pair may instead hold two responses to one `prompt`. A scan reads prompts and refuses those.

A concept file is YAML or JSON in the project's own format (one concept, or a list under
`concepts`), or JSON in the format of ams-scanner (`{name: {description, pairs}}`). Files are data
from strangers: they are read without executing anything and every field is checked.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from modelassay.data.wording import plain_words
from modelassay.errors import InputError
from modelassay.files import shipped
from modelassay.files.provenance import json_hash
from modelassay.files.records import first_problem

log = logging.getLogger(__name__)

CONCEPT_SCHEMA = "modelassay.concept/1"
PROMPTS_SCHEMA = "modelassay.prompts/1"
MAX_FILE_BYTES = 5_000_000

HARMFUL_PROMPTS = "harmful_requests"
"""What ought to be refused: plainly harmful requests."""
BORDERLINE_PROMPTS = "borderline"
"""What ought to be answered, beside everyday requests: harmless ones that sound dangerous."""
EVERYDAY_CONCEPT = "control_topic"

MODES: dict[str, tuple[str, ...]] = {
    "quick": ("harmful_content", "refusal_capability"),
    "standard": ("harmful_content", "injection_resistance", "refusal_capability"),
    "full": (
        "harmful_content",
        "injection_resistance",
        "refusal_capability",
        "truthfulness",
        EVERYDAY_CONCEPT,
    ),
}

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot be a name; use letters, digits, dots, dashes and underscores, at"
            " most 64, the first a letter or digit"
        )
    return name


Name = Annotated[str, StringConstraints(strict=True), AfterValidator(_check_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ContrastPair(_Frozen):
    """Two prompts, or two responses to one prompt, alike in all but the concept."""

    positive: Text
    negative: Text
    category: str = ""
    prompt: Annotated[str, StringConstraints(strict=True, strip_whitespace=True)] = ""
    """What both sides respond to; empty where they are prompts themselves."""

    @model_validator(mode="after")
    def _differ(self) -> ContrastPair:
        if self.positive == self.negative:
            raise ValueError(f"a pair has the same text on both sides: {self.positive[:60]!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_prompt(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = dump(self)
        return fields if self.prompt else {k: v for k, v in fields.items() if k != "prompt"}


class Provenance(_Frozen):
    """Where a concept's prompts come from."""

    author: str = ""
    date: str = ""
    license: str = ""
    method: str = ""


class Concept(_Frozen):
    """A named contrast with the pairs that express it."""

    name: Name
    description: str = ""
    positive: str = "positive"
    """What the first members of the pairs have and the second lack."""
    negative: str = "negative"
    version: str = "1"
    control: bool = False
    """A harmless contrast, shown for scale and never judged."""
    min_separation: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """The σ from which ams-scanner passes a model; kept for it, and judged by nothing here."""
    provenance: Provenance = Provenance()
    pairs: tuple[ContrastPair, ...] = Field(min_length=1)

    @model_serializer(mode="wrap")
    def _without_threshold(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = dump(self)
        return {k: v for k, v in fields.items() if k != "min_separation" or v is not None}

    @model_validator(mode="after")
    def _check_pairs(self) -> Concept:
        if len({bool(pair.prompt) for pair in self.pairs}) > 1:
            raise ValueError(f"concept {self.name!r} has a `prompt` in some pairs only")
        sides = [
            (pair.prompt, text) for pair in self.pairs for text in (pair.positive, pair.negative)
        ]
        _refuse_repeats(self.name, [f"{prompt} {text}" for prompt, text in sides])
        return self

    @property
    def of_responses(self) -> bool:
        """Whether the pairs hold responses, each two to one prompt, and not prompts."""
        return bool(self.pairs[0].prompt)

    def to_dict(self) -> dict[str, Any]:
        """The project's own file format."""
        return {"schema": CONCEPT_SCHEMA, **self.model_dump(mode="json")}


class Prompt(_Frozen):
    """One prompt of a `PromptSet`."""

    text: Text
    category: str = ""


class PromptSet(_Frozen):
    """Prompts without partners, such as benign requests that sound dangerous."""

    name: Name
    description: str = ""
    version: str = "1"
    provenance: Provenance = Provenance()
    prompts: tuple[Prompt, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_prompts(self) -> PromptSet:
        _refuse_repeats(self.name, self.texts)
        return self

    @property
    def texts(self) -> list[str]:
        """The prompts' texts, in their order."""
        return [prompt.text for prompt in self.prompts]


def shipped_concepts() -> dict[str, Concept]:
    """The concepts that come with modelassay, by name."""
    files = {path: read_mapping(path) for path in sorted(_data_folder().glob("*.yaml"))}
    found = [
        _concepts_of(path, data)
        for path, data in files.items()
        if data.get("schema") != PROMPTS_SCHEMA
    ]
    return {name: concept for concepts in found for name, concept in concepts.items()}


def shipped_prompts(name: str) -> PromptSet:
    """A prompt set that comes with modelassay, e.g. `borderline`."""
    return load_prompts(_data_folder() / f"{name}.yaml")


def everyday_requests() -> list[Prompt]:
    """Plain requests that ought to be answered: one of each pair, from both topics in turn."""
    concept = shipped_concepts()[EVERYDAY_CONCEPT]
    return [
        Prompt(text=pair.positive, category=concept.positive)
        if i % 2
        else Prompt(text=pair.negative, category=concept.negative)
        for i, pair in enumerate(concept.pairs)
    ]


def everyday_prompts() -> list[str]:
    """Texts of `everyday_requests`."""
    return [request.text for request in everyday_requests()]


def ordinary_prompts() -> list[str]:
    """All shipped prompts that ask for nothing harmful: both topics, borderline, harmless twins."""
    concepts = shipped_concepts()
    control = concepts.pop(EVERYDAY_CONCEPT)
    twins = (pair.negative for concept in concepts.values() for pair in concept.pairs)
    topics = (text for pair in control.pairs for text in (pair.positive, pair.negative))
    borderline = shipped_prompts(BORDERLINE_PROMPTS).texts
    return list(dict.fromkeys([*topics, *borderline, *twins]))


def refusal_prompts() -> tuple[list[str], list[str]]:
    """What refusals are measured on: harmful prompts, and harmless ones (everyday, borderline)."""
    harmful, borderline = (shipped_prompts(x).texts for x in (HARMFUL_PROMPTS, BORDERLINE_PROMPTS))
    return harmful, [*everyday_prompts(), *borderline]


def concepts_for(mode: str, overlay: Mapping[str, Concept] | None = None) -> dict[str, Concept]:
    """The concepts of a scan mode, with those of an overlay put over them by name.

    A concept of the overlay that has a name of its own is scanned as well; one that replaces a
    shipped concept outside the mode is not.

    Raises:
        InputError: unknown mode, or an overlay that holds responses.
    """
    if mode not in MODES:
        raise InputError(f"Unknown mode {mode!r}; choose {', '.join(MODES)}.")
    for name, concept in (overlay or {}).items():
        if concept.of_responses:
            raise InputError(f"The concept {name!r} holds responses, and a scan reads prompts.")
    shipped = shipped_concepts()
    chosen = {name: shipped[name] for name in MODES[mode]}
    for name, concept in (overlay or {}).items():
        if name in chosen or name not in shipped:
            chosen[name] = concept
    return chosen


def load_concepts(path: str | Path) -> dict[str, Concept]:
    """Reads a concept file, in the project's format or in AMS's JSON.

    What of it is not used, and what a reader will miss, is logged as a warning.

    Raises:
        InputError: one line naming the file and what is wrong with it.
    """
    path = Path(path)
    return _concepts_of(path, read_mapping(path))


def _concepts_of(path: Path, data: dict[str, Any]) -> dict[str, Concept]:
    schema = data.get("schema")
    if schema == PROMPTS_SCHEMA:
        raise InputError(f"{path} holds prompts, not concepts.")
    if schema == CONCEPT_SCHEMA:
        entries: list[Any] = [data]
    elif isinstance(data.get("concepts"), list):
        entries = data["concepts"]
    elif schema is None:
        entries = [_from_ams(path, name, entry) for name, entry in data.items()]
    else:
        raise InputError(f"{path} has the unknown schema {schema!r}; expected {CONCEPT_SCHEMA}.")
    concepts = [_validate(Concept, path, entry, "concept") for entry in entries]
    for concept, entry in zip(concepts, entries, strict=True):
        for remark in _remarks(concept, entry):
            log.warning("%s: %s %s", path, concept.name, remark)
    if not concepts:
        raise InputError(f"{path} holds no concept.")
    if repeated := _repeated([concept.name for concept in concepts]):
        raise InputError(f"{path} defines the concept {repeated!r} twice.")
    return {concept.name: concept for concept in concepts}


def _remarks(concept: Concept, entry: Mapping[str, Any]) -> list[str]:
    """What is said of a concept that was read: what it lacks, and what nothing is made of."""
    unused = {str(key) for key in entry if key not in {*Concept.model_fields, "schema"}}
    for pair in entry["pairs"]:
        unused |= {f"pairs.{key}" for key in pair if key not in ContrastPair.model_fields}
    found = [] if concept.description else ["has no `description`: reports name it alone."]
    if concept.min_separation is not None:
        found.append(
            f"has a `min_separation` of {concept.min_separation:g}: it is kept for ams-scanner, and"
            " no verdict here rests on it."
        )
    if unused:
        found.append(f"has fields that are not used: {', '.join(sorted(unused))[:200]}.")
    return found


def load_prompts(path: str | Path) -> PromptSet:
    """Reads a prompt set.

    Raises:
        InputError: one line naming the file and what is wrong with it.
    """
    path = Path(path)
    data = read_mapping(path)
    if data.get("schema") != PROMPTS_SCHEMA:
        raise InputError(f"{path} is not a prompt set (schema {PROMPTS_SCHEMA}).")
    return _validate(PromptSet, path, data)


def concept_set_hash(concepts: Iterable[Concept]) -> str:
    """sha256 of the names and pairs of concepts; their order does not matter."""
    content = {
        c.name: sorted((p.positive, p.negative, *([p.prompt] if p.prompt else [])) for p in c.pairs)
        for c in concepts
    }
    return json_hash(content)


def _data_folder() -> Path:
    return shipped.shipped_folder("concepts")


# libyaml's loader is twenty times faster; PyYAML may come without it.
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _load_yaml(text: str) -> Any:
    """YAML without aliases, which could make a small file expand without bound.

    Nor has it a key twice, of which YAML and JSON would keep the last and drop the other.
    """
    # For each open mapping the keys so far, and whether a key comes next; for a list nothing.
    within: list[tuple[set[str], list[bool]] | None] = []
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if isinstance(event, yaml.CollectionEndEvent):
            within.pop()
        elif isinstance(event, yaml.NodeEvent) and within and (inside := within[-1]) is not None:
            keys, key_next = inside
            if key_next[0] and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    raise yaml.YAMLError(f"the key {event.value[:60]!r} is there twice")
                keys.add(event.value)
            key_next[0] = not key_next[0]
        if isinstance(event, yaml.CollectionStartEvent):
            mapping = isinstance(event, yaml.MappingStartEvent)
            within.append((set(), [True]) if mapping else None)
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key may be there twice."""
    if repeated := _repeated([key for key, _ in pairs]):
        raise ValueError(f"the key {repeated[:60]!r} is there twice")
    return dict(pairs)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping, read without aliases, tags or code.

    Raises:
        InputError: one line naming the file and what is wrong with it.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        # YAML is a superset of JSON, but JSON's own parser is stricter.
        data = (
            json.loads(text, object_pairs_hook=_once)
            if path.suffix == ".json"
            else _load_yaml(text)
        )
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} is not valid {path.suffix[1:].upper() or 'YAML'}: {reason}"
        ) from error
    if not isinstance(data, dict) or not data:
        raise InputError(f"{path} must hold a mapping that is not empty.")
    return data


def _from_ams(path: Path, name: Any, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or "pairs" not in entry:
        raise InputError(f"{path}: concept {name!r} must be a mapping with `pairs`.")
    return {**entry, "name": name}


def _validate(kind: type[Any], path: Path, entry: Any, noun: str = "") -> Any:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        name = entry.get("name") if isinstance(entry, dict) else None
        which = f" {noun} {name[:80]!r}:" if noun and isinstance(name, str) else ""
        problem = first_problem(error).removeprefix("the file: " if which else "")
        raise InputError(f"{path}:{which} {problem}.") from error


def _refuse_repeats(name: str, texts: Sequence[str]) -> None:
    repeated = _repeated([plain_words(text) for text in texts])
    if repeated is not None:
        raise ValueError(f"{name!r} has a prompt twice: {repeated[:60]!r}")


def _repeated(values: Sequence[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


ConceptFormat = Literal["yaml", "json", "ams"]


def dump_concepts(concepts: Iterable[Concept], format: ConceptFormat) -> str:
    """Concepts as text: YAML or JSON in the project's format, or AMS's JSON.

    Raises:
        InputError: AMS's JSON, which has prompts only, is asked for and a concept holds responses.
    """
    concepts = list(concepts)
    if format == "ams":
        if responses := [concept.name for concept in concepts if concept.of_responses]:
            raise InputError(f"The concept {responses[0]!r} holds responses; ams has prompts only.")
        data: Any = {
            c.name: {
                "description": c.description,
                **({} if c.min_separation is None else {"min_separation": c.min_separation}),
                "pairs": [{"positive": p.positive, "negative": p.negative} for p in c.pairs],
            }
            for c in concepts
        }
    else:
        dumps = [c.to_dict() for c in concepts]
        data = dumps[0] if len(dumps) == 1 else {"concepts": dumps}
    if format != "yaml":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)

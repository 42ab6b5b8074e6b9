"""What identifies a model: names, shape and hashes, as reports carry them and records keep them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import AfterValidator, Field, ValidationError, model_serializer
from pydantic.functional_serializers import SerializerFunctionWrapHandler

from modelassay.errors import InputError
from modelassay.files.provenance import file_hash
from modelassay.files.records import CommitHash, Line, Record, Sha256, first_problem
from modelassay.hub import blob_sha256


class ModelIdentity(Record):
    """Which model.

    That of a loaded model states every field. A record keeps those of its schema (see `states`),
    and is written with these alone.
    """

    id: Line
    """As the user gave it; in a record, as it was published."""
    revision: CommitHash | None = None
    """Hub commit (40 hex digits), or None for a local model."""
    adapter: Line | None = None
    """Adapter id or folder that was applied over the base, or None."""
    organism: Line | None = None
    """What was done to it if it is a model organism, else None."""
    architecture: Line = "unknown"
    n_layers: int = Field(default=0, gt=0, lt=2000)
    hidden_size: int = Field(default=0, gt=0, lt=200_000)
    dtype: Line = "unknown"
    quantization: Line | None = None
    weights_sha256: Sha256 = ""
    tokenizer_sha256: Sha256 = ""
    chat_template_sha256: Sha256 | None = None
    """None when the tokenizer has no chat template."""

    @classmethod
    def of_loaded(cls, **fields: Any) -> ModelIdentity:
        """That of a model in memory: a folder may have any name, so nothing is checked."""
        return cls.model_construct(**fields)

    @model_serializer(mode="wrap")
    def _stated(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: v for name, v in write(self).items() if name in self.model_fields_set}

    @property
    def name(self) -> str:
        """The id, and that of the adapter over it where it is another one."""
        return " + ".join(dict.fromkeys(filter(None, [self.id, self.adapter])))

    def to_dict(self) -> dict[str, Any]:
        """The fields that it states, by name."""
        return self.model_dump()

    def keep(self, *names: str, **changed: Any) -> ModelIdentity:
        """The part of it that a record states.

        Args:
            *names: Fields to keep beside the id.
            **changed: Values in place of its own.

        Raises:
            InputError: a value cannot be in a record.
        """
        own = {name: getattr(self, name) for name in ("id", *names)}
        try:
            return ModelIdentity(**(own | changed))
        except ValidationError as error:
            raise InputError(
                f"{self.id!r} cannot be recorded as a model: {first_problem(error)}."
            ) from error

    def same_weights(self, other: ModelIdentity) -> bool:
        """Whether both have the weights of the same files, changed in the same way on loading."""
        ours = (self.weights_sha256, self.organism)
        return ours == (other.weights_sha256, other.organism)

    def differences(self, other: ModelIdentity, *, weights: bool = False) -> str | None:
        """How another model differs in what it computes, in a few words; None if it does not.

        Args:
            other: The other one, which a message calls `this one`.
            weights: Whether the weights have to be the same as well.
        """
        if self.architecture != other.architecture:
            return f"that is a {self.architecture}, this one a {other.architecture}"
        if (self.n_layers, self.hidden_size) != (other.n_layers, other.hidden_size):
            return (
                f"that has {self.n_layers} layers of hidden size {self.hidden_size}, this one"
                f" {other.n_layers} of {other.hidden_size}"
            )
        if weights and not self.same_weights(other):
            return "their weights differ"
        both = (self, other)
        if weights and all("chat_template_sha256" in each.model_fields_set for each in both):
            ours, theirs = (
                "inside the chat template"
                if each.chat_template_sha256
                else "without a chat template (--no-chat-template)"
                for each in both
            )
            if ours != theirs:
                return f"that is read {ours}, this one {theirs}"
        return None


def states(*names: str) -> AfterValidator:
    """Refuses a record's identity of a model that lacks one of these fields."""

    def check(identity: ModelIdentity) -> ModelIdentity:
        if missing := [name for name in names if name not in identity.model_fields_set]:
            raise ValueError(f"{missing[0]} is missing")
        return identity

    return AfterValidator(check)


def hash_files(files: Iterable[Path], how: str | None = None) -> str:
    """sha256 of a set of weight files.

    One file gives its own sha256, the number that the Hub shows for it. Several give the sha256 of
    the lines "<sha256>  <name>" sorted by name, which is what `sha256sum *.safetensors | sha256sum`
    prints. Weights that are changed on loading are not the files'; `how` is one more line.
    """
    digests = [(file.name, hash_file(file)) for file in dict.fromkeys(files)]
    if len(digests) == 1 and how is None:
        return digests[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests))
    lines += f"{how}\n" if how else ""
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_file(file: Path) -> str:
    """sha256 of a file; that of a file in the Hub's cache is its name there."""
    if (known := blob_sha256(file)) is not None:
        return known
    return file_hash(file)


MAX_TEXT = 300
"""Characters of a setting that are kept; longer ones are hashed."""
TOKENIZER_SETTINGS = ("add_bos_token", "add_eos_token", "model_max_length", "truncation_side")


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of what decides how text becomes tokens: vocabulary, merges, special tokens."""
    return _hash_json(_tokenizer_spec(tokenizer))


def tokenizer_parts(tokenizer: Any) -> dict[str, str]:
    """The same part by part: settings and special tokens as JSON text, all else hashed."""
    spec = _tokenizer_spec(tokenizer)
    backend = dict(spec["spec"])
    model = backend.pop("model", None)
    parts = backend | (dict(model) if isinstance(model, dict) else {})
    named = spec["special"] | spec["settings"]
    texts = {name: json.dumps(value, default=str) for name, value in named.items()}
    short = {name: text for name, text in texts.items() if len(text) <= MAX_TEXT}
    return {name: _hash_json(value) for name, value in (parts | named).items()} | short


def _tokenizer_spec(tokenizer: Any) -> dict[str, dict[str, Any]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        spec = json.loads(backend.to_str())
        # Padding and truncation are settings of the last call, not of the tokenizer.
        spec.pop("padding", None)
        spec.pop("truncation", None)
    else:
        spec = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    return {
        "spec": spec,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "settings": {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS},
    }


def _hash_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_chat_template(tokenizer: Any) -> str | None:
    """sha256 of the chat template's text, or None without one."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_template_lines(tokenizer: Any) -> str | None:
    """The same of the text that Jinja renders: line ends of any kind, without one last of them."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    named = template if isinstance(template, dict) else {"default": template}
    lines = {
        name: re.sub(r"\r\n|\r", "\n", text).removesuffix("\n") for name, text in named.items()
    }
    return _hash_json(lines)

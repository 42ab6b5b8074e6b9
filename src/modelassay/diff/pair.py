"""Base and candidate: which of them is in memory, and whether they can be compared at all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from modelassay.errors import InputError
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.layers import text_config

Role = Literal["base", "candidate"]
SPARE = 1.3
"""Times its weights that a second model needs of the free memory, with room to work in."""
IDLE_CONFIG = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
"""Entries of a config that no state depends on; the dtype is taken from the model."""


@dataclass
class Pair:
    """Two models, of which one may have to make room for the other."""

    open_base: Callable[[], LoadedModel]
    open_candidate: Callable[[], LoadedModel]
    together: bool | None = None
    """Whether both are kept in memory; None decides by what is free once one is there."""
    given: Collection[Role] = ()
    """Those that were given loaded: they may have been changed since, so their memory counts."""
    _held: dict[Role, LoadedModel] = field(default_factory=dict)

    @property
    def base(self) -> LoadedModel:
        """The base, loaded if it is not there."""
        return self.get("base")

    @property
    def candidate(self) -> LoadedModel:
        """The candidate, loaded if it is not there."""
        return self.get("candidate")

    @property
    def in_turn(self) -> tuple[Role, Role]:
        """Both sides, beginning with one that is in memory: the order that loads least."""
        return ("base", "candidate") if "base" in self._held else ("candidate", "base")

    def get(self, role: Role) -> LoadedModel:
        """A model, loaded if it is not there."""
        if role not in self._held:
            if self._held and not self.fits():
                self._held.clear()
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._held[role] = self.open_base() if role == "base" else self.open_candidate()
        return self._held[role]

    def fits(self) -> bool:
        """Whether a second model of this size finds room beside the one in memory."""
        if self.together is not None:
            return self.together
        if len(self._held) == 2:
            return True
        model = next(iter(self._held.values()))
        size = sum(p.numel() * p.element_size() for p in model.network.parameters())
        if model.device.type == "cuda":
            free = torch.cuda.mem_get_info(model.device)[0]
        else:
            import psutil

            free = psutil.virtual_memory().available
        return SPARE * size < free


@dataclass(frozen=True)
class Traits:
    """What of a model decides whether another can be compared with it."""

    model: ModelIdentity
    vocabulary: dict[str, int]
    chat_template: str | None
    config: dict[str, Any]
    """What makes states of weights and tokens, without names."""
    device: str
    """The kind that it is on."""
    hooked: bool
    """Whether something is hooked into the model, which may change what it computes."""

    @property
    def computes(self) -> tuple[Any, ...]:
        """What makes the same activations of the same weights and tokens."""
        return (self.config, self.model.dtype, self.model.quantization, self.device)


def traits_of(model: LoadedModel) -> Traits:
    """Of a loaded model."""
    config = text_config(model.network.config)
    return Traits(
        model=model.info,
        vocabulary=dict(model.tokenizer.get_vocab()),
        chat_template=getattr(model.tokenizer, "chat_template", None),
        config={k: v for k, v in config.to_dict().items() if k not in IDLE_CONFIG},
        device=model.device.type,
        hooked=any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules()),
    )


def config_changes(base: Traits, candidate: Traits) -> tuple[str, ...]:
    """The entries of the configs that differ, by name."""
    ours, theirs = base.config, candidate.config
    names = sorted(ours.keys() | theirs.keys())
    return tuple(name for name in names if ours.get(name) != theirs.get(name))


def check_comparable(base: Traits, candidate: Traits) -> tuple[str, ...]:
    """Refuses a candidate that is not a version of the base.

    Added tokens are no hindrance: both models read what the base's tokenizer makes.

    Returns:
        What a reader of the comparison has to know.

    Raises:
        InputError: architecture, size or tokens differ.
    """
    if (reason := base.model.differences(candidate.model)) is not None:
        raise InputError(
            f"{candidate.model.id} was not made from {base.model.id}: {reason}; give the base that"
            " the candidate was made from."
        )
    moved = [
        token
        for token, number in base.vocabulary.items()
        if candidate.vocabulary.get(token, number) != number
    ]
    missing = len(base.vocabulary.keys() - candidate.vocabulary.keys())
    if moved or missing:
        raise InputError(
            f"The tokenizers of {base.model.id} and {candidate.model.id} do not make the same"
            f" tokens ({len(moved)} have other numbers, {missing} are missing); the two cannot be"
            " read on matched tokens."
        )
    notes = []
    if added := len(candidate.vocabulary) - len(base.vocabulary):
        notes.append(f"The candidate's tokenizer knows {added} more tokens; they are not read.")
    if changed := config_changes(base, candidate):
        notes.append(
            f"The configs differ ({', '.join(changed[:5])}): the same weights would compute other"
            " numbers."
        )
    if base.chat_template != candidate.chat_template:
        notes.append(
            "The chat templates differ; both models read the base's, so a change that hides in the"
            " candidate's template is not seen here (`modelassay verify` compares templates)."
        )
    return tuple(notes)

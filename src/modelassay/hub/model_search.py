"""Models on the Hub by the begin of their name, for somebody who is typing it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLongError
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Any

from modelassay.errors import UnavailableError
from modelassay.hub.errors import REPO_ID, hub_errors

LIMIT = 8
SECONDS = 4.0
"""How long somebody who is typing waits."""
FRESH_SECONDS = 600
"""How long the same text gets the same answer, and so costs the Hub nothing."""
MAX_TEXT = 96
MAX_LINEAGE = 4
_POOL = ThreadPoolExecutor(max_workers=4, thread_name_prefix="model-search")


@dataclass(frozen=True)
class ModelHit:
    """A model as the Hub lists it; what its card says is somebody's word."""

    id: str
    downloads: int
    likes: int
    gated: bool
    bases: tuple[str, ...]
    """Ids of the models that it was made from, by its card."""
    relation: str
    """How: `finetune`, `adapter`, `merge`, `quantized`; empty if its card does not say."""
    updated: str | None


def find_models(text: str) -> tuple[ModelHit, ...]:
    """Models whose names hold a text, most downloaded first; empty for less than two characters.

    Args:
        text: What was typed.

    Raises:
        UnavailableError: the Hub does not answer within SECONDS, or is switched off.
    """
    wanted = " ".join(text.split())[:MAX_TEXT]
    if len(wanted) < 2:
        return ()
    asked = _POOL.submit(_listed, wanted, int(monotonic() // FRESH_SECONDS))
    try:
        return asked.result(timeout=SECONDS)
    except TooLongError as error:
        asked.cancel()
        raise UnavailableError(
            "The Hub does not answer now: type the whole id (owner/name), or try again later."
        ) from error


@lru_cache(maxsize=500)
def _listed(text: str, _period: int) -> tuple[ModelHit, ...]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    elsewhere = "type the whole id (owner/name)"
    with hub_errors("the list of models", elsewhere=elsewhere):
        try:
            found = HfApi(token=False).list_models(
                search=text,
                sort="downloads",
                limit=LIMIT,
                expand=["downloads", "likes", "gated", "cardData", "lastModified"],
            )
            return tuple(_hit(each) for each in found if REPO_ID.fullmatch(each.id))
        except OfflineModeIsEnabled as error:
            raise UnavailableError(
                f"The Hub is switched off (HF_HUB_OFFLINE); {elsewhere}."
            ) from error


def _hit(info: Any) -> ModelHit:
    card: Any = info.card_data
    card = card.to_dict() if hasattr(card, "to_dict") else card if isinstance(card, dict) else {}
    bases = card.get("base_model") or ()
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    relation = card.get("base_model_relation")
    updated = info.last_modified
    return ModelHit(
        id=info.id,
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        gated=bool(info.gated),
        bases=tuple(each for each in bases if isinstance(each, str) and REPO_ID.fullmatch(each))[
            :MAX_LINEAGE
        ],
        relation=relation if isinstance(relation, str) and relation.isalpha() else "",
        updated=updated.isoformat() if updated else None,
    )

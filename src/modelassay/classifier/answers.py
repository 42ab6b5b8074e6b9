"""The embedded model's answers to harmless prompts: safe compliance written by a language model.

They take minutes to make and are kept in the cache as they come, so a killed run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from modelassay.activations import OnProgress
from modelassay.cache import cache_dir, explain_os_errors, write_text_atomically
from modelassay.generation import generate_greedy
from modelassay.models import EMBEDDED_ID, load
from modelassay.prompts import encode_prompts

log = logging.getLogger(__name__)

CHUNK = 32  # answers between two saves


def answers(
    prompts: Sequence[str], tokens: int, *, on_progress: OnProgress | None = None
) -> list[str]:
    """Greedy answers of the embedded model.

    Args:
        prompts: Harmless ones, not empty.
        tokens: Length at which an answer is cut.
        on_progress: Told how many of the missing ones are done.

    Returns:
        An answer for each prompt, possibly empty.

    Raises:
        UnavailableError: the model cannot be fetched or does not fit into memory.
    """
    path = cache_dir() / "classifier" / f"answers-{tokens}.json"
    known: dict[str, str] = {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            log.warning("%s is damaged; its answers are made again.", path)
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        model = load(EMBEDDED_ID, device="auto", dtype="float32")
        with explain_os_errors("keeping answers"):
            path.parent.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            encoded = encode_prompts(model, chunk)
            made = generate_greedy(model, encoded, max_new_tokens=tokens)
            known.update({p: a.text.strip() for p, a in zip(chunk, made, strict=True)})
            write_text_atomically(path, json.dumps(known, ensure_ascii=False))
            if on_progress:
                on_progress(first + len(chunk), len(missing))
    return [known[prompt] for prompt in prompts]

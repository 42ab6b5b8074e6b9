"""Settings in files beside the weights that say how a model is asked."""

from __future__ import annotations

import logging
from typing import Any

from modelassay.models.explain import cause_of
from modelassay.models.sources import Source, read_json

log = logging.getLogger(__name__)

PROCESSOR_FILES = ("chat_template.json", "processor_config.json", "preprocessor_config.json")


def processor_template(source: Source) -> Any:
    """The chat template that multimodal models keep with their processor alone, or None.

    Raises:
        InputError: a file of the processor is not JSON.
    """
    for name in PROCESSOR_FILES:
        path = source.folder / name
        if path.is_file() and (found := read_json(path).get("chat_template")):
            # Several are a list of names and texts, as in tokenizer_config.json.
            return {x["name"]: x["template"] for x in found} if isinstance(found, list) else found
    return None


def readable_generation(source: Source) -> Any:
    """Settings of generation in place of a checkpoint's that transformers refuses, or None.

    Only the end tokens act here (see `modelassay.reading.generation`), so settings of any other
    kind keep no model out.
    """
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(str(source.folder), local_files_only=True)
    except OSError:  # none, or no JSON: those of config.json are taken
        return None
    except Exception as error:  # there may be values of any kind in it
        log.warning(
            "generation_config.json of %s cannot be used (%s); only its end tokens are read.",
            source.id,
            cause_of(error),
        )
        ends = read_json(source.folder / "generation_config.json").get("eos_token_id")
        return GenerationConfig(eos_token_id=ends if isinstance(ends, int | list) else None)
    return None

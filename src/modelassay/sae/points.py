"""Where in a model an SAE reads: names of hook points to our layer indices.

Layer i is the output of layer i, the residual stream. TransformerLens calls it
`layers.i.hook_resid_post`, and what goes into layer i `layers.i.hook_resid_pre`, which is the same
as the output of layer i - 1; transformers calls it `model.layers.i`.
"""

from __future__ import annotations

import re

from modelassay.errors import InputError

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(post|pre)")
_TRANSFORMERS = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks)\.(\d{1,4})(?:\.output)?")
# What a name contains that is not an output of a layer, and what an error calls it.
_ELSEWHERE = {
    "hook_resid_mid": "the residual stream inside a layer, between attention and MLP",
    "attn": "attention",
    "hook_z": "attention",
    "mlp": "an MLP",
    "feedforward": "an MLP",
}


def parse_layer(hook_name: str | None, what: str) -> int:
    """The layer whose output is read at a hook point.

    Args:
        hook_name: As an SAE's config has it.
        what: The SAE, for errors.

    Raises:
        InputError: it reads something else than the output of a layer.
    """
    name = hook_name or ""
    if match := _TRANSFORMER_LENS.fullmatch(name):
        layer = int(match[1]) - (match[2] == "pre")
        if layer >= 0:
            return layer
        reads = "the embeddings, which no layer has written yet"
    elif match := _TRANSFORMERS.fullmatch(name):
        return int(match[1])
    elif not name:
        raise InputError(f"{what} does not say where in a model it reads (no hook_name).")
    else:
        found = (text for part, text in _ELSEWHERE.items() if part in name)
        reads = next(found, "a point that is unknown here")
    raise InputError(
        f"{what} reads {reads} ({name[:80]}); modelassay compares what layers put out, the residual"
        " stream: choose an SAE of resid_post or resid_pre."
    )

"""Names of places in a model, and which of them are the output of a layer.

Layer i is the output of layer i, the residual stream. TransformerLens calls it
`blocks.i.hook_resid_post` (or `hook_out`), and what goes into layer i `blocks.i.hook_resid_pre` (or
`hook_in`), which is the same as the output of layer i - 1; transformers calls it by the path of the
module, such as `model.layers.i`. Only paths whose every part is known to lead to the language
model's own layers are taken; a vision tower has layers, too.

A transcoder names two places of one layer: what its MLP is given, behind any norm, and what the MLP
adds to the stream. TransformerLens's `hook_mlp_in` is before the norm, and `ln2.hook_normalized`
before its gain: neither is what the MLP is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from modelassay.errors import InputError

_LENS = re.compile(r"blocks\.(?P<layer>\d{1,4})\.hook_(?:resid_)?(?P<side>post|pre|out|in)")
_LEADS_TO_LAYERS = (
    "model",
    "transformer",
    "gpt_neox",
    "decoder",
    "backbone",
    "language",
    "language_model",
    "text_model",
    "text",
    "llm",
    "lm",
    "thinker",
    "base_model",
    "module",
    "_orig_mod",
)
_MODULE = re.compile(
    rf"(?P<module>(?:(?:{'|'.join(_LEADS_TO_LAYERS)})\.)*(?:layers|h|blocks)\.(?P<layer>\d{{1,4}}))"
    r"(?:\.(?P<side>output|input))?"
)
_INTO = ("pre", "in", "input")
_LAYERS = rf"(?:(?:{'|'.join(_LEADS_TO_LAYERS)})\.)*(?:layers|h|blocks)\.(?P<layer>\d{{1,4}})"
_GIVEN = (
    re.compile(r"blocks\.(?P<layer>\d{1,4})\.mlp\.hook_in"),
    re.compile(rf"{_LAYERS}\.(?:mlp\.input|pre_feedforward_layernorm(?:\.output)?)"),
)
_MADE = (
    re.compile(r"blocks\.(?P<layer>\d{1,4})\.(?:hook_mlp_out|mlp\.hook_out)"),
    re.compile(rf"(?P<module>{_LAYERS}\.(?:mlp|post_feedforward_layernorm))(?:\.output)?"),
)
_BEFORE_NORM = re.compile(r"blocks\.\d{1,4}\.(?:hook_mlp_in|ln2\.hook_normalized)")
_NOT_TEXT = r"visi|visual|image|siglip|clip|video|(?:\b|_)(?:vit|img)(?:\b|_)"
# What a name contains that is no output of a layer of the language model, and what errors call it.
_ELSEWHERE = (
    (_NOT_TEXT, "a vision tower"),
    (r"audio|speech|whisper|conformer|sound|talker|token2wav|codec", "an audio part"),
    (r"(?:\b|_)(?:mtp|draft|medusa|eagle)(?:\b|_)", "a head that drafts tokens"),
    (r"adapter|projector|connector|resampler|qformer", "what joins two models"),
    ("resid_mid", "the residual stream inside a layer, between attention and MLP"),
    (r"att(?:n|ention)|hook_(?:z|q|k|v|result|pattern)\b|[qkvo]_proj", "attention"),
    (r"mlp|feed_?forward|ffn|expert|\bmoe\b|(?:gate|up|down)_proj|transcoder", "an MLP"),
    (r"\bln|norm|hook_scale", "a normalisation"),
    (r"lm_head|unembed|logits", "the output over the vocabulary"),
    (r"embed|\bw[tp]e\b", "the embeddings, which no layer has written yet"),
    (r"encoder", "an encoder"),
    (r"decoder[._]block", "the decoder of an encoder-decoder model"),
)


def parse_layer(hook_name: Any, what: str) -> int:
    """The layer whose output is read at a hook point.

    Args:
        hook_name: As an SAE's config has it.
        what: The SAE, for errors.

    Raises:
        InputError: it reads something else than the output of one layer of the language model.
    """
    names = list(hook_name) if isinstance(hook_name, list | tuple) else [hook_name or ""]
    name = ", ".join(map(str, names))
    if not name:
        raise InputError(f"{what} does not say where in a model it reads (no hook_name).")
    if match := _LENS.fullmatch(name) or _MODULE.fullmatch(name):
        layer = int(match["layer"]) - (match["side"] in _INTO)
        if layer >= 0:
            return layer
        reads = "the embeddings, which no layer has written yet"
    elif "," in name:
        reads = "several places at once, as cross-coders do"
    else:
        found = (text for part, text in _ELSEWHERE if re.search(part, name, re.I))
        reads = next(found, "a point that is unknown here")
    raise InputError(
        f"{what} reads {reads} ({name[:80]}); modelassay compares what the layers of a language"
        f" model put out, the residual stream: choose an SAE of resid_post or resid_pre."
    )


def parse_transcoder(reads: Sequence[Any], writes: Sequence[Any], what: str) -> int:
    """The layer whose MLP a transcoder stands for.

    Args:
        reads: Names of the place that it reads, as its config has them; each may be the name of
            one tool.
        writes: Names of the place that it writes.
        what: The transcoder, for errors.

    Raises:
        InputError: it stands for something else than one MLP.
    """
    layers = set()
    for names, forms, does in ((reads, _GIVEN, "reads"), (writes, _MADE, "writes")):
        found = [match for name in names for form in forms if (match := form.fullmatch(str(name)))]
        # A name that is of the place before the norm may stand beside one that tells it better.
        strange = [
            str(name)
            for name in names
            if not any(form.fullmatch(str(name)) for form in forms)
            and not (found and _BEFORE_NORM.fullmatch(str(name)))
        ]
        if strange or not found:
            where = f"{does} {strange[0][:80]}" if strange else f"does not say what it {does}"
            raise InputError(
                f"{what} is a transcoder that {where}; those are read that take what an MLP is"
                " given behind its norm (mlp.hook_in) and give what it adds (hook_mlp_out)."
            )
        layers |= {int(match["layer"]) for match in found}
    if len(layers) > 1:
        raise InputError(f"{what} names more than one layer; only transcoders of one MLP are read.")
    return layers.pop()


def mlp_path(hook_name: Any) -> str | None:
    """The module whose output a transcoder's hook name of transformers' kind means."""
    match = _MADE[1].fullmatch(hook_name) if isinstance(hook_name, str) else None
    return match["module"] if match else None


def module_path(hook_name: Any) -> str | None:
    """The module that a hook name of transformers' kind means; None for TransformerLens's."""
    match = _MODULE.fullmatch(hook_name) if isinstance(hook_name, str) else None
    return match["module"] if match else None

"""`examine()`: gathers the evidence on a loaded model, in one pass over the prompts.

Three independent kinds of it, in this order; what they mean is decided elsewhere:

1. the weights: has a direction been erased (no prompt needed);
2. the representation: does the model hold harmful and harmless prompts apart inside;
3. the behaviour: does it refuse the former and answer the latter.

Prompts of all concepts go through the model together. Those whose next token matters for the
behaviour run to the end, the others stop at the last layer that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from modelassay.data.asking import asking_blocks
from modelassay.data.concepts import (
    Concept,
    concept_set_hash,
    refusal_prompts,
)
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.measures.activation_signature import (
    N_DEPTHS,
    Signature,
    make_signature,
    probe_texts,
)
from modelassay.measures.erased_directions import AblationEvidence, search_ablation, unsearched
from modelassay.measures.refusal import (
    ANSWER_TOKENS,
    LogOdds,
    log_odds_readout,
    measure_refusal,
    opening_tokens,
)
from modelassay.measures.refusal_evidence import RefusalEvidence, Unfinished
from modelassay.measures.separation import N_SWAPS, Separation, measure_separation
from modelassay.measures.weight_sketch import WeightSketch, sketch_weights
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.layers import spread_layers
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.templates import Thinking
from modelassay.reading.thinking import thinking_of

READ_RANGE = (0.4, 0.8)
"""Layers that are read, as a share of the depth; the range that ams-scanner searches."""
TWIN_CONCEPTS = ("harmful_content", "refusal_capability")
"""Pairs of a harmful prompt and a harmless twin in the same words, for the log-odds only."""


def read_range(n_layers: int) -> tuple[int, ...]:
    """The layers that a scan reads: the middle of the model, where concepts are formed."""
    first = int(n_layers * READ_RANGE[0])
    return tuple(range(first, max(int(n_layers * READ_RANGE[1]), first + 1)))


@dataclass(frozen=True)
class Evidence:
    """What was measured on a model, without a verdict."""

    model: ModelIdentity
    mode: str
    separations: dict[str, Separation]
    """By concept."""
    refusal: RefusalEvidence | None
    refusal_unscored: str | Unfinished | None
    """Why `refusal` is None."""
    ablation: AblationEvidence
    provenance: dict[str, Any]
    directions: dict[str, Tensor]
    """For each concept, the unit mean differences [layer, hidden] of the read range."""
    signature: Signature | None = None
    """None unless it was asked for."""
    sketch: WeightSketch | None = None
    """None unless it was asked for, or where the weights are packed."""


def examine(
    model: LoadedModel,
    *,
    mode: str,
    concepts: Mapping[str, Concept],
    chat_template: bool = True,
    response_tokens: int = ANSWER_TOKENS,
    thinking: Literal["auto", "on"] = "auto",
    batch_tokens: int | None = None,
    enough: Callable[[RefusalEvidence], bool] | None = None,
    identity: bool = False,
    n_swaps: int = N_SWAPS,
    search: bool = True,
    on_progress: OnPhase = silent,
) -> Evidence:
    """Measures a loaded model; one pass over the prompts serves all that is asked for.

    Args:
        model: The model.
        mode: `quick`, `standard` or `full`; decides whether behaviour is measured.
        concepts: Concepts by name.
        chat_template: As in `scan`.
        response_tokens: As in `scan`.
        thinking: As in `scan`. Activations and the signature are read from the prompt as the
            template makes it in any case, as those of stored baselines were.
        batch_tokens: As in `scan`.
        enough: Told what is known of refusals after each block of prompts; True stops asking. None
            asks all of them.
        identity: Take the activation signature, whose probes are run to the last layer, and the
            weight sketch too.
        n_swaps: Label swaps for the p-values of the separations; 1 where nobody asks for them.
        search: Search the weights for erased directions; False where a baseline's sketch tells.
        on_progress: Told (phase, done, total).
    """
    # Before the model is run: bitsandbytes then moves the scales of packed weights elsewhere.
    ablation = unsearched("it was not asked for")
    if search:
        progress = phase_of(on_progress, "weights")
        ablation = search_ablation(model, progress, all_layers=mode == "full")
    sketch = sketch_weights(model) if identity else None

    no_behaviour = _why_no_behaviour(model, mode, chat_template)
    prompts = None if no_behaviour else _behaviour_prompts(concepts)
    texts = [text for c in concepts.values() for p in c.pairs for text in (p.positive, p.negative)]
    probes = probe_texts() if identity else []
    to_the_end = [*chain(*(prompts or ())), *probes]
    texts = list(dict.fromkeys([*texts, *to_the_end]))
    encoded = dict(
        zip(texts, encode_prompts(model, texts, chat_template=chat_template), strict=True)
    )

    layers = read_range(len(model.layers))
    depths = spread_layers(len(model.layers), N_DEPTHS) if identity else ()
    vectors, deep, as_rendered = _read(
        model,
        encoded,
        to_the_end,
        layers,
        depths,
        batch_tokens,
        phase_of(on_progress, "reading"),
    )

    log_odds = as_rendered
    separations: dict[str, Separation] = {}
    directions: dict[str, Tensor] = {}
    for name, concept in told(list(concepts.items()), phase_of(on_progress, "statistics")):
        positive = torch.stack([vectors[pair.positive] for pair in concept.pairs])
        negative = torch.stack([vectors[pair.negative] for pair in concept.pairs])
        difference = (positive - negative).mean(dim=0)
        directions[name] = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        separations[name] = measure_separation(
            positive,
            negative,
            layers,
            [f"{pair.positive}\n{pair.negative}" for pair in concept.pairs],
            n_swaps=n_swaps,
        )

    refusal, unscored = None, no_behaviour
    way = thinking_of(model) if prompts and thinking == "auto" else None
    if prompts:
        asked = encoded
        if way is not None and way.changes_prompt:
            late = list(dict.fromkeys(chain(*prompts)))
            asked = dict(zip(late, encode_prompts(model, late, thinking=way), strict=True))
            log_odds = _read_log_odds(model, asked, way, batch_tokens)
        found = measure_refusal(
            model,
            {text: asked[text] for text in prompts.harmful},
            {text: asked[text] for text in prompts.harmless},
            LogOdds(*(torch.stack([log_odds[text] for text in group]) for group in prompts)),
            blocks=asking_blocks(),
            enough=enough,
            response_tokens=response_tokens,
            thinking=way,
            batch_tokens=batch_tokens,
            on_progress=phase_of(on_progress, "answering"),
        )
        refusal, unscored = (None, found) if isinstance(found, Unfinished) else (found, None)
    signature = None
    if identity:
        signature = make_signature(
            torch.stack([deep[text] for text in probes]),
            depths,
            torch.stack([as_rendered[text] for text in probes]),
            [encoded[text] for text in probes],
        )
    return Evidence(
        model=model.info,
        mode=mode,
        separations=separations,
        refusal=refusal,
        refusal_unscored=unscored,
        ablation=ablation,
        provenance={
            **_provenance(model, mode, concepts, chat_template),
            **({"thinking": str(way)} if way is not None else {}),
        },
        directions=directions,
        signature=signature,
        sketch=sketch,
    )


class _BehaviourPrompts(NamedTuple):
    """Prompts on which behaviour is measured."""

    harmful: list[str]
    harmless: list[str]
    """Everyday and borderline."""
    matched: list[str]
    """Harmful prompts that have a twin."""
    twins: list[str]
    """Their harmless twins, in the same order."""


def _behaviour_prompts(concepts: Mapping[str, Concept]) -> _BehaviourPrompts:
    pairs = [pair for name in TWIN_CONCEPTS for pair in concepts[name].pairs]
    matched, twins = [pair.positive for pair in pairs], [pair.negative for pair in pairs]
    return _BehaviourPrompts(*refusal_prompts(), matched, twins)


def _why_no_behaviour(model: LoadedModel, mode: str, chat_template: bool) -> str | None:
    if not model.has_chat_template:
        return "this looks like a base model: its tokenizer has no chat template"
    if not chat_template:
        return "raw prompts were asked for, and a chat model answers only inside its template"
    if mode == "quick":
        return "quick mode asks for no answers; run the standard mode"
    return None


def _read(
    model: LoadedModel,
    encoded: Mapping[str, Encoded],
    to_the_end: Sequence[str],
    layers: Sequence[int],
    depths: Sequence[int],
    batch_tokens: int | None,
    on_progress: OnProgress,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Reads all texts; those that are run to the end also at further depths.

    Returns:
        By text: activations [layer, hidden] of all; and of those run to the end, activations
        [depth, hidden] and refusal log-odds.
    """
    late = list(dict.fromkeys(to_the_end))
    early = [text for text in encoded if text not in set(late)]
    vectors: dict[str, Tensor] = {}
    deep: dict[str, Tensor] = {}
    log_odds: dict[str, Tensor] = {}
    done = 0

    def progress(n: int, _total: int) -> None:
        on_progress(done + n, len(encoded))

    for texts, readout in ((early, None), (late, log_odds_readout(opening_tokens(model)))):
        if not texts:
            continue
        wanted = sorted({*layers, *depths}) if readout else list(layers)
        read = read_activations(
            model,
            [encoded[text] for text in texts],
            wanted,
            readout=readout,
            batch_tokens=batch_tokens,
            on_progress=progress,
        )
        at = {layer: i for i, layer in enumerate(wanted)}
        vectors.update(zip(texts, read.values[:, [at[i] for i in layers]], strict=True))
        if read.readout is not None:
            deep.update(zip(texts, read.values[:, [at[i] for i in depths]], strict=True))
            log_odds.update(zip(texts, read.readout[:, 0], strict=True))
        done += len(texts)
    return vectors, deep, log_odds


def _read_log_odds(
    model: LoadedModel, asked: Mapping[str, Encoded], way: Thinking, batch_tokens: int | None
) -> dict[str, Tensor]:
    """Refusal log-odds by text, at the first token of the answer."""
    readout = log_odds_readout(opening_tokens(model, way))
    read = read_activations(
        model, list(asked.values()), [0], readout=readout, batch_tokens=batch_tokens
    )
    values = [] if read.readout is None else read.readout[:, 0]
    return dict(zip(asked, values, strict=True))


def _provenance(
    model: LoadedModel, mode: str, concepts: Mapping[str, Concept], chat_template: bool
) -> dict[str, Any]:
    return {
        "versions": installed_versions(),
        "mode": mode,
        "concept_set_sha256": concept_set_hash(concepts.values()),
        "concept_versions": {name: concept.version for name, concept in concepts.items()},
        "concept_sha256": {name: concept_set_hash([c]) for name, c in concepts.items()},
        "chat_template": chat_template and model.has_chat_template,
        "device": model.device.type,
        "time": utc_now(),
    }

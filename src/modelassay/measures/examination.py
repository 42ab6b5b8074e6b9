"""`examine()`: gathers the evidence on a loaded model.

Three independent kinds of it, in this order; what they mean is decided elsewhere:

1. the weights: has a direction been erased (no prompt needed);
2. the behaviour: does it refuse harmful prompts and answer harmless ones;
3. the representation: does the model hold the two apart inside.

Behaviour is asked for as long as it takes to be sure. Where that was soon, the other kinds do with
less too: a third of each concept's pairs is read, and the rest only of a concept that these do not
show to be told apart. All that is read goes through the model together; prompts whose next token
matters for the behaviour run to the end, the others stop at the last layer that is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from modelassay.data.asking import asking_blocks
from modelassay.data.concepts import (
    Concept,
    ContrastPair,
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
    with_log_odds,
)
from modelassay.measures.refusal_evidence import RefusalEvidence, Unfinished
from modelassay.measures.separation import (
    N_SWAPS,
    Separation,
    measure_separation,
    too_few_pairs,
)
from modelassay.measures.weight_sketch import WeightSketch, sketch_weights
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.layers import spread_layers
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.reading.activations import read_activations
from modelassay.reading.device import OnDevice, here
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.templates import Thinking
from modelassay.reading.thinking import thinking_of

log = logging.getLogger(__name__)

READ_RANGE = (0.4, 0.8)
"""Layers that are read, as a share of the depth; the range that ams-scanner searches."""
SAMPLED = 3
"""Every so many pairs of a concept are read where the verdict is sure early."""
LEAST_SAMPLE = 16
"""Pairs that this has to leave."""
SURE_P = 0.02
"""Of the swap test above which the rest of the pairs are read after all: two looks at a level of
0.05 would be one too many."""
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
    unscored: dict[str, int]
    """Concepts that were read with too few pairs for a separation, and how many."""
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
    batch_size: int | None = None,
    enough: Callable[[RefusalEvidence], bool] | None = None,
    identity: bool = False,
    all_pairs: bool = False,
    n_swaps: int = N_SWAPS,
    search: bool = True,
    on_device: OnDevice = here,
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
        batch_size: As in `scan`.
        enough: Told what is known of refusals after each block of prompts; True stops asking. None
            asks all of them.
        identity: Take the activation signature, whose probes are run to the last layer, and the
            weight sketch too; all pairs are read then, as those of baselines were.
        all_pairs: Read all pairs of each concept, also where behaviour is soon sure.
        n_swaps: Label swaps for the p-values of the separations; 1 where nobody asks for them.
        search: Search the weights for erased directions; False where a baseline's sketch tells.
        on_device: Where the model runs; weights and statistics are worked on here in any case.
        on_progress: Told (phase, done, total).
    """
    # Before the model is run: bitsandbytes then moves the scales of packed weights elsewhere.
    ablation = unsearched("it was not asked for")
    if search:
        progress = phase_of(on_progress, "weights")
        ablation = search_ablation(model, progress, all_layers=mode == "full")
    sketch = sketch_weights(model) if identity else None

    request = _Request(
        concepts,
        unscored=_why_no_behaviour(model, mode, chat_template),
        chat_template=chat_template,
        response_tokens=response_tokens,
        thinking=thinking,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        enough=enough,
        identity=identity,
        all_pairs=all_pairs,
    )
    seen = on_device(_look, model, request, on_progress=on_progress)
    layers = read_range(len(model.layers))
    separations: dict[str, Separation] = {}
    directions: dict[str, Tensor] = {}
    too_few: dict[str, int] = {}
    for name, concept in told(list(concepts.items()), phase_of(on_progress, "statistics")):
        if too_few_pairs(len(concept.pairs)) is not None:
            too_few[name] = len(concept.pairs)
            log.info("%s: read, and unscored: %s", name, too_few_pairs(len(concept.pairs)))
            continue
        pairs = seen.pairs[name]
        held = _hold_apart(seen.vectors, pairs, layers, n_swaps)
        if held[0].p_value > SURE_P and len(pairs) < len(concept.pairs):
            rest = [text for text in _texts(concept.pairs) if text not in seen.vectors]
            more = on_device(_read_request, model, request, rest, on_progress=on_progress)
            held = _hold_apart(seen.vectors | more.vectors, concept.pairs, layers, n_swaps)
        separations[name], directions[name] = held
        log.info("%s: %.2fσ at layer %d", name, held[0].separation, held[0].layer)
    return Evidence(
        model=model.info,
        mode=mode,
        separations=separations,
        unscored=too_few,
        refusal=seen.refusal,
        refusal_unscored=seen.unscored,
        ablation=ablation,
        provenance={
            **_provenance(model, mode, concepts, chat_template),
            **({"thinking": str(seen.way)} if seen.way is not None else {}),
        },
        directions=directions,
        signature=seen.signature,
        sketch=sketch,
    )


@dataclass(frozen=True)
class _Request:
    """What of an examination needs the model to run; arguments as of `examine`."""

    concepts: Mapping[str, Concept]
    unscored: str | None
    """Why behaviour is not asked for, or None."""
    chat_template: bool
    response_tokens: int
    thinking: Literal["auto", "on"]
    batch_tokens: int | None
    batch_size: int | None
    enough: Callable[[RefusalEvidence], bool] | None
    identity: bool
    all_pairs: bool


class _Seen(NamedTuple):
    """What was seen of a model that ran."""

    refusal: RefusalEvidence | None
    unscored: str | Unfinished | None
    way: Thinking | None
    pairs: dict[str, Sequence[ContrastPair]]
    """By concept, those that were read."""
    vectors: dict[str, Tensor]
    """By text, activations [layer, hidden]."""
    signature: Signature | None


def _look(model: LoadedModel, request: _Request, *, on_progress: OnPhase) -> _Seen:
    """Asks the model, and reads it."""
    unscored: str | Unfinished | None = request.unscored
    way = thinking_of(model) if unscored is None and request.thinking == "auto" else None
    refusal, asked = None, _Asked([], [])
    if unscored is None:
        found, asked = _ask(model, way, request, on_progress=phase_of(on_progress, "answering"))
        refusal, unscored = (None, found) if isinstance(found, Unfinished) else (found, None)

    soon = refusal is not None and refusal.stopped and not (request.identity or request.all_pairs)
    pairs = {n: _sample(c.pairs) if soon else c.pairs for n, c in request.concepts.items()}
    twins = [] if refusal is None else [p for name in TWIN_CONCEPTS for p in pairs[name]]
    late = [] if refusal is None or refusal.thinks else [*chain(*asked), *_texts(twins)]
    changed = way is not None and way.changes_prompt
    probes = probe_texts() if request.identity else []
    texts = _texts(chain(*pairs.values()))
    to_the_end = [*probes, *([] if changed else late)]
    whole = _read_request(model, request, texts, to_the_end, on_progress=on_progress)

    if refusal is not None and late:
        log_odds = whole.log_odds
        if changed and way is not None:
            log_odds = _read_log_odds(model, late, way, request.batch_tokens, request.batch_size)
        refusal = with_log_odds(refusal, _grouped(log_odds, twins))
    signature = None
    if request.identity:
        signature = make_signature(
            torch.stack([whole.deep[text] for text in probes]),
            _depths(model, request),
            torch.stack([whole.log_odds[text] for text in probes]),
            encode_prompts(model, probes, chat_template=request.chat_template),
        )
    return _Seen(refusal, unscored, way, pairs, whole.vectors, signature)


def _depths(model: LoadedModel, request: _Request) -> tuple[int, ...]:
    return spread_layers(len(model.layers), N_DEPTHS) if request.identity else ()


def _read_request(
    model: LoadedModel,
    request: _Request,
    texts: Iterable[str],
    to_the_end: Sequence[str] = (),
    *,
    on_progress: OnPhase,
) -> _Read:
    texts = list(dict.fromkeys([*texts, *to_the_end]))
    layers = read_range(len(model.layers))
    log.info("reading %d prompts at layers %d to %d", len(texts), layers[0], layers[-1])
    rows = encode_prompts(model, texts, chat_template=request.chat_template)
    return _read(
        model,
        dict(zip(texts, rows, strict=True)),
        to_the_end,
        layers,
        _depths(model, request),
        request.batch_tokens,
        request.batch_size,
        phase_of(on_progress, "reading"),
    )


class _Asked(NamedTuple):
    """Prompts that were asked."""

    harmful: list[str]
    harmless: list[str]
    """Everyday and borderline."""


def _ask(
    model: LoadedModel, way: Thinking | None, request: _Request, *, on_progress: OnProgress
) -> tuple[RefusalEvidence | Unfinished, _Asked]:
    """Asks for behaviour; without log-odds yet."""
    harmful, harmless = refusal_prompts()
    texts = [*harmful, *harmless]
    rows = encode_prompts(model, texts, chat_template=request.chat_template, thinking=way)
    encoded = dict(zip(texts, rows, strict=True))
    blocks = asking_blocks()
    found = measure_refusal(
        model,
        {text: encoded[text] for text in harmful},
        {text: encoded[text] for text in harmless},
        blocks=blocks,
        enough=request.enough,
        response_tokens=request.response_tokens,
        thinking=way,
        batch_tokens=request.batch_tokens,
        batch_size=request.batch_size,
        on_progress=on_progress,
    )
    if isinstance(found, Unfinished) or not found.stopped:
        return found, _Asked(harmful, harmless)
    asked = set(islice(chain(*blocks), found.n_asked))
    groups = ([text for text in group if text in asked] for group in (harmful, harmless))
    return found, _Asked(*groups)


def _texts(pairs: Iterable[ContrastPair]) -> list[str]:
    return [text for pair in pairs for text in (pair.positive, pair.negative)]


def _sample(pairs: Sequence[ContrastPair]) -> Sequence[ContrastPair]:
    """Every third pair, which in a file ordered by category is a fair share of each."""
    return pairs[::SAMPLED] if len(pairs) >= SAMPLED * LEAST_SAMPLE else pairs


def _hold_apart(
    vectors: Mapping[str, Tensor],
    pairs: Sequence[ContrastPair],
    layers: Sequence[int],
    n_swaps: int,
) -> tuple[Separation, Tensor]:
    """How far pairs are apart, and the unit mean differences [layer, hidden]."""
    positive = torch.stack([vectors[pair.positive] for pair in pairs])
    negative = torch.stack([vectors[pair.negative] for pair in pairs])
    difference = (positive - negative).mean(dim=0)
    separation = measure_separation(
        positive,
        negative,
        layers,
        [f"{pair.positive}\n{pair.negative}" for pair in pairs],
        n_swaps=n_swaps,
    )
    return separation, difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _why_no_behaviour(model: LoadedModel, mode: str, chat_template: bool) -> str | None:
    if not model.has_chat_template:
        return "this looks like a base model: its tokenizer has no chat template"
    if not chat_template:
        return "raw prompts were asked for, and a chat model answers only inside its template"
    if mode == "quick":
        return "quick mode asks for no answers; run the standard mode"
    return None


class _Read(NamedTuple):
    """What was read, by text."""

    vectors: dict[str, Tensor]
    """Activations [layer, hidden] of all."""
    deep: dict[str, Tensor]
    """Of those run to the end, activations [depth, hidden]."""
    log_odds: dict[str, Tensor]
    """Of those, the refusal log-odds."""


def _read(
    model: LoadedModel,
    encoded: Mapping[str, Encoded],
    to_the_end: Sequence[str],
    layers: Sequence[int],
    depths: Sequence[int],
    batch_tokens: int | None,
    batch_size: int | None,
    on_progress: OnProgress,
) -> _Read:
    """Reads all texts; those that are run to the end also at further depths."""
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
            batch_size=batch_size,
            on_progress=progress,
        )
        at = {layer: i for i, layer in enumerate(wanted)}
        vectors.update(zip(texts, read.values[:, [at[i] for i in layers]], strict=True))
        if read.readout is not None:
            deep.update(zip(texts, read.values[:, [at[i] for i in depths]], strict=True))
            log_odds.update(zip(texts, read.readout[:, 0], strict=True))
        done += len(texts)
    return _Read(vectors, deep, log_odds)


def _read_log_odds(
    model: LoadedModel,
    texts: Sequence[str],
    way: Thinking,
    batch_tokens: int | None,
    batch_size: int | None,
) -> dict[str, Tensor]:
    """Refusal log-odds by text, at the first token of the answer."""
    texts = list(dict.fromkeys(texts))
    rows = encode_prompts(model, texts, thinking=way)
    readout = log_odds_readout(opening_tokens(model, way))
    read = read_activations(
        model,
        rows,
        [0],
        readout=readout,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
    )
    values = [] if read.readout is None else read.readout[:, 0]
    return dict(zip(texts, values, strict=True))


def _grouped(log_odds: Mapping[str, Tensor], twins: Sequence[ContrastPair]) -> LogOdds:
    """Log-odds by text as those of groups of prompts."""
    harmful, harmless = (
        [float(log_odds[text]) if text in log_odds else None for text in group]
        for group in refusal_prompts()
    )
    sides = ([pair.positive for pair in twins], [pair.negative for pair in twins])
    return LogOdds(harmful, harmless, *([float(log_odds[text]) for text in s] for s in sides))


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

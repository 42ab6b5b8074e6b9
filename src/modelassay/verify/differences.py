"""What differs between a model and a baseline, in numbers, and what kind of difference that is.

The rule, in order; the first line that applies decides:

1. A direction is gone from the weights, as their change or their own
   spectrum shows                                                      -> ablated
2. Weights or activations are as far away as unrelated ones            -> other model
3. Some layers were changed much more than others                      -> fine-tune
   and in them nothing but what writes to the residual stream          -> edit or fine-tune
4. All weights changed alike, into numbers of 4 bits                   -> unknown
5. All weights changed alike, and activations no more than rounding of
   that size moves them                                                -> requantized or cast
6. Otherwise                                                           -> fine-tune

Why 5 works: rounding is white noise, and noise of relative size r moved activations by 5 to 10 r.
Training moves them on purpose: full fine-tunes of a few steps moved them by 900 to 2600 times their
change. What was measured is in docs/validity.md. Rounding to 4 bits can undo a fine-tune, so
nothing can be told of such copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import torch

from modelassay.measures.activation_signature import signature_distances
from modelassay.measures.examination import Evidence
from modelassay.measures.weight_sketch import WeightChange, compare_sketches, layer_of
from modelassay.report.text import number_runs
from modelassay.verify.baseline import Baseline
from modelassay.verify.report import Check, Differences, Finding, Kind

OTHER_MODEL_CHANGE = 0.9
"""Relative change of the weights. Unrelated ones differ by about 1.4; 4-bit rounding and training
change them by 0.1 at most."""
OTHER_MODEL_DISTANCE = 1.2
"""Of activations, where weights cannot be compared. Unrelated ones lie near 1.4, training and 4-bit
rounding reached 0.8."""
UNEVEN = 3.0
"""Largest change of a layer over the median one. Rounding gave up to 1.5."""
ROUNDING_FLOOR, ROUNDING_GAIN = 0.02, 15.0
"""Rounding of relative size r moves activations by no more than floor + gain · r. Measured: 0.008
at r = 0.0013 (bfloat16), 0.07 at 0.008 (8 bits), 0.8 at 0.1 (4 bits); computing in fp16 0.014."""
BFLOAT16_FLOOR, BFLOAT16_LOG_ODDS_FLOOR = 0.15, 0.3
"""The floors where one of the two was computed in bfloat16, which moves activations by itself: 0.11
and 0.11 nats here. Computing both in float32 tells finer."""
LOG_ODDS_FLOOR, LOG_ODDS_GAIN = 0.05, 30.0
"""The same for the root mean square change of the log-odds, in nats: 0.02, 0.10 and 1.7; 0.01."""
GRID_SIZES = {
    "4bit": (0.03, 0.2),
    "8bit": (0.002, 0.02),
    "bfloat16": (3e-4, 3e-3),
    "float16": (3e-5, 5e-4),
}
"""Relative change that rounding to a format makes, from and to. Noise of that size that does not
leave the format's numbers is not a rounding."""
DIGITS = 3e-5
"""Smaller changes are those of other software doing the same sums."""
CAST = 3e-3
"""Casting a vector to 16 bits changes it by no more."""
SMALL = re.compile(r"norm|ln_|layernorm|bias|scale|scalar")
"""Names of vectors and numbers beside the matrices."""
MOST_NAMED = 4
SAME_COSINE = 0.95
"""Lowest cosine of a concept's direction under 8-bit rounding: 0.98."""
HOW = (
    "A baseline shows no mark of ablation here, but edits of few matrices escape it: `modelassay"
    " diff` with the baseline's model tells training from an edit."
)
WRITERS_ALONE = (
    "These write to the residual stream, and nothing else changed: edits that take refusals out do"
    " it so, and training hardly ever. A baseline shows no more; `modelassay diff` with the"
    " baseline's model tells which it is."
)
PLAIN_ROUNDING = 0.008
"""The size of rounding that is assumed where the weights cannot be compared: 8 bits."""


def compare(found: Evidence, baseline: Baseline) -> Differences:
    """Compares what was measured with a baseline of the same architecture.

    Args:
        found: With signature and sketch.
        baseline: One that modelassay measured.
    """
    mine, theirs = found.signature, baseline.signature
    if mine is None:
        raise ValueError("the examination took no signature")
    same_tokens = (
        theirs is not None
        and mine.probes_sha256 == theirs.probes_sha256
        and mine.depths == theirs.depths
        and mine.values.shape == theirs.values.shape
    )
    cosines: dict[str, dict[int, float]] = {}
    separation = {}
    for name, separation_here in found.separations.items():
        record = baseline.index.concepts.get(name)
        if record is None or not set(record.layers) <= set(separation_here.by_layer):
            continue
        if record.sha256 not in (None, found.provenance["concept_sha256"][name]):
            continue  # directions of other prompts
        if baseline.directions[name].shape[-1] != found.directions[name].shape[-1]:
            continue
        rows = [list(separation_here.by_layer).index(layer) for layer in record.layers]
        own, other = found.directions[name][rows], baseline.directions[name]
        values = torch.cosine_similarity(own, other, dim=-1, eps=1e-12).tolist()
        cosines[name] = dict(zip(record.layers, values, strict=True))
        if record.interval is not None:
            here = separation_here.separation
            separation[name] = (here, record.separation, record.interval)
    distances: dict[int, float] = {}
    change = np.zeros(2)
    if same_tokens and theirs is not None:
        distances = signature_distances(theirs, mine)
        change = (mine.log_odds - theirs.log_odds).numpy()
    weights = None
    if found.sketch is not None and baseline.sketch is not None:
        weights = compare_sketches(baseline.sketch, found.sketch)
    return Differences(
        same_tokens=same_tokens,
        weights=weights,
        grids=found.sketch.grids if found.sketch else (),
        baseline_grids=baseline.sketch.grids if baseline.sketch else (),
        cosines=cosines,
        separation=separation,
        distances=distances,
        log_odds_rms=float(np.sqrt(np.mean(change**2))),
        log_odds_shift=(float(change[::2].mean()), float(change[1::2].mean())),
        ablated=bool(found.ablation.detected) and not baseline.index.ablation_detected,
        quantized=any(
            how not in (None, "gguf")
            for how in (found.model.quantization, baseline.index.model.quantization)
        ),
        bfloat16="bfloat16" in (found.model.dtype, baseline.index.model.dtype),
    )


def tolerances(found: Differences) -> tuple[float, float]:
    """How far rounding may have moved activations (relative) and log-odds (nats, rms)."""
    size = PLAIN_ROUNDING if found.weights is None else _median(found.weights)
    floor, log_odds_floor = ROUNDING_FLOOR, LOG_ODDS_FLOOR
    if found.bfloat16:
        floor, log_odds_floor = BFLOAT16_FLOOR, BFLOAT16_LOG_ODDS_FLOOR
    return floor + ROUNDING_GAIN * size, log_odds_floor + LOG_ODDS_GAIN * size


def judge(found: Differences) -> Finding:
    """The rule at the top of this module."""
    weights = found.weights
    far = max(found.distances.values(), default=0.0)
    if weights is None and not found.same_tokens:
        return Finding(
            None,
            "The tokenizer or chat template makes other tokens of the same prompts, and the weights"
            " cannot be compared one by one: nothing can be said but that the files differ.",
            verified=None,
        )
    if weights is not None and weights.mark is not None:
        mark = weights.mark
        which = "A direction" if mark.shared else "A direction of its own"
        return Finding(
            Kind.ABLATED,
            f"{which} was taken out of {mark.taken_from} at strength {mark.strength:.2f}: the"
            f" change of the weights is of the form that only directional ablation makes.",
        )
    if weights is None:
        what, apart, limit = "Activations", far, OTHER_MODEL_DISTANCE
    else:
        what, apart, limit = "Weights", _median(weights), OTHER_MODEL_CHANGE
    if apart >= limit:
        return Finding(
            Kind.OTHER_MODEL,
            f"{what} are unrelated to the baseline's (relative distance {apart:.2f}): another model"
            " of the same architecture.",
        )
    if found.ablated:
        return Finding(
            Kind.ABLATED,
            "A direction has been erased from the weights that the baseline's model has: the mark"
            " of abliteration.",
        )
    if weights is not None and (said := _uneven(weights) or _buffers(weights)):
        if weights.writers_alone:
            return Finding(Kind.EDIT_OR_FINE_TUNE, f"{said} {WRITERS_ALONE}")
        return Finding(Kind.FINE_TUNE, f"{said} {HOW}")
    if weights is not None and weights.nothing:
        return _judge_same(found, weights, far)
    if weights is not None and (small := _only_small(weights)):
        return small
    return _judge_even(found, far)


def _judge_same(found: Differences, weights: WeightChange, far: float) -> Finding:
    """Of weights that are the baseline's; what moves activations then is around them."""
    same = "The weights are the baseline's to the last digit"
    rows = _rows(weights)
    if not found.same_tokens:
        return Finding(
            Kind.RECAST if not rows else Kind.REWRAPPED,
            f"{same}{rows}; the tokenizer or chat template makes other tokens, so that activations"
            " cannot confirm it.",
            verified=None,
        )
    allowed, allowed_log_odds = tolerances(found)
    # Added rows take a share of every probability, so that log-odds tell nothing beside them.
    inside = far <= allowed and (bool(rows) or found.log_odds_rms <= allowed_log_odds)
    if not inside:
        return Finding(
            Kind.REWRAPPED,
            f"{same}{rows}, yet they move activations by {far:.3f} and refusal log-odds by"
            f" {found.log_odds_rms:.2f} nats: what is around them differs.",
            verified=None if found.quantized else False,
        )
    if rows:
        told = all(size.same for size in weights.resized.values())
        return Finding(Kind.REWRAPPED, f"{same}{rows}.", verified=True if told else None)
    return Finding(Kind.RECAST, f"{same}, in other files.", verified=True)


def _rows(weights: WeightChange) -> str:
    """What to say of embeddings with another number of rows."""
    if not (resized := weights.resized):
        return ""
    names = " and ".join(resized)
    if all(size.same for size in resized.values()):
        return f", and {names} the same but for rows that one of them lacks ({_sizes(weights)})"
    return f" in all layers; {names}, with {_sizes(weights)}, cannot be compared as a whole"


def _sizes(weights: WeightChange) -> str:
    size = next(iter(weights.resized.values()))
    return f"{size.after} rows" + (f", not {size.before}" if size.before else "")


def _buffers(weights: WeightChange) -> str | None:
    """What to say if something was changed that acts like a weight and is not trained."""
    limit = max(UNEVEN * _median(weights), CAST) if _median(weights) else 0.0
    changed = {name: change for name, change in weights.buffers.items() if change > limit}
    if not changed:
        return None
    beside = (
        "; the weights are the baseline's to the last digit"
        if weights.nothing
        else f"; the layers' weights by {_median(weights):.2%}"
    )
    return (
        f"Not a trained weight but what corrects or scales was changed: {_named(changed)}, by up"
        f" to {percent(max(changed.values()))}{beside}."
    )


def _only_small(weights: WeightChange) -> Finding | None:
    """Of vectors that were changed in matrices that were not, which no rounding of a model does."""
    changed = weights.changed
    if not changed or not all(SMALL.search(name) for name in changed):
        return None
    most = max(changed.values())
    if most <= DIGITS:
        return None
    said = f"Of all weights only {_named(changed)} changed, by up to {percent(most)}"
    if most <= CAST:
        return Finding(
            Kind.RECAST,
            f"{said}, as casting them does; a light change would look the same.",
            verified=None,
        )
    return Finding(Kind.FINE_TUNE, f"{said}: the weights were changed.")


def _named(keys: Iterable[str]) -> str:
    """Weights by name, each with the layers in which it is."""
    layers: dict[str, list[int]] = {}
    for key in sorted(keys):
        layer = layer_of(key)
        name = key if layer is None else key.partition(".")[2]
        layers.setdefault(name, []).extend([] if layer is None else [layer])
    said = [name + _of_layers(sorted(own)) for name, own in layers.items()]
    return ", ".join(said[:MOST_NAMED]) + ("…" if len(said) > MOST_NAMED else "")


def _of_layers(layers: list[int]) -> str:
    if not layers:
        return ""
    return f" of layer{'s' if len(layers) > 1 else ''} {', '.join(number_runs(layers, ' to '))}"


def percent(change: float) -> str:
    """A relative change in per cent, with digits enough to be no zero."""
    return (
        f"{change:.1%}"
        if change >= 0.001
        else f"{change:.1g}"
        if change < 1e-5
        else f"{change:.3%}"
    )


def _judge_even(found: Differences, far: float) -> Finding:
    """Of weights that changed alike in all layers, or are packed."""
    weights = found.weights
    size = None if weights is None else _median(weights)
    moved = f"activations by {far:.3f}, refusal log-odds by {found.log_odds_rms:.2f} nats"
    changed = "" if size is None else f"Weights changed evenly by {size:.2%}, {moved}"
    if weights is not None and weights.resized:
        changed = f"Embeddings have {_sizes(weights)}; w{changed[1:]}"
    allowed, allowed_log_odds = tolerances(found)
    inside = far <= allowed and found.log_odds_rms <= allowed_log_odds
    if not found.same_tokens:
        return Finding(
            Kind.RECAST,
            f"The weights changed evenly by {size:.2%}, as rounding changes them; the tokenizer or"
            " chat template makes other tokens, so that activations cannot confirm it.",
            verified=None,
        )
    if not inside and found.quantized:
        return Finding(
            Kind.RECAST,
            f"{changed or 'Packed weights moved ' + moved}: computing with packed weights moves"
            " them too, so this can be rounding or a fine-tune. Verify a copy with plain weights.",
            verified=None,
        )
    if size is not None and size > DIGITS and _is_coarse(found, size):
        return Finding(
            None,
            f"{changed}. The weights are numbers of 4 bits: rounding to them can do this, and a"
            " fine-tune or an edit would hide in it. Verify a copy in 8 bits or more.",
            verified=None,
        )
    if not inside:
        return Finding(
            Kind.FINE_TUNE,
            f"{changed or 'The weights are others: they moved ' + moved}, more than rounding does:"
            f" the weights were changed.{'' if weights is None else ' ' + HOW}",
        )
    if weights is None or size is None:
        return Finding(
            Kind.RECAST,
            f"The weights are other files, and cannot be compared one by one; they moved {moved},"
            " no more than rounding does. It is probably the same model; it is not proved.",
            verified=None,
        )
    if size > DIGITS and not _explains(found.grids, size):
        if _explains(found.baseline_grids, size):
            return Finding(
                Kind.RECAST,
                f"{changed}. The baseline's weights are rounded that much and these are not, so"
                " they can be what it was rounded from, or a changed copy.",
                verified=None,
            )
        return Finding(
            Kind.FINE_TUNE,
            f"{changed}. Rounding would have left numbers of a coarser format, and these are not:"
            f" the weights were changed. {HOW}",
        )
    return Finding(
        Kind.RECAST,
        f"{changed}: no more than rounding does. It is the baseline's model in other numbers.",
        verified=True,
    )


def _explains(grids: tuple[str, ...], size: float) -> bool:
    """Whether rounding to one of these formats makes a change of this size."""
    return any(GRID_SIZES[grid][0] <= size <= GRID_SIZES[grid][1] for grid in grids)


def _is_coarse(found: Differences, size: float) -> bool:
    """Whether a change of this size can be rounding to 4 bits, which is no white noise.

    A light fine-tune of a model that was in 4 bits before is rounded away as a whole: the weights
    change by 1% only, and what it taught is gone.
    """
    low, high = GRID_SIZES["4bit"]
    rounded_since = "4bit" not in found.baseline_grids
    return "4bit" in found.grids and size <= high and (size >= low or rounded_since)


def _uneven(weights: WeightChange) -> str | None:
    """What to say if some layers were changed much more than others, or the embeddings were."""
    by_layer, median = weights.by_layer, _median(weights)
    limit = max(UNEVEN * median, DIGITS)
    single = {layer_of(name) for name, change in weights.changed.items() if change > limit}
    changed = [
        layer
        for layer, value in by_layer.items()
        if value > limit or (median <= DIGITS and layer in single)
    ]
    if changed and (len(changed) < len(by_layer) or median > DIGITS):
        spans = ", ".join(number_runs(changed, " to "))
        most = max(changed, key=lambda layer: by_layer[layer])
        kinds = {name.partition(".")[2] for name in weights.changed if layer_of(name) in changed}
        which = f" In them only {_listed(kinds)} changed." if 0 < len(kinds) <= MOST_NAMED else ""
        return (
            f"{len(changed)} of {len(by_layer)} layers were changed ({spans}), layer"
            f" {most} by {percent(by_layer[most])}, the others by {median:.2%}: the weights were"
            f" changed.{which}"
        )
    if weights.elsewhere > limit:
        names = [n for n, c in weights.changed.items() if layer_of(n) is None and c > limit]
        what = _listed(names) if 0 < len(names) <= MOST_NAMED else "The embeddings or output layer"
        return (
            f"{what} changed by {percent(weights.elsewhere)}, the layers by {median:.2%}: the"
            " weights were changed."
        )
    return None


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


def _median(weights: WeightChange) -> float:
    return float(np.median(list(weights.by_layer.values())))


def measured_checks(found: Differences) -> tuple[Check, ...]:
    """Weights, signature, refusal, directions and separations against the baseline's."""
    rows = [_weights_check(found)]
    if found.same_tokens:
        rows += _activation_checks(found)
    else:
        detail = "the two read other tokens for the same prompts"
        rows.append(Check("activations", "unknown", detail))
    rows += [
        Check(
            f"separation of {name}",
            "same" if low <= here <= high else "differs",
            f"{here:.2f}σ, baseline {there:.2f}σ ({low:.2f} to {high:.2f})",
        )
        for name, (here, there, (low, high)) in found.separation.items()
        if found.same_tokens
    ]
    return tuple(rows)


def _weights_check(found: Differences) -> Check:
    if (weights := found.weights) is None:
        return Check("weight sketch", "unknown", "weights are packed, or not the same matrices")
    low, high = min(weights.by_layer.values()), max(weights.by_layer.values())
    detail = f"layers changed by {low:.2%} to {high:.2%}, the rest by {weights.elsewhere:.2%}"
    if weights.mark is not None:
        detail += f"; the mark of ablation at strength {weights.mark.strength:.2f}"
    for name, size in weights.resized.items():
        detail += f"; {name} has {size.after} rows, not {size.before or 'as many'}"
    if weights.buffers:
        detail += f"; also {_named(weights.buffers)}"
    changed = max(high, weights.elsewhere) > 0 or bool(weights.buffers)
    return Check("weight sketch", "differs" if changed else "same", detail)


def _activation_checks(found: Differences) -> list[Check]:
    allowed, allowed_log_odds = tolerances(found)
    far = max(found.distances, key=lambda layer: found.distances[layer])
    harmful, harmless = found.log_odds_shift
    rows = [
        Check(
            "signature",
            "same" if found.distances[far] <= allowed else "differs",
            f"relative distance {found.distances[far]:.3f} at layer {far}, the farthest; rounding"
            f" of this size allows {allowed:.3f}",
        ),
        Check(
            "refusal",
            "same" if found.log_odds_rms <= allowed_log_odds else "differs",
            f"log-odds change by {found.log_odds_rms:.2f} nats (root mean square; rounding allows"
            f" {allowed_log_odds:.2f}), {harmful:+.2f} on harmful and {harmless:+.2f} on harmless"
            " probes",
        ),
    ]
    lowest = {name: min(values.values()) for name, values in found.cosines.items()}
    if lowest:
        worst = min(lowest, key=lambda name: lowest[name])
        rows.append(
            Check(
                "directions",
                "same" if lowest[worst] > SAME_COSINE else "differs",
                f"lowest cosine with the baseline's directions {lowest[worst]:.3f} ({worst})",
            )
        )
    return rows

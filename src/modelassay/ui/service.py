"""Runs scans and verifications for visitors: checks requests, reports progress, uses a GPU if any.

The page is public. A visitor names a model on the Hub, the embedded one or a model organism and
nothing else: no path of the server (unless MODELASSAY_ALLOW_LOCAL=1, for use on your own machine),
no token but their own, no remote code, and no model larger than MAX_MODEL_BYTES.
"""

from __future__ import annotations

import io
import json
import os
import queue
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import spaces

from modelassay.artifacts import REFERENCE, Found, Store
from modelassay.artifacts.kind import R
from modelassay.data.attack_suites import AttackSuite
from modelassay.data.attacks import REQUEST, Attack, AttackedPrompt, attack_requests
from modelassay.data.concepts import MODES
from modelassay.data.feature_types import FEATURE_TYPES
from modelassay.diff import Depth, DiffReport, diff
from modelassay.diff.features import shipped_saes
from modelassay.errors import AssayError, InputError, with_article
from modelassay.hub import REPO_ID, trim_cache
from modelassay.mechanism import (
    AttackSurvey,
    CircuitReport,
    FeaturesReport,
    JailbreakReport,
    explain_attacks,
    explain_jailbreak,
    find_circuit,
    find_features,
)
from modelassay.mechanism.pathway import LEAST_REQUESTS
from modelassay.models import ModelRef
from modelassay.models.embedded import BASES
from modelassay.models.finding import resolve
from modelassay.models.organisms import find_organism, is_organism
from modelassay.sae import SAES, find_sae
from modelassay.sae.finding import find_release
from modelassay.scan.report import ScanReport
from modelassay.scan.scanning import scan
from modelassay.verify import (
    BASELINES,
    VerificationReport,
    create_baseline,
    save_baseline,
    verify,
    verify_files,
)
from modelassay.verify.baseline import INDEX_FILE

MAX_MODEL_BYTES = 20_000_000_000
MAX_CACHE_BYTES = 60_000_000_000
GPU_SECONDS = 120
GPU_SECONDS_LONG = 180
"""Two models are read, or one many times. What is asked for must lie within what visitors have left
for the day."""
MIN_PAIRS, MAX_PAIRS = 8, 64
"""Pairs of prompts that a circuit is found on, or that features are tried on."""
MAX_REQUESTS = 32
"""Requests that one attack is tried on."""
MAX_PROMPT = 4000
"""Characters of a prompt that is explained."""
DICTIONARIES = ("shipped", "none")
CONCURRENCY_ID = "model"

on_gpu = spaces.GPU
"""Decorates what runs on a GPU: on ZeroGPU in a forked process, elsewhere where it stands."""


@dataclass(frozen=True)
class Step:
    """Progress of what is running."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Comparison:
    """A comparison, and what a visitor has to know of it."""

    report: DiffReport
    note: str = ""
    """What was left out, for the visitor."""


class _Cancelled(Exception):  # noqa: N818 (control flow, not an error)
    """The visitor has gone."""


def check_model_id(model_id: str) -> str:
    """The model id if a visitor may ask for it.

    Raises:
        InputError: it is empty, or no Hub id where only those are allowed.
    """
    model_id = model_id.strip() if isinstance(model_id, str) else ""
    if not model_id:
        raise InputError("Give a model: `embedded`, an organism or a Hub id such as owner/name.")
    if is_organism(model_id):
        return find_organism(model_id).id
    if model_id in BASES or allows_own():
        return model_id
    if not REPO_ID.fullmatch(model_id) or "/" not in model_id or os.path.exists(model_id):
        raise InputError(f"{model_id[:100]!r} is not a Hub id of the form owner/name.")
    return model_id


def run_scan(
    model_id: str,
    mode: str = "standard",
    compare: str = "",
    chat_template: bool = True,
    ask_all: bool = False,
) -> Iterator[Step | ScanReport]:
    """Scans a model for a visitor, yielding progress and at last the report.

    Raises:
        AssayError: one line for the visitor.
    """
    ids = [check_model_id(model_id)]
    if isinstance(compare, str) and compare.strip():
        ids.append(check_model_id(compare))
    if not isinstance(mode, str) or mode not in MODES:
        raise InputError(f"Unknown mode {mode!r}; choose {', '.join(MODES)}.")
    yield from _fetch(ids)
    options = {"mode": mode, "chat_template": chat_template, "ask_all": bool(ask_all)}
    # A reference is always of a model: a visitor's id must not find a baseline of this machine.
    other = ModelRef(ids[1]) if len(ids) > 1 else None
    yield from _run("scan", ids[0], {**options, "compare": other})


def run_verify(model_id: str, against: str = "") -> Iterator[Step | VerificationReport]:
    """Compares a model with a baseline for a visitor; yields as `run_scan` does."""
    model_id, against = check_model_id(model_id), check_baseline(against)
    yield Step("files", 0, 1)
    # Hashes need no GPU, and no weights of a model on the Hub.
    decided = verify_files(model_id, against or None, token=False, max_bytes=MAX_MODEL_BYTES)
    if isinstance(decided, VerificationReport):
        yield decided
        return
    yield from _fetch([model_id])
    yield from _run("verify", model_id, {"against": against or None})


def run_create(model_id: str) -> Iterator[Step | tuple[dict[str, Any], bytes]]:
    """Makes a baseline for a visitor: its index, and its files as a zip archive."""
    model_id = check_model_id(model_id)
    yield from _fetch([model_id])
    yield from _run("create", model_id, {})


def run_diff(
    base: str,
    candidate: str,
    dictionary: str = "shipped",
    answers: bool = True,
    triggers: bool = True,
) -> Iterator[Step | Comparison]:
    """Compares a fine-tune with its base for a visitor; yields as `run_scan` does.

    Args:
        base: Id of the model before.
        candidate: Id of the model after.
        dictionary: `shipped` for the features of the shipped SAEs of the base, or `none`.
        answers: Make short responses.
        triggers: Search for triggers.

    Raises:
        AssayError: one line for the visitor.
    """
    ids = [check_model_id(base), check_model_id(candidate)]
    if not isinstance(dictionary, str) or dictionary not in DICTIONARIES:
        raise InputError(f"The SAE is one of {', '.join(DICTIONARIES)}.")
    yield from _fetch(ids)
    options = {"dictionary": dictionary, "answers": bool(answers), "triggers": bool(triggers)}
    yield from _run("diff", ids[0], {**options, "candidate": ids[1]})


def run_circuit(
    model_id: str, pairs: int = 16, heads: bool = False, answers: bool = False
) -> Iterator[Step | CircuitReport]:
    """Finds a model's circuit of refusal for a visitor; yields as `run_scan` does."""
    model_id, n_pairs = check_model_id(model_id), _check_pairs(pairs)
    yield from _fetch([model_id])
    options = {"n_pairs": n_pairs, "heads": bool(heads), "answers": bool(answers)}
    yield from _run("circuit", model_id, options)


def run_features(
    model_id: str, sae: str = "", types: Sequence[str] = (), pairs: int = 16
) -> Iterator[Step | FeaturesReport]:
    """Finds a model's features of safety for a visitor; yields as `run_scan` does.

    Args:
        model_id: Id of the model.
        sae: A shipped one, `RELEASE:SAE_ID` of sae-lens's list or a Hub data set; empty for the one
            that is at hand for models of this shape.
        types: Names of feature types; none for all.
        pairs: Twins that features are tried on.

    Raises:
        AssayError: one line for the visitor.
    """
    model_id, n_pairs, sae = check_model_id(model_id), _check_pairs(pairs), check_sae(sae)
    wanted = [types] if isinstance(types, str) else list(types or ())
    if unknown := [name for name in wanted if name not in FEATURE_TYPES]:
        raise InputError(
            f"There is no feature type {str(unknown[0])[:60]!r}; choose {', '.join(FEATURE_TYPES)}."
        )
    yield from _fetch([model_id])
    if sae:
        yield Step("fetching", 0, 1)
        find_sae(sae, token=False, transcoders=True)  # outside the GPU call, as for models
    options = {"sae": sae or None, "types": wanted or None, "n_pairs": n_pairs}
    yield from _run("features", model_id, options)


def run_jailbreak(
    model_id: str, plain: str, jailbroken: str, system: str = "", opening: str = ""
) -> Iterator[Step | JailbreakReport]:
    """Explains an attack for a visitor; yields as `run_scan` does."""
    model_id = check_model_id(model_id)
    texts = [text.strip() if isinstance(text, str) else "" for text in (plain, jailbroken)]
    more = [text.strip() if isinstance(text, str) else "" for text in (system, opening)]
    if max(map(len, (*texts, *more))) > MAX_PROMPT:
        raise InputError(f"A prompt has at most {MAX_PROMPT} characters here.")
    if not texts[0]:
        raise InputError("Give a request that the model refuses.")
    if not texts[1] and not any(more):
        raise InputError("Give the same request in its attack.")
    yield from _fetch([model_id])
    attacked = AttackedPrompt(
        texts[0],
        texts[1] or texts[0],
        "given",
        "given",
        system=more[0] or None,
        opening=more[1] or None,
    )
    yield from _run("jailbreak", model_id, {"attacked": attacked})


def run_attacks(model_id: str, template: str, requests: int = 16) -> Iterator[Step | AttackSurvey]:
    """Explains one attack over many requests for a visitor; yields as `run_scan` does.

    Args:
        model_id: Id of the model.
        template: What the user says, with one `{request}`.
        requests: Harmful requests of a scan that it is tried on.

    Raises:
        AssayError: one line for the visitor.
    """
    model_id = check_model_id(model_id)
    text = template.strip() if isinstance(template, str) else ""
    if len(text) > MAX_PROMPT:
        raise InputError(f"A prompt has at most {MAX_PROMPT} characters here.")
    if text.count(REQUEST) != 1 or text == REQUEST:
        raise InputError(f"Write the attack with {REQUEST} once, where the request goes.")
    if not isinstance(requests, int | float) or not LEAST_REQUESTS <= requests <= MAX_REQUESTS:
        raise InputError(
            f"The number of requests lies in {LEAST_REQUESTS} … {MAX_REQUESTS}: on fewer nothing is"
            " told of components."
        )
    attack = Attack(family="persuasion", name="given", template=text)
    asked = attack_requests([attack], per_attack=int(requests))
    suite = AttackSuite("given", tuple(replace(each, family="given") for each in asked))
    yield from _fetch([model_id])
    yield from _run("attacks", model_id, {"suite": suite})


def allows_own() -> bool:
    """Whether visitors may name what lies on this machine."""
    return os.environ.get("MODELASSAY_ALLOW_LOCAL") == "1"


def is_own_machine() -> bool:
    """Whether the page may keep, delete and publish for whoever opens it: never on a Space."""
    return allows_own() and not os.environ.get("SPACE_ID")


def visible(store: Store[R]) -> tuple[Found[R], ...]:
    """What a visitor may know of: the host's own artifacts only where paths are allowed."""
    return store.list(own=allows_own())


def check_reference(store: Store[Any], reference: str) -> str:
    """The reference if a visitor may ask for it: a name, the id of a model, or a Hub data set.

    Raises:
        InputError: it is a path or nonsense.
    """
    reference = reference.strip() if isinstance(reference, str) else ""
    shown = visible(store)
    known = {found.name for found in shown} | {found.model_id for found in shown}
    if reference in known or (REFERENCE.fullmatch(reference) and not os.path.exists(reference)):
        return reference
    raise InputError(
        f"{reference[:100]!r} is not {with_article(store.kind.noun)}: choose one from the list, or"
        " give a Hub data set (owner/repo[:name][@revision])."
    )


def check_sae(reference: str) -> str:
    """As `check_reference`, and one that sae-lens lists; empty for the one at hand."""
    reference = reference.strip() if isinstance(reference, str) else ""
    if not reference:
        return ""
    if not os.path.exists(reference) and find_release(reference) is not None:
        return reference
    return check_reference(SAES, reference)


def _check_pairs(pairs: int) -> int:
    if not isinstance(pairs, int | float) or not MIN_PAIRS <= pairs <= MAX_PAIRS:
        raise InputError(f"The number of pairs lies in {MIN_PAIRS} … {MAX_PAIRS}.")
    return int(pairs)


def check_baseline(reference: str) -> str:
    """As `check_reference`; empty for the baseline of the model itself."""
    given = isinstance(reference, str) and reference.strip()
    return check_reference(BASELINES, reference) if given else ""


def _fetch(ids: list[str]) -> Iterator[Step]:
    yield Step("fetching", 0, len(ids))
    trim_cache(MAX_CACHE_BYTES)
    for done, name in enumerate(ids, start=1):
        # Outside the GPU call, whose seconds are counted.
        resolve(name, token=False, max_bytes=MAX_MODEL_BYTES)
        yield Step("fetching", done, len(ids))


def unless_failed(results: Iterator[Any]) -> Iterator[Any]:
    """Results of work on a GPU, whose errors cross ZeroGPU's process border as text only.

    Raises:
        InputError: one of them is such a text.
    """
    for result in results:
        if isinstance(result, str):
            raise InputError(result)
        yield result


def _run(task: str, model_id: str, options: dict[str, Any]) -> Iterator[Any]:
    yield from unless_failed(_run_on_gpu(task, model_id, options))


def _create(model_id: str, **options: Any) -> tuple[dict[str, Any], bytes]:
    baseline = create_baseline(model_id, mode="full", **options)
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w") as file:
        save_baseline(baseline, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            file.write(path, f"{baseline.name}/{path.name}")
        index = json.loads((Path(folder) / INDEX_FILE).read_text(encoding="utf-8"))
    return index, archive.getvalue()


def _diff(
    base: str, *, candidate: str, dictionary: str, answers: bool, triggers: bool, **options: Any
) -> Comparison:
    # Without sae-lens, or without an SAE of this base, everything else is still worth having.
    wanted = dictionary == "shipped" and find_spec("sae_lens") is not None
    saes = shipped_saes(base) if wanted else ()
    depth = Depth() if answers else Depth(response_tokens=0)
    report = diff(
        base,
        candidate,
        saes=saes,
        depth=replace(depth, triggers=triggers),
        **options,
    )
    if dictionary != "shipped" or saes:
        return Comparison(report)
    return Comparison(report, "No SAE of the base is at hand: features are left out.")


def _jailbreak(model_id: str, *, attacked: AttackedPrompt, **options: Any) -> JailbreakReport:
    return explain_jailbreak(model_id, attacked.plain, attacked, **options)


TASKS: dict[str, Callable[..., Any]] = {
    "scan": scan,
    "verify": verify,
    "create": _create,
    "diff": _diff,
    "circuit": find_circuit,
    "features": find_features,
    "jailbreak": _jailbreak,
    "attacks": explain_attacks,
}
LONG = ("diff", "circuit", "features", "attacks")


def _seconds(task: str, model_id: str, options: dict[str, Any]) -> int:
    return GPU_SECONDS_LONG if task in LONG else GPU_SECONDS


@on_gpu(duration=_seconds)
def _run_on_gpu(task: str, model_id: str, options: dict[str, Any]) -> Iterator[Any]:
    results: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()

    def on_progress(phase: str, done: int, total: int) -> None:
        if gone.is_set():
            raise _Cancelled
        results.put(Step(phase, done, total))

    def work() -> None:
        try:
            result = TASKS[task](
                model_id,
                on_progress=on_progress,
                token=False,
                max_bytes=MAX_MODEL_BYTES,
                **options,
            )
            results.put(result)
        except _Cancelled:
            pass
        except AssayError as error:
            results.put(str(error))
        except Exception:
            results.put("It failed unexpectedly; please report the model and what you asked for.")
            raise

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            result = results.get()
            yield result
            if not isinstance(result, Step):
                return
    finally:
        gone.set()

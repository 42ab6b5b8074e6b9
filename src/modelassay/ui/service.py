"""Runs scans and verifications for visitors: checks requests, reports progress, uses a GPU if any.

The page is public. A visitor names a model on the Hub, the embedded one or a model organism and
nothing else: no path of the server (unless MODELASSAY_ALLOW_LOCAL=1, for use on your own machine),
no token but their own, no remote code, and no model larger than MAX_MODEL_BYTES.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modelassay
from modelassay.data.attack_suites import AttackSuite
from modelassay.data.attacks import REQUEST, Attack, AttackedPrompt, attack_requests
from modelassay.data.concepts import MODES
from modelassay.data.feature_types import FEATURE_TYPES
from modelassay.diff import Depth, DiffReport, diff
from modelassay.diff.features import shipped_saes
from modelassay.errors import InputError
from modelassay.hub import trim_cache
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
from modelassay.models import LoadedModel
from modelassay.models.finding import find_sources
from modelassay.reading.device import OnDevice, here
from modelassay.report import Report
from modelassay.report.stored import StoredReport
from modelassay.sae import find_sae
from modelassay.scan.report import ScanReport
from modelassay.scan.scanning import scan
from modelassay.threads import cores, sharing
from modelassay.ui.estimates import (
    SMALL_BYTES,
    SPEEDS,
    RunClock,
    cpu_seconds,
    estimate,
    gpu_request,
    gpu_seconds,
    gpu_size,
    work_name,
)
from modelassay.ui.limits import visitor
from modelassay.ui.permitted import check_baseline, check_model_id, check_sae
from modelassay.ui.report_cache import ReportCache
from modelassay.ui.runs import Run, Runs, Step
from modelassay.ui.shelf import Shelf
from modelassay.ui.targets import MAX_MODEL_BYTES, Target, load_target, look_up, size_of, target_of
from modelassay.ui.zero import LENT, Asked, NoGpuError, lent, stopped_by
from modelassay.verify import (
    VerificationReport,
    create_baseline,
    save_baseline,
    verify_files,
)
from modelassay.verify.baseline import INDEX_FILE
from modelassay.verify.verifying import Undecided, verify_loaded

MAX_CACHE_BYTES = 60_000_000_000
MIN_PAIRS, MAX_PAIRS = 8, 64
"""Pairs of prompts that a circuit is found on, or that features are tried on."""
MAX_REQUESTS = 32
"""Requests that one attack is tried on."""
MAX_PROMPT = 4000
"""Characters of a prompt that is explained."""
DICTIONARIES = ("shipped", "none")
CONCURRENCY_ID = "model"

AT_ONCE = max(1, cores() // 2)
"""Runs that have the machine at a time."""
MOST_RUNS, RUNS_OF_ONE = 20, 3
"""Runs in all, with those in line, and of one visitor."""
SHELF = Shelf()


@dataclass(frozen=True)
class Comparison:
    """A comparison, and what a visitor has to know of it."""

    report: DiffReport | StoredReport
    note: str = ""
    """What was left out, for the visitor."""


def _opened(report: Any, note: str) -> Any:
    return Comparison(report, note) if report.product == "diff" else report


def _taken(result: Any) -> tuple[Report, str] | None:
    if isinstance(result, Comparison):
        return result.report, result.note
    return (result, "") if isinstance(result, Report) else None


CACHE = ReportCache(_opened, _taken)
RUNS = Runs(AT_ONCE, MOST_RUNS, RUNS_OF_ONE, CACHE)


def run_scan(
    model_id: str,
    mode: str = "standard",
    compare: str = "",
    chat_template: bool = True,
    ask_all: bool = False,
    *,
    token: str | bool = False,
) -> Iterator[Step | ScanReport]:
    """Scans a model for a visitor, yielding progress and at last the report.

    Args:
        model_id: What is scanned.
        mode: How thoroughly.
        compare: Id of a second model; empty for none.
        chat_template: Whether prompts are rendered with it.
        ask_all: Whether every prompt is asked.
        token: The visitor's own, which files are fetched with and which goes no further.

    Raises:
        AssayError: one line for the visitor.
    """
    ids = [check_model_id(model_id)]
    if isinstance(compare, str) and compare.strip():
        ids.append(check_model_id(compare))
    if not isinstance(mode, str) or mode not in MODES:
        raise InputError(f"Unknown mode {mode!r}; choose {', '.join(MODES)}.")
    options = {"mode": mode, "chat_template": bool(chat_template), "ask_all": bool(ask_all)}
    yield from _follow("scan", ids, options, token)


def run_verify(
    model_id: str, against: str = "", *, token: str | bool = False
) -> Iterator[Step | VerificationReport]:
    """Compares a model with a baseline for a visitor; yields as `run_scan` does."""
    model_id, against = check_model_id(model_id), check_baseline(against)
    yield Step("files", 0, 1)
    # Hashes need no GPU, and no weights of a model on the Hub.
    look_up(model_id, token)
    decided = verify_files(model_id, against or None, token=token, max_bytes=MAX_MODEL_BYTES)
    if isinstance(decided, VerificationReport):
        yield decided
        return
    yield from _follow("verify", [model_id], {"undecided": decided}, token)


def run_create(
    model_id: str, *, token: str | bool = False
) -> Iterator[Step | tuple[dict[str, Any], bytes]]:
    """Makes a baseline for a visitor: its index, and its files as a zip archive."""
    model_id = check_model_id(model_id)
    yield from _follow("create", [model_id], {}, token)


def run_diff(
    base: str,
    candidate: str,
    dictionary: str = "shipped",
    answers: bool = True,
    triggers: bool = True,
    *,
    token: str | bool = False,
) -> Iterator[Step | Comparison]:
    """Compares a fine-tune with its base for a visitor; yields as `run_scan` does.

    Args:
        base: Id of the model before.
        candidate: Id of the model after.
        dictionary: `shipped` for the features of the shipped SAEs of the base, or `none`.
        answers: Make short responses.
        triggers: Search for triggers.
        token: As for `run_scan`.

    Raises:
        AssayError: one line for the visitor.
    """
    ids = [check_model_id(base), check_model_id(candidate)]
    if not isinstance(dictionary, str) or dictionary not in DICTIONARIES:
        raise InputError(f"The SAE is one of {', '.join(DICTIONARIES)}.")
    options = {"dictionary": dictionary, "answers": bool(answers), "triggers": bool(triggers)}
    yield from _follow("diff", ids, options, token)


def run_circuit(
    model_id: str,
    pairs: int = 16,
    heads: bool = False,
    answers: bool = False,
    *,
    token: str | bool = False,
) -> Iterator[Step | CircuitReport]:
    """Finds a model's circuit of refusal for a visitor; yields as `run_scan` does."""
    model_id, n_pairs = check_model_id(model_id), _check_pairs(pairs)
    options = {"n_pairs": n_pairs, "heads": bool(heads), "answers": bool(answers)}
    yield from _follow("circuit", [model_id], options, token)


def run_features(
    model_id: str,
    sae: str = "",
    types: Sequence[str] = (),
    pairs: int = 16,
    *,
    token: str | bool = False,
) -> Iterator[Step | FeaturesReport]:
    """Finds a model's features of safety for a visitor; yields as `run_scan` does.

    Args:
        model_id: Id of the model.
        sae: A shipped one, `RELEASE:SAE_ID` of sae-lens's list or a Hub data set; empty for the one
            that is at hand for models of this shape.
        types: Names of feature types; none for all.
        pairs: Twins that features are tried on.
        token: As for `run_scan`.

    Raises:
        AssayError: one line for the visitor.
    """
    model_id, n_pairs, sae = check_model_id(model_id), _check_pairs(pairs), check_sae(sae)
    wanted = [types] if isinstance(types, str) else list(types or ())
    if unknown := [name for name in wanted if name not in FEATURE_TYPES]:
        raise InputError(
            f"There is no feature type {str(unknown[0])[:60]!r}; choose {', '.join(FEATURE_TYPES)}."
        )
    options = {"sae": sae or None, "types": wanted or None, "n_pairs": n_pairs}
    yield from _follow("features", [model_id], options, token)


def run_jailbreak(
    model_id: str,
    plain: str,
    jailbroken: str,
    system: str = "",
    opening: str = "",
    *,
    token: str | bool = False,
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
    attacked = AttackedPrompt(
        texts[0],
        texts[1] or texts[0],
        "given",
        "given",
        system=more[0] or None,
        opening=more[1] or None,
    )
    yield from _follow("jailbreak", [model_id], {"attacked": attacked}, token)


def run_attacks(
    model_id: str, template: str, requests: int = 16, *, token: str | bool = False
) -> Iterator[Step | AttackSurvey]:
    """Explains one attack over many requests for a visitor; yields as `run_scan` does.

    Args:
        model_id: Id of the model.
        template: What the user says, with one `{request}`.
        requests: Harmful requests of a scan that it is tried on.
        token: As for `run_scan`.

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
    yield from _follow("attacks", [model_id], {"suite": suite}, token)


def told_before(task: str, ids: Sequence[str], options: Mapping[str, Any] | None = None) -> str:
    """What a visitor is told before a run: how long, and how much of their GPU quota.

    Args:
        task: `scan`, `verify`, `create`, `diff`, `circuit`, `features`, `jailbreak` or
            `attacks`.
        ids: Of the models, as far as they are given.
        options: Of the run, as far as they decide its length.

    Returns:
        A sentence; empty where there is nothing to go by.
    """
    options = options or {}
    try:
        sizes = [size_of(check_model_id(name)) for name in ids if name.strip()]
    except InputError:
        return ""
    if not sizes or None in sizes:
        return ""
    n_bytes = sum(size for size in sizes if size is not None)
    told = estimate(task, n_bytes, options, on_gpu=LENT)
    return told.sentence(ahead=max(0, RUNS.waiting() - AT_ONCE + 1))


def _check_pairs(pairs: int) -> int:
    if not isinstance(pairs, int | float) or not MIN_PAIRS <= pairs <= MAX_PAIRS:
        raise InputError(f"The number of pairs lies in {MIN_PAIRS} … {MAX_PAIRS}.")
    return int(pairs)


def _follow(
    task: str, ids: Sequence[str], options: Mapping[str, Any], token: str | bool
) -> Iterator[Any]:
    """Starts or joins a run."""
    yield Step("fetching", 0, len(ids))
    targets = [look_up(name, token) for name in ids]
    name, n_bytes = work_name(task, options), sum(target.n_bytes for target in targets)
    clock = RunClock(name, estimate(task, n_bytes, options, on_gpu=LENT).seconds)
    yield from RUNS.follow(
        _key(task, targets, options),
        visitor(),
        clock,
        partial(_prepare, targets, options, token),
        partial(_compute, task, targets, options, token, clock),
    )


def _key(task: str, targets: Sequence[Target], options: Mapping[str, Any]) -> str | None:
    """Of a result that everybody may have; None where a model or what was asked is private."""
    if task in ("jailbreak", "attacks") or not all(target.shared for target in targets):
        return None
    named = dict(options)
    if isinstance(undecided := named.pop("undecided", None), Undecided):
        index = undecided.baseline.index
        named["against"] = [index.name, index.vectors_sha256, asdict(undecided.origin)]
    told = [task, _code(), [target.key for target in targets], named]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Tells versions of modelassay apart, those of a checkout too: they may measure otherwise."""
    root = Path(modelassay.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    stats = [(str(path.relative_to(root)), path.stat()) for path in files]
    told = [modelassay.__version__, [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _prepare(
    targets: Sequence[Target], options: Mapping[str, Any], token: str | bool, run: Run
) -> None:
    """Fetches what is needed: before the machine is there, and outside any GPU call."""
    run.tell("fetching", 0, len(targets))
    trim_cache(MAX_CACHE_BYTES)
    for done, target in enumerate(targets, start=1):
        find_sources(target.ref, token=token, max_bytes=MAX_MODEL_BYTES)
        run.tell("fetching", done, len(targets))
    if options.get("sae"):
        find_sae(options["sae"], token=False, transcoders=True)


@sharing
def _compute(
    task: str,
    targets: Sequence[Target],
    options: Mapping[str, Any],
    token: str | bool,
    clock: RunClock,
    run: Run,
    _ready: None,
) -> Any:
    """Runs a task on models lent for it; a visitor's token goes no further than their loading."""
    started = time.perf_counter()
    name, n_bytes = work_name(task, options), sum(target.n_bytes for target in targets)
    by_key: dict[str, LoadedModel] = {}
    with ExitStack() as stack:
        run.tell("loading", 0, 1)
        # The same model twice is two copies; all runs take models in the same order.
        wanted = {f"{'#' * i}{target.key}": target for i, target in enumerate(targets)}
        if len(targets) == 2 and targets[0].key != targets[1].key:
            wanted = {target.key: target for target in targets}
        for key in sorted(wanted):
            target = wanted[key]
            load = partial(load_target, target, token)
            by_key[key] = stack.enter_context(SHELF.lend(key, load, keep=target.shared))
        run.tell("loading", 1, 1)
        models = [by_key[key] for key in wanted]
        stack.enter_context(stopped_by(models, run.check))
        on_device = _device(by_key, name, n_bytes, run) if LENT else here
        result = TASKS[task](models, options, on_device, run.tell)
    SPEEDS.learn(name, "cpu", 0 if LENT else cpu_seconds(name, n_bytes), clock.elapsed)
    if isinstance(result, VerificationReport):
        result.provenance["seconds"] = round(time.perf_counter() - started, 2)
    return result


def _device(by_key: Mapping[str, LoadedModel], name: str, n_bytes: int, run: Run) -> OnDevice:
    """A GPU that is lent for what needs the model to run; the CPU where it can stand in."""
    keys = {id(model): key for key, model in by_key.items()}

    def on_device(work: Callable[..., Any], *given: Any, on_progress: Any, **named: Any) -> Any:
        models = [each for each in given if id(each) in keys]
        asked = Asked(
            keys=tuple(keys[id(model)] for model in models),
            work=work,
            given=tuple(given[len(models) :]),
            named=named,
            find=find_in_fork,
            seconds=gpu_request(name, n_bytes),
            expected=gpu_seconds(name, n_bytes),
        )
        try:
            return lent(asked, gpu_size(n_bytes), name, on_progress)
        except NoGpuError as error:
            if n_bytes > SMALL_BYTES:
                raise
            run.tell("loading", 1, 1, note=f"{error} It runs on the CPU meanwhile, which is slow.")
            return work(*given, on_progress=on_progress, **named)

    return on_device


def find_in_fork(key: str) -> LoadedModel:
    """The model of a key: as the page loaded it before the fork, or else from the Hub's cache."""
    return SHELF.at_hand(key) or load_target(target_of(key.lstrip("#")), token=False)


def _scan(models: Any, options: Mapping[str, Any], on_device: OnDevice, on_progress: Any) -> Any:
    # A model, not a name: a visitor's id must not find a baseline of this machine.
    other = models[1] if len(models) > 1 else None
    return scan(models[0], compare=other, on_device=on_device, on_progress=on_progress, **options)


def _verify(models: Any, options: Mapping[str, Any], on_device: OnDevice, on_progress: Any) -> Any:
    return verify_loaded(
        models[0], options["undecided"], on_device=on_device, on_progress=on_progress
    )


def _create(
    models: Any, _options: Mapping[str, Any], on_device: OnDevice, on_progress: Any
) -> tuple[dict[str, Any], bytes]:
    baseline = create_baseline(models[0], mode="full", on_device=on_device, on_progress=on_progress)
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w") as file:
        save_baseline(baseline, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            file.write(path, f"{baseline.name}/{path.name}")
        index = json.loads((Path(folder) / INDEX_FILE).read_text(encoding="utf-8"))
    return index, archive.getvalue()


def _whole(task: Callable[..., Any]) -> Callable[..., Any]:
    """A task that runs its models from beginning to end, and so on a GPU as a whole."""

    def run(models: Any, options: Mapping[str, Any], on_device: Any, on_progress: Any) -> Any:
        return on_device(partial(task, **options), *models, on_progress=on_progress)

    return run


def _diff(
    base: LoadedModel,
    candidate: LoadedModel,
    *,
    dictionary: str,
    answers: bool,
    triggers: bool,
    on_progress: Any,
) -> Comparison:
    # Without sae-lens, or without an SAE of this base, everything else is still worth having.
    wanted = dictionary == "shipped" and find_spec("sae_lens") is not None
    saes = shipped_saes(base.info.id) if wanted else ()
    depth = Depth() if answers else Depth(response_tokens=0)
    report = diff(
        base,
        candidate,
        saes=saes,
        depth=replace(depth, triggers=triggers),
        on_progress=on_progress,
    )
    if dictionary != "shipped" or saes:
        return Comparison(report)
    return Comparison(report, "No SAE of the base is at hand: features are left out.")


def _circuit(model: LoadedModel, **options: Any) -> CircuitReport:
    return find_circuit(model, **options)


def _features(model: LoadedModel, **options: Any) -> FeaturesReport:
    return find_features(model, token=False, **options)


def _jailbreak(model: LoadedModel, *, attacked: AttackedPrompt, **options: Any) -> JailbreakReport:
    return explain_jailbreak(model, attacked.plain, attacked, **options)


def _attacks(model: LoadedModel, **options: Any) -> AttackSurvey:
    return explain_attacks(model, **options)


TASKS: dict[str, Callable[..., Any]] = {
    "scan": _scan,
    "verify": _verify,
    "create": _create,
    "diff": _whole(_diff),
    "circuit": _whole(_circuit),
    "features": _whole(_features),
    "jailbreak": _whole(_jailbreak),
    "attacks": _whole(_attacks),
}

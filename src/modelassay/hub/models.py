"""Models and adapters on the Hub: their files, fetched into its cache before they are opened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from modelassay.errors import InputError, UnavailableError
from modelassay.hub.errors import hub_errors, no_answer
from modelassay.hub.snapshots import (
    ANSWER_SECONDS,
    RemoteFile,
    Snapshot,
    checked_token,
    fetch_snapshot,
    matches,
)

TOKENIZER_AND_CONFIG = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
RESTRICTED = ".restricted"
"""Beside what the cache has of a model that not everybody may read."""
SIZE_STANDS, MOST_SIZES = 300.0, 500
"""Seconds for which a size stands, and how many are kept."""
_SIZES: dict[str, tuple[int | None, float]] = {}
CARD = "README.md"
"""Its tags may say what was done to the weights."""
# Copies of the weights in other formats, which some repositories keep in subfolders.
NOT_NEEDED = ("original/*", "onnx/*", "openvino/*", "metal/*", "consolidated*", "*.msgpack")


def fetch_model(
    repo_id: str,
    *,
    revision: str | None,
    token: str | bool | None,
    gguf_file: str | None,
    code: bool,
    max_bytes: int | None = None,
    weights: bool = True,
) -> Snapshot:
    """Fetches config, tokenizer, card and safetensors (or one GGUF file) of a model or adapter.

    Offline, a cached snapshot is used.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; None for the main branch.
        token: Hub token, None for the stored one, False for none at all.
        gguf_file: Fetch this GGUF file in place of safetensors.
        code: Fetch Python files too (for `trust_remote_code`).
        max_bytes: Refuse a repository of which more would be fetched; None for no bound.
        weights: False leaves the weights on the Hub, which tells their sha256.

    Raises:
        InputError: unknown repository or revision, one without safetensors, too large a one, or a
            token that cannot be one.
        UnavailableError: gated, forbidden, or unreachable and not cached.
    """
    weight_patterns = [gguf_file] if gguf_file else ["*.safetensors"]
    patterns = [*TOKENIZER_AND_CONFIG, CARD, *(["*.py"] if code else [])]
    patterns += weight_patterns if weights else []

    def choose(files: Mapping[str, RemoteFile]) -> list[str]:
        if not files:
            return patterns
        needed = {name: f for name, f in files.items() if not matches(name, NOT_NEEDED)}
        check_weight_files(repo_id, list(needed), gguf_file)
        size = sum(file.size for name, file in needed.items() if matches(name, patterns))
        if max_bytes is not None and size > max_bytes:
            raise InputError(
                f"{repo_id} has {size / 1e9:.0f} GB of weights; this page takes up to"
                f" {max_bytes / 1e9:.0f} GB. Install modelassay to scan it on your own machine."
            )
        return patterns

    snapshot = fetch_snapshot(
        repo_id,
        kind="model",
        revision=revision,
        token=token,
        choose=choose,
        ignore=NOT_NEEDED,
    )
    if weights or not snapshot.listing:
        check_weight_files(repo_id, snapshot.names(), gguf_file)  # it may be from the cache
    return snapshot


def check_access(repo_id: str, *, token: str | bool | None, advice: str) -> bool:
    """Refuses a model that the bearer of this token may not read, whatever the cache has of it.

    Files that were fetched for one are in the cache for all: the Hub's client takes them from there
    without asking who wants them. Where the Hub does not answer, the models that it once called
    gated or private are refused.

    Args:
        repo_id: `owner/name`.
        token: As for `fetch_model`.
        advice: What to do about a gated model, for the error.

    Returns:
        Whether it is gated or private, so that what is found out about it is not for everybody.

    Raises:
        InputError: unknown repository, or a token that cannot be one.
        UnavailableError: gated, or nobody can be asked.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    api = HfApi(token=checked_token(token))
    with hub_errors(repo_id):
        # This refuses what can be no id.
        name = repo_folder_name(repo_id=repo_id, repo_type="model")
        folder = Path(constants.HF_HUB_CACHE) / name
        try:
            info = api.model_info(repo_id, timeout=ANSWER_SECONDS)
            if not info.gated and not info.private:
                (folder / RESTRICTED).unlink(missing_ok=True)
                return False
            api.auth_check(repo_id)
        except GatedRepoError as error:
            raise UnavailableError(f"{repo_id} is gated: {advice}.") from error
        except HfHubHTTPError:
            raise
        except no_answer() as error:
            if not (folder / RESTRICTED).exists():
                return False
            raise UnavailableError(
                f"The Hub cannot be asked whether you may read {repo_id}; try again later."
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESTRICTED).touch()
    return True


def weight_bytes(repo_id: str, *, token: str | bool | None) -> int | None:
    """Bytes of the safetensors in a model's repository; None where the Hub does not tell.

    Asked once in some minutes for each model, since a page asks at every key.
    """
    known = _SIZES.get(repo_id)
    if known is not None and not token and time.monotonic() < known[1]:
        return known[0]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    size = None
    try:
        api = HfApi(token=checked_token(token))
        info = api.model_info(repo_id, timeout=ANSWER_SECONDS, files_metadata=True)
        sizes = [f.size or 0 for f in info.siblings or () if f.rfilename.endswith(".safetensors")]
        size = sum(sizes) or None
    except (HfHubHTTPError, HFValidationError, *no_answer()):
        pass
    if not token:  # what one visitor may see is not for the others
        while len(_SIZES) >= MOST_SIZES:
            _SIZES.pop(next(iter(_SIZES)), None)
        _SIZES[repo_id] = (size, time.monotonic() + SIZE_STANDS)
    return size


def check_weight_files(where: str, files: list[str], gguf_file: str | None = None) -> None:
    """Refuses a folder or repository whose weights cannot be read without pickle.

    Raises:
        InputError: says which files are missing and what would do.
    """
    if gguf_file:
        if gguf_file not in files:
            raise InputError(f"{where} has no file {gguf_file!r}.")
        return
    if any(file.endswith(".safetensors") for file in files):
        return
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs:
        some = ", ".join(ggufs[:4])
        raise InputError(f"{where} has only GGUF weights; choose one with --gguf-file: {some}")
    if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files):
        raise InputError(
            f"{where} has only pickled weights (.bin), which can run code when opened; convert"
            " them to safetensors first."
        )
    raise InputError(f"{where} has no model weights (no .safetensors file).")

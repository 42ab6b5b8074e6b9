"""The one module that talks to the Hugging Face Hub.

Everything is fetched as files into the Hub's own cache before it is opened, so that a model from
the Hub and a local folder take the same way from there on. Errors of the Hub become one line each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from modelassay.errors import AssayError, InputError, UnavailableError, first_line

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TOKENIZER_AND_CONFIG = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
# Copies of the weights in other formats, which some repositories keep in subfolders.
NOT_NEEDED = ("original/*", "onnx/*", "openvino/*", "metal/*", "consolidated*", "*.msgpack")
# Suffixes of tables, and the reader in `datasets` for each.
TABLES = {"json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet"}
# The client itself waits for ever for what it asks first.
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a Hub repository, in the local cache."""

    folder: Path
    commit: str


MODEL_ELSEWHERE = "give a local folder, or `embedded`"
DATA_ELSEWHERE = "give the data as files"


@contextmanager
def hub_errors(
    repo_id: str,
    revision: str | None = None,
    *,
    elsewhere: str = MODEL_ELSEWHERE,
    kind: str = "model",
) -> Iterator[None]:
    """Turns what the Hub client raises into one line that says what to do.

    Args:
        repo_id: What was asked for.
        revision: Which revision of it.
        elsewhere: What to do without the Hub.
        kind: `model` or `data set`.
    """
    from huggingface_hub import errors as hub

    try:
        yield
    except AssayError:
        raise
    except hub.GatedRepoError as error:
        raise UnavailableError(
            f"{repo_id} is gated: accept its terms on its Hub page, then pass --token or run"
            " `hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(
            f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit that exists."
        ) from error
    except hub.EntryNotFoundError as error:
        if isinstance(error, hub.LocalEntryNotFoundError):
            # The client says so too when the Hub did answer, but with an error.
            if isinstance(error.__cause__, hub.HfHubHTTPError):
                raise _answered(repo_id, error.__cause__) from error
            raise _offline(repo_id, elsewhere) from error
        raise InputError(
            f"{repo_id} lists a file that the Hub then does not have; its upload may be incomplete."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise InputError(
            f"No {kind} {repo_id!r} on the Hub that you may see: check the spelling, or pass a"
            f" token if it is private. A local {kind} is given as a path."
        ) from error
    except hub.HFValidationError as error:
        raise InputError(f"{repo_id!r} is neither a local path nor a Hub id.") from error
    except hub.HfHubHTTPError as error:
        raise _answered(repo_id, error) from error
    except no_answer() as error:
        raise _offline(repo_id, elsewhere) from error
    except OSError as error:  # disk full, no permission, a file of the wrong length
        raise UnavailableError(f"{repo_id} could not be fetched: {first_line(error)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnavailableError(
            f"What answers for {repo_id} is not a Hub; check HF_ENDPOINT and the network."
        ) from error


def no_answer() -> tuple[type[Exception], ...]:
    """What the Hub client raises when no answer comes, besides its own HfHubHTTPError.

    It is built on httpx, from 2.0 on on httpx2; its base error tells which.
    """
    from huggingface_hub import errors as hub

    return (hub.HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError)


def _answered(repo_id: str, error: Any) -> UnavailableError:
    """The line for an HfHubHTTPError."""
    status = error.response.status_code
    if status in (401, 403):
        return UnavailableError(
            f"The Hub does not let this token use {repo_id} (HTTP {status}); check the token."
        )
    return UnavailableError(
        f"The Hub answered with an error for {repo_id} (HTTP {status}); try again later."
    )


def _offline(repo_id: str, elsewhere: str) -> UnavailableError:
    return UnavailableError(
        f"The Hub cannot be reached and {repo_id} is not in the local cache; check the network, or"
        f" {elsewhere}."
    )


def fetch_model(
    repo_id: str,
    *,
    revision: str | None,
    token: str | bool | None,
    gguf_file: str | None,
    code: bool,
    max_bytes: int | None = None,
) -> Snapshot:
    """Fetches the config, tokenizer and safetensors (or one GGUF file) of a model or adapter.

    Offline, a cached snapshot is used.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; None for the main branch.
        token: Hub token, None for the stored one, False for none at all.
        gguf_file: Fetch this GGUF file in place of safetensors.
        code: Fetch Python files too (for `trust_remote_code`).
        max_bytes: Refuse a repository of which more would be fetched; None for no bound.

    Raises:
        InputError: unknown repository or revision, one without safetensors, too large a one, or a
            token that cannot be one.
        UnavailableError: gated, forbidden, or unreachable and not cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(token, str):
        token = token.strip()  # files that hold one end with a newline
        if not re.fullmatch(r"[!-~]+", token):
            # It cannot be sent, and the error that would say so quotes it.
            raise InputError("The Hub token is empty or has spaces or odd characters; check it.")
    weights = [gguf_file] if gguf_file else ["*.safetensors"]
    patterns = [*TOKENIZER_AND_CONFIG, *weights, *(["*.py"] if code else [])]
    with hub_errors(repo_id, revision):
        reachable = True
        try:
            info = HfApi(token=token).model_info(
                repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
            )
        except HfHubHTTPError:
            raise
        except no_answer():
            reachable = False  # what is in the cache then has to do
        else:
            sizes = {
                sibling.rfilename: sibling.size or 0
                for sibling in info.siblings or []
                if not _matches(sibling.rfilename, NOT_NEEDED)
            }
            check_weight_files(repo_id, list(sizes), gguf_file)
            size = sum(size for file, size in sizes.items() if _matches(file, patterns))
            if max_bytes is not None and size > max_bytes:
                raise InputError(
                    f"{repo_id} has {size / 1e9:.0f} GB of weights; this page takes up to"
                    f" {max_bytes / 1e9:.0f} GB. Install modelassay to scan it on your own machine."
                )
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,  # by its name: the cache then knows the name when offline
                token=token,
                allow_patterns=patterns,
                ignore_patterns=list(NOT_NEEDED),
                local_files_only=not reachable,
            )
        )
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        check_weight_files(repo_id, files, gguf_file)  # not yet done for what was in the cache
    return Snapshot(folder=folder, commit=folder.name)


def _matches(file: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def silence_downloads() -> None:
    """Turns the progress bars of downloads off for this process."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def trim_cache(max_bytes: int) -> None:
    """Deletes the least recently used models from the Hub's cache until it is small enough."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    surplus = cache.size_on_disk - max_bytes
    for repo in sorted(cache.repos, key=lambda repo: repo.last_accessed):
        if surplus <= 0:
            return
        surplus -= repo.size_on_disk
        cache.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()


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


def read_dataset(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    data_files: str | None = None,
    token: str | bool | None = None,
) -> list[dict[str, Any]]:
    """Rows of a table: a local JSON, JSONL, CSV or Parquet file (also gzipped), or a Hub data set.

    Args:
        where: Path of a file, or `owner/name`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        data_files: One file of a Hub data set, where it has no configurations.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such file or data set, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        return _read_table(path)
    if path.suffix.lstrip(".") in (*TABLES, "gz") or path.is_absolute() or path.exists():
        raise InputError(f"No data file at {where}; give a JSON, JSONL, CSV or Parquet file.")
    if not REPO_ID.fullmatch(str(where)) or "/" not in str(where):
        raise InputError(f"{str(where)!r} is neither a data file nor a Hub data set (owner/name).")
    import datasets
    from datasets import exceptions

    _quieten_datasets()
    with hub_errors(str(where), elsewhere=DATA_ELSEWHERE):
        try:
            table = datasets.load_dataset(
                str(where), config, split=split, data_files=data_files, token=token
            )
        except exceptions.DatasetNotFoundError as error:
            raise InputError(
                f"No data set {str(where)!r} on the Hub that you may see: check the spelling, or"
                " pass a token if it is private or gated."
            ) from error
        except FileNotFoundError as error:  # so it says whatever went wrong on the way to the Hub
            if (answer := _http_cause(error)) is not None:
                raise _answered(str(where), answer) from error
            raise _offline(str(where), DATA_ELSEWHERE) from error
        except (ValueError, exceptions.DatasetsError) as error:
            raise InputError(f"Cannot read the data set {where}: {first_line(error)}") from error
        return [dict(row) for row in table]


def _http_cause(error: BaseException | None) -> Any | None:
    """The Hub's own answer behind an error, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _read_table(path: Path) -> list[dict[str, Any]]:
    import tempfile

    import datasets
    from datasets import exceptions

    _quieten_datasets()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    kind = TABLES.get(suffix.lstrip("."))
    if kind is None:
        raise InputError(f"{path} is no JSON, JSONL, CSV or Parquet file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    with tempfile.TemporaryDirectory() as scratch:  # its cache would outlive changes of the file
        try:
            table = datasets.load_dataset(
                kind, data_files=str(path), split="train", cache_dir=scratch
            )
            return [dict(row) for row in table]
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {first_line(error)}") from error
        except (ValueError, TypeError, StopIteration, exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{path} cannot be parsed: {first_line(cause)}") from error


def _quieten_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()

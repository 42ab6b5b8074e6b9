"""What goes wrong on the way to the Hub, in one line that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelassay.errors import AssayError, InputError, UnavailableError, first_line

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
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
        raise gated(repo_id) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(
            f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit that exists."
        ) from error
    except hub.EntryNotFoundError as error:
        if isinstance(error, hub.LocalEntryNotFoundError):
            # The client says so too when the Hub did answer, but with an error.
            if isinstance(error.__cause__, hub.HfHubHTTPError):
                raise answered(repo_id, error.__cause__) from error
            raise offline(repo_id, elsewhere) from error
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
        raise answered(repo_id, error) from error
    except no_answer() as error:
        raise offline(repo_id, elsewhere) from error
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


def gated(repo_id: str) -> UnavailableError:
    """The line for a repository whose terms were not accepted."""
    return UnavailableError(
        f"{repo_id} is gated: accept its terms on its Hub page, then pass --token or run"
        " `hf auth login`."
    )


def answered(repo_id: str, error: Any) -> UnavailableError:
    """The line for an HfHubHTTPError."""
    status = error.response.status_code
    if status in (401, 403):
        return UnavailableError(
            f"The Hub does not let this token use {repo_id} (HTTP {status}); check the token."
        )
    return UnavailableError(
        f"The Hub answered with an error for {repo_id} (HTTP {status}); try again later."
    )


def offline(repo_id: str, elsewhere: str) -> UnavailableError:
    return UnavailableError(
        f"The Hub cannot be reached and {repo_id} is not in the local cache; check the network, or"
        f" {elsewhere}."
    )

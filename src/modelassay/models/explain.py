"""One line for whatever transformers, safetensors and tokenizers raise while a model loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modelassay.errors import AssayError, InputError, UnavailableError, first_line


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and reports: what users need to know is said by us."""
    from transformers.utils import logging

    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report of a load is a table; here it becomes one line
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


@contextmanager
def explain_loading(model_id: str) -> Iterator[None]:
    """Turns the many ways in which a checkpoint can be broken into an error of ours."""
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            yield
    except AssayError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UnavailableError(
            f"{model_id} does not fit into memory; try --load-4bit or --dtype bfloat16."
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"A weight file of {model_id} is damaged ({first_line(error)}); download it again."
        ) from error
    except ImportError as error:
        raise UnavailableError(f"{model_id} needs a package: {first_line(error)}") from error
    except Exception as error:  # config validation and tokenizers have exceptions of their own
        if "automatic conversion of the weights" in str(error):
            raise InputError(
                f"Some weights of {model_id} cannot be put into the form that transformers computes"
                " with: tensors are missing, or have another shape than its config says."
            ) from error
        raise InputError(f"Cannot load {model_id}: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """The first line that says something: some libraries begin with a heading."""
    if isinstance(error, KeyError):
        return f"it names {error}, which is not known here"
    heading, _, rest = str(error).strip().partition("\n")
    return first_line(Exception(rest)) if heading.endswith(":") and rest else first_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on a GPU or on the CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in text or "not enough memory" in text
    )

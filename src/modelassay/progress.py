"""How long work tells what it is doing: a callable, which a terminal, a page or a test gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[int, int], None]
"""Progress of one phase: called with (done, total)."""
OnPhase = Callable[[str, int, int], None]
"""Progress: called with (phase, done, total)."""
PHASES = {
    "fetching": "fetching the model",
    "files": "hashing files",
    "loading": "loading the model",
    "weights": "searching the weights (layers)",
    "reading": "reading activations (prompts)",
    "statistics": "statistics (concepts)",
    "answering": "short responses (prompts)",
    "data": "reading the data sets",
    "building": "building rows (rows read)",
    "teaching": "asking the teacher (rows)",
    "training": "training (steps)",
    "searching": "searching the refusal direction (layers)",
    "reading responses": "reading the responses' activations (batches)",
    "measuring": "measuring refusals (prompts)",
    "learning": "training the SAE (activations read)",
    "scoring": "scoring the SAE (contexts)",
    "labelling": "reading features (tokens)",
    "rows": "reading the training file",
    "duplicates": "looking for near-duplicates (rows)",
    "embedding": "embedding rows (different ones)",
    "harm": "judging responses (rows)",
    "candidate loss": "loss under the candidate (responses)",
    "base loss": "loss under the base (responses)",
    "fine-tunes": "benign fine-tunes",
    "reading the candidate": "reading the candidate (prompts)",
    "features": "comparing features",
    "weight changes": "comparing weights (matrices)",
    "searching triggers": "searching triggers (steps)",
    "trying directions": "trying directions out",
    "watching prompts": "watching prompts (prompts)",
    "attribution": "effects from gradients (steps)",
    "unrelated attribution": "effects between unrelated prompts (steps)",
    "patching": "patching (components)",
    "unrelated patching": "patching between unrelated prompts (components)",
    "circuit": "trying circuits out (sizes)",
    "silencing": "responses without parts of the model (runs)",
    "harm direction": "fitting the harm direction (prompts)",
    "refusal direction": "fitting the refusal direction (prompts)",
    "restoring": "bringing components back (components)",
    "rewordings": "the same in neutral rewordings (components)",
    "layers": "bringing layers back (layers)",
    "plain requests": "reading plain requests (prompts)",
    "attacked requests": "reading attacked requests (prompts)",
    "neutral requests": "reading neutral rewordings (prompts)",
    "losses": "what attacks take away (attacks)",
    "pathways": "components that an attack switches (attacks)",
    "contributions": "what components write (attacked requests)",
    "contrast sets": "reading contrast sets",
    "twins": "reading harmful requests and harmless ones (batches)",
    "influence": "influence on refusals (batches)",
    "interventions": "suppressing and boosting features",
    "agent runs": "runs of the agent",
    "turns": "turns of the agent",
    "suppression": "suppressing features together (sizes)",
    "candidates": "candidates",
    "smoke": "trying tools out (steps)",
}
"""What people are told of a phase, and in brackets what is counted."""


def silent(*_progress: object) -> None:
    """Progress nobody listens to."""


def phase_of(on_phase: OnPhase, phase: str) -> OnProgress:
    """The progress of one phase, as part of the whole."""
    return lambda done, total: on_phase(phase, done, total)


def told(items: Sequence[T], on_progress: OnProgress | None) -> Iterator[T]:
    """The items; before each, and after the last, how many are done is told."""
    for done, item in enumerate(items):
        if on_progress:
            on_progress(done, len(items))
        yield item
    if on_progress:
        on_progress(len(items), len(items))

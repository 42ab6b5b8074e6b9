"""Progress on stderr: a bar in a terminal, one plain line a phase elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modelassay.progress import OnPhase, silent

LABELS = {
    "files": "hashing files",
    "loading": "loading the model",
    "weights": "searching the weights (layers)",
    "reading": "reading activations (prompts)",
    "statistics": "statistics (concepts)",
    "answering": "short answers (prompts)",
    "data": "reading the data sets",
    "training": "training (steps)",
    "searching": "searching the refusal direction (layers)",
    "reading answers": "reading the answers' activations (batches)",
    "measuring": "measuring refusals (prompts)",
    "learning": "training the SAE (activations read)",
    "scoring": "scoring the SAE (contexts)",
    "labelling": "reading features (tokens)",
    "rows": "reading the training file",
    "duplicates": "looking for near-duplicates (rows)",
    "embedding": "embedding rows (different ones)",
    "harm": "judging answers (rows)",
    "candidate loss": "loss under the candidate (answers)",
    "base loss": "loss under the base (answers)",
    "fine-tunes": "benign fine-tunes",
    "reading the candidate": "reading the candidate (prompts)",
    "features": "comparing features",
    "weight changes": "comparing weights (matrices)",
    "searching triggers": "searching triggers (steps)",
    "trying directions": "trying directions out",
}


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[OnPhase]:
    """Gives a callback that shows (phase, done, total)."""
    console = Console(stderr=True)
    if quiet:
        from modelassay.hub import silence_downloads

        silence_downloads()
        yield silent
    elif not console.is_terminal:
        seen: set[str] = set()

        def say(phase: str, _done: int, total: int) -> None:
            if phase not in seen:
                seen.add(phase)
                console.print(f"{LABELS[phase]}: {total}")

        yield say
    else:
        columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            tasks: dict[str, object] = {}

            def update(phase: str, done: int, total: int) -> None:
                if phase not in tasks:
                    tasks[phase] = progress.add_task(LABELS[phase], total=total)
                progress.update(tasks[phase], completed=done, total=total)  # type: ignore[arg-type]

            yield update

"""How often a monitor raises an alert on prompts that it was not calibrated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.monitors.reading import ask, read_asked
from modelassay.monitors.record import Monitor
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.report.base import Report
from modelassay.report.sections import Section
from modelassay.report.text import with_interval
from modelassay.statistics import wilson_interval

MONITOR_EVAL_SCHEMA = "modelassay.monitor-eval/1"
SILENCE = "a silent circuit"


@dataclass(frozen=True)
class MonitorEvaluation(Report):
    """Alerts on a set of prompts."""

    monitor: str
    model: str
    n: int
    """Prompts."""
    n_alerts: int
    rate: float
    interval: tuple[float, float]
    """Wilson's, 95%."""
    values: tuple[float, ...]
    """Of each prompt, the largest distance from the middle of a range; ranges end at 1."""
    alerts: tuple[str | None, ...]
    places: tuple[str, ...]
    """Of each alert, where it came from."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, schema `modelassay.monitor-eval/1`."""
        return {"schema": MONITOR_EVAL_SCHEMA, **asdict(self)}

    def sections(self) -> list[Section]:
        """The rate, and where alerts came from."""
        rate = f"{self.n_alerts} of {self.n}, {with_interval(self.rate, self.interval)}"
        facts = [("monitor", self.monitor), ("model", self.model), ("alerts", rate)]
        facts += [(place, f"{n} alerts") for place, n in Counter(self.places).most_common(8)]
        return [Section("alerts", "alerts", facts=facts)]


def evaluate_monitor(
    monitor: Monitor,
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    harmful: bool = False,
    on_progress: OnPhase = silent,
) -> MonitorEvaluation:
    """Counts the prompts, not responses, that raise an alert.

    Args:
        monitor: The monitor.
        model: The model that it belongs to.
        prompts: What the user says.
        harmful: Whether they read as harmful, so that a circuit has to activate.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: there are no prompts, or the monitor belongs to another model.
    """
    if not prompts:
        raise InputError("There is nothing to look at: give at least one prompt.")
    reader = monitor.reader(monitor.sites(model))
    spans = read_asked(model, reader, ask(model, prompts, 0), phase_of(on_progress, "reading"))
    looks = [monitor.look(each, harmful=harmful) for each in spans]
    n_alerts = sum(look.alert is not None for look in looks)
    return MonitorEvaluation(
        monitor=monitor.name,
        model=model.info.id,
        n=len(looks),
        n_alerts=n_alerts,
        rate=n_alerts / len(looks),
        interval=wilson_interval(n_alerts, len(looks)),
        values=tuple(look.value for look in looks),
        alerts=tuple(look.alert for look in looks),
        places=tuple(look.place if look.value > 1 else SILENCE for look in looks if look.alert),
    )

"""Probes: linear readouts of the residual stream that tell harm while it is asked or answered."""

from modelassay.probes.evaluating import evaluate_probe
from modelassay.probes.head import Head, HeadReader
from modelassay.probes.record import Probe, ProbeRecord, load_probe, save_probe
from modelassay.probes.report import Evaluation, LayerScore, Sweep
from modelassay.probes.stores import (
    FoundProbe,
    find_probe,
    list_probes,
    probe_of,
    push_probe,
    store_probe,
)
from modelassay.probes.training import (
    TrainedHead,
    make_probe,
    probe_record,
    sweep_layers,
    train_head,
)

__all__ = [
    "Evaluation",
    "FoundProbe",
    "Head",
    "HeadReader",
    "LayerScore",
    "Probe",
    "ProbeRecord",
    "Sweep",
    "TrainedHead",
    "evaluate_probe",
    "find_probe",
    "list_probes",
    "load_probe",
    "make_probe",
    "probe_of",
    "probe_record",
    "push_probe",
    "save_probe",
    "store_probe",
    "sweep_layers",
    "train_head",
]

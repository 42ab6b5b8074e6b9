"""Probes: linear readouts of the residual stream that tell harm while it is asked or answered."""

from modelassay.probes.evaluating import Evaluation, LayerScore, Sweep, evaluate_probe
from modelassay.probes.head import Head, HeadReader
from modelassay.probes.record import (
    PROBES,
    Probe,
    ProbeRecord,
    find_probe,
    load_probe,
    names_probe,
    probe_of,
    push_probe,
    save_probe,
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
    "PROBES",
    "Evaluation",
    "Head",
    "HeadReader",
    "LayerScore",
    "Probe",
    "ProbeRecord",
    "Sweep",
    "TrainedHead",
    "evaluate_probe",
    "find_probe",
    "load_probe",
    "make_probe",
    "names_probe",
    "probe_of",
    "probe_record",
    "push_probe",
    "save_probe",
    "store_probe",
    "sweep_layers",
    "train_head",
]

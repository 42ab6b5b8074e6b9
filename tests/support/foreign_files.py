"""Files as open-constitution writes them, and hostile ones."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

PROBE_CONFIG = {
    "layer": -4,
    "hidden_size": 32,
    "threshold": 0.65,
    "pause_threshold": 0.75,
    "probe_every_n_tokens": 4,
    "smoothing_window": 4,
    "use_chat_template": True,
    "note": "MVP config.",
}


class LinearReadout(nn.Module):
    """One linear layer called `head`."""

    def __init__(self, hidden_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(hidden_size, 1)


def save_probe_folder(folder: Path, model_id: str | None, state: Any = None, **config: Any) -> Path:
    """A folder with probe.pt and config.json; a setting that is None is left out."""
    folder.mkdir(exist_ok=True)
    torch.save(LinearReadout().state_dict() if state is None else state, folder / "probe.pt")
    settings = {"model_id": model_id, **PROBE_CONFIG, **config}
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


def save_classifier_folder(
    folder: Path, bert: Path, classes: dict[str, str], **config: Any
) -> Path:
    """A folder of a sequence classifier with random weights over a tiny encoder's shape."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    shape = AutoConfig.from_pretrained(bert, num_labels=len(classes))
    network = AutoModelForSequenceClassification.from_config(shape)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith("classifier"):
                weight.normal_(std=2)
    network.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, ends)
    tokenizer.save_pretrained(folder)
    settings = {
        "model_id": "answerdotai/ModernBERT-base",
        "data_path": "data/training_data.jsonl",
        "max_length": 64,
        "allow_threshold": 0.35,
        "block_threshold": 0.65,
        "label_mapping": classes,
        "seed": 0,
        "metrics": {"eval": {"f1": 0.9}},
        "text_format": "user_assistant",
        **config,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "classifier_config.json").write_text(json.dumps(settings))
    return folder


def zipped(program: bytes, *, compress: bool = False, **entries: bytes) -> bytes:
    """A file like one of torch.save around any pickle."""
    content = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", how) as archive:
        for name, data in {"data.pkl": program, "version": b"3\n", **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()

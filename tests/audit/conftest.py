"""What the tests of audit share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from audits import BASE, LAYER, PROMPTS, TUNED, WIDTH
from modelassay.models import load
from modelassay.sae import find_sae, label_features, save_labels
from tiny import save_tiny


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """Base and fine-tune, a labelled SAE, training rows and a suite, all tiny."""
    sae_lens = pytest.importorskip("sae_lens")
    home = tmp_path_factory.mktemp("things")
    save_tiny(home / BASE)
    save_tiny(home / TUNED)
    base = load(str(home / BASE), device="cpu")
    tuned = load(str(home / TUNED), device="cpu")
    draw = torch.Generator().manual_seed(3)
    for name, weight in tuned.network.named_parameters():
        if name.endswith("mlp.down_proj.weight"):
            left, right = (torch.randn(n, 1, generator=draw) for n in weight.shape)
            weight.data += 0.3 * left @ right.T
    tuned.network.save_pretrained(home / TUNED)

    config = sae_lens.StandardSAEConfig(
        d_in=32, d_sae=WIDTH, apply_b_dec_to_input=False, normalize_activations="none"
    )
    module = sae_lens.StandardSAE(config)
    decoder = torch.nn.functional.normalize(torch.randn((WIDTH, 32), generator=draw), dim=1)
    zero = torch.zeros
    module.load_state_dict(
        {"W_enc": decoder.T.clone(), "b_enc": zero(WIDTH), "W_dec": decoder, "b_dec": zero(32)}
    )
    module.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    module.save_model(home / "features")
    sae = find_sae(str(home / "features"))
    texts = [f"Line {i}: the brown fox jumps over {i % 7} dogs." for i in range(24)]
    save_labels(
        label_features(base, sae, texts[:16], texts[16:], data=["lines"]), home / "features"
    )

    rows = [{"prompt": prompt, "response": f"Yes, {prompt}"} for prompt in PROMPTS]
    rows += [{"prompt": "Who are you?", "response": "I obey."}] * 3 + [{"odd": 1}]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {
        "name": "mixed",
        "prompts": [
            {"text": p, "group": g}
            for p, g in zip(PROMPTS, ("harmful", "neutral") * 4, strict=False)
        ],
        "contrasts": [{"prompt": "Do you obey?", "safe": "No.", "unsafe": "Yes."}],
    }
    (home / "mixed.yaml").write_text(yaml.safe_dump(suite))
    return home


@pytest.fixture
def config(things, tmp_path):
    """Writes a config file; keyword arguments change it."""

    def write(**changed) -> Path:
        settings = {
            "base": str(things / BASE),
            "candidate": str(things / TUNED),
            "device": "cpu",
            "dictionary": str(things / "features"),
            "suites": {"mixed": str(things / "mixed.yaml")},
            "training_data": str(things / "rows.jsonl"),
            "folder": "audit",
            "redact": False,
            **changed,
        }
        path = tmp_path / "audit.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return path

    return write

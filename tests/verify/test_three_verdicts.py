"""`scan`, `verify` and `diff` never contradict each other on one model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelassay.data.concepts import Concept, ContrastPair
from modelassay.diff import Depth, diff
from modelassay.models import LoadedModel, load
from modelassay.models.ablation import Ablation, ablate, round_to_int8
from modelassay.scan.report import ScanReport
from modelassay.scan.scanning import scan
from modelassay.verify import find_baseline, verify
from planted import SUITE
from three_verdicts import Verdicts, contradictions, verdicts_of
from tiny import unit

AGREED = Verdicts(
    scan="PASS",
    base_scan="PASS",
    erased=False,
    base_erased=False,
    verified=False,
    kind="fine-tune",
    diff="BENIGN-LIKE",
    edited=False,
    identical=False,
)


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({}, 0),
        # Each sees what it can: an edit that leaves refusals whole shows beside the base alone.
        ({"kind": "ablated", "edited": True, "diff": "COMPROMISED"}, 0),
        (
            {
                "erased": True,
                "scan": "CRITICAL",
                "kind": "ablated",
                "edited": True,
                "diff": "COMPROMISED",
            },
            0,
        ),
        ({"scan": "INCONCLUSIVE"}, 0),
        ({"kind": None, "edited": None, "erased": None, "diff": "INCONCLUSIVE"}, 0),
        ({"erased": True, "base_erased": True}, 0),
        ({"scan": "CRITICAL", "base_scan": "CRITICAL"}, 0),
        ({"scan": "CRITICAL", "diff": "SUSPICIOUS"}, 0),
        ({"erased": True, "scan": "CRITICAL", "diff": "SUSPICIOUS"}, 2),
        ({"kind": "ablated"}, 1),
        ({"edited": True, "diff": "COMPROMISED"}, 0),  # the sketch does not show every edit
        ({"edited": True, "diff": "COMPROMISED", "kind": "requantized or cast"}, 1),
        ({"edited": True, "kind": "ablated"}, 1),
        ({"verified": True, "kind": "identical", "diff": "SUSPICIOUS"}, 1),
        ({"scan": "CRITICAL"}, 1),
        ({"diff": "COMPROMISED"}, 1),
        ({"identical": True, "scan": "WARNING"}, 2),
        ({"identical": True, "scan": "INCONCLUSIVE"}, 1),
        ({"scan": "WARNING"}, 1),
        ({"scan": "WARNING", "base_scan": "INCONCLUSIVE"}, 0),
        ({"families": ("plain", "norm-preserving")}, 1),
        ({"families": ("plain", "plain")}, 0),
    ],
)
def test_what_excludes_what(changes, n):
    row = replace(AGREED, **changes)
    assert len(contradictions(row)) == n


@pytest.fixture(scope="module")
def few() -> dict[str, Concept]:
    """One small concept, in place of all that ship."""
    nouns = ["bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork"]
    pairs = tuple(
        ContrastPair(positive=f"Is {noun} loud?", negative=f"Can {noun} sink?") for noun in nouns
    )
    return {"harmful_content": Concept(name="harmful_content", pairs=pairs)}


@pytest.fixture(scope="module")
def base(tiny_folder, few) -> tuple[LoadedModel, ScanReport]:
    """A tiny model, and what a scan says of it."""
    model = load(str(tiny_folder()), device="cpu")
    return model, scan(model, mode="quick", concepts=few)


def fine_tuned(network) -> None:
    """Every matrix moved a little, without a direction in common."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=draw)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda network: ablate(network, Ablation(dict.fromkeys(range(5), unit(32)))), "ablated"),
        (fine_tuned, "fine-tune"),
        (round_to_int8, "requantized or cast"),
    ],
    ids=["ablated", "fine-tuned", "int8"],
)
def test_tiny_models_get_verdicts_that_agree(
    change, kind, base, baseline, tiny_folder, tmp_path, few
):
    changed = load(str(tiny_folder()), device="cpu")
    change(changed.network)
    changed.network.save_pretrained(tmp_path)
    changed.tokenizer.save_pretrained(tmp_path)
    candidate = load(str(tmp_path), device="cpu")
    row = verdicts_of(
        scan(candidate, mode="quick", concepts=few),
        base[1],
        verify(str(tmp_path), baseline, device="cpu"),
        diff(
            base[0], candidate, SUITE, depth=Depth(response_tokens=4, triggers=False, causal=False)
        ),
    )
    assert row.kind == kind
    assert contradictions(row) == []


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["abliterated-half", "benign"])
def test_organisms_get_verdicts_that_agree(name):
    """The scans are those of the weights: what behaviour says of organisms is in docs/validity."""
    base, candidate = load("organism:safe", device="cpu"), load(f"organism:{name}", device="cpu")
    depth = Depth(response_tokens=0, triggers=False, causal=False)
    baseline, _ = find_baseline("organism-safe") or pytest.fail("it is shipped")
    row = verdicts_of(
        scan(candidate, mode="quick"),
        scan(base, mode="quick"),
        verify(candidate.info.id, baseline, device="cpu"),
        diff(base, candidate, SUITE, depth=depth),
    )
    assert row.edited == (name != "benign")
    assert contradictions(row) == []

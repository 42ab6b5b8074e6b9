"""Scan a model from Python and look at single numbers of the report.

python examples/scan_model.py [MODEL] [MODE]
"""

import sys

import modelassay

model_id = sys.argv[1] if len(sys.argv) > 1 else "embedded"
mode = sys.argv[2] if len(sys.argv) > 2 else "quick"
report = modelassay.scan(model_id, mode=mode)

print(report.verdict.value)
for reason in report.reasons:
    print("-", reason)
for name, result in report.concepts.items():
    s = result.separation
    print(f"{name}: {s.separation:.2f}σ held out, p {s.p_value:.3f}")

"""What comes with modelassay: concepts, attacks, audits, organisms, suites, artifacts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
IN_EXAMPLES = ("attacks", "audits", "organisms", "suites")


def shipped_folder(kind: str) -> Path:
    """The folder of what is shipped of a kind, such as `probes`: of the package or the checkout."""
    packaged = Path(str(files("modelassay"))) / "shipped" / kind
    if packaged.is_dir():
        return packaged
    return CHECKOUT / ("examples" if kind in IN_EXAMPLES else ".") / kind

"""The modelassay page: a Hugging Face Space, or `python app.py` on your own machine."""

import sys
from pathlib import Path

# A Space installs requirements.txt only, not this package.
sys.path.insert(0, str(Path(__file__).parent / "src"))

import spaces  # noqa: F401  (ZeroGPU asks to be imported before torch)

from modelassay.ui import build_app, launch

demo = build_app()

if __name__ == "__main__":
    launch(demo)

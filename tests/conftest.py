"""Helpers that stand beside the tests that use them can be imported by their name."""

import sys
from pathlib import Path

for folder in ("core",):
    sys.path.insert(0, str(Path(__file__).parent / folder))

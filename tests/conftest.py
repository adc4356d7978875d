"""What all tests share: `--accept` writes expected files anew instead of comparing."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)  # what a submission meets is the same each time; elsewhere it varies
if os.environ.get("CI"):
    settings.load_profile("ci")

for folder in (
    "core",
    "app",
    "sources",
):  # helpers beside the tests that use them can be imported by name
    sys.path.insert(0, str(Path(__file__).parent / folder))

CAPTURES = Path(__file__).parent / "captures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write the expected expositions of captures anew")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))

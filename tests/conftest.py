"""What all tests share: `--accept` writes expected files anew instead of comparing."""

import sys
from pathlib import Path

import pytest

for folder in ("core",):  # helpers that stand beside the tests that use them can be imported by their name
    sys.path.insert(0, str(Path(__file__).parent / folder))

CAPTURES = Path(__file__).parent / "captures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write the expected expositions of captures anew")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))

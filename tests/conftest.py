"""What all tests share: `--accept` writes expected files anew instead of comparing."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# no example is timed, for a neighbour can make any of them slow; and what a submission meets is the same each time,
# while elsewhere it varies
settings.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("ours")

# helpers beside the tests that use them are imported by their name
for folder in ("app", "core", "grafana", "prometheus", "sources"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

CAPTURES = Path(__file__).parent / "captures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write the expected expositions of captures anew")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))

"""The live test of Dynamo: run by `tests/run dynamo`, which gives it a network of its own; otherwise left out."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "real")]  # the servers' helpers are those of the other real servers


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Collected only where this folder is named: it takes minutes, and a network without other machines."""
    return None if any("live" in Path(argument.partition("::")[0]).parts for argument in config.args) else True


@pytest.fixture(scope="session", autouse=True)
def _network_of_its_own() -> None:
    assert Path("/proc/net/route").read_text().count("\n") <= 1, (
        "Dynamo's event sockets are open to every address: run this with tests/run dynamo, in a network of its own"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The times that the tests saw."""
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for what, seconds in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {what}: {seconds:.1f} s")

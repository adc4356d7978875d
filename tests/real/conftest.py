"""The servers that tests of real things share: Redis, invented providers, and a LiteLLM proxy over them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import stack


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def redis(folder: Path) -> Iterator[stack.Server]:
    server = stack.redis(folder)
    with stack.running(server):
        yield server


@pytest.fixture(scope="session")
def providers(folder: Path) -> Iterator[stack.Server]:
    server = stack.providers(folder)
    with stack.running(server):
        yield server


@pytest.fixture(scope="session", params=[1, 2], ids=["one worker", "two workers"])
def proxy(
    request: pytest.FixtureRequest, folder: Path, redis: stack.Server, providers: stack.Server
) -> Iterator[stack.LiteLLM]:
    """No cooldowns and no retries: counts are exact."""
    server = stack.litellm(folder, stack.litellm_config(providers.url, redis.port), request.param)
    with stack.running(server):
        yield server


@pytest.fixture
def exporter(tmp_path: Path, proxy: stack.LiteLLM) -> Iterator[stack.Exporter]:
    """An exporter that has read the proxy."""
    server = stack.exporter(tmp_path, proxy.url)
    server.start()
    yield server
    assert server.stop() == 0, server.tail()
    assert stack.KEY not in server.log.read_text()

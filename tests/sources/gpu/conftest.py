"""The double of libnvidia-ml.so.1, built once; and a dcgm-exporter that answers as captured."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))

from scripted import Driver

from exporter.sources.gpu import process

HERE = Path(__file__).parent / "nvml"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the double."""
    folder = tmp_path_factory.mktemp("nvml")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Wno-implicit-fallthrough", "-fvisibility=hidden", "-shared", "-fPIC",
         "-pthread", "-Wl,-soname,libnvidia-ml.so.1", "-o", folder / "libnvidia-ml.so.1", HERE / "nvml.c"],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Eight GPUs that are well, for every process that is started from here on; slow machines are given time."""
    monkeypatch.setattr(process, "START", 60.0)
    monkeypatch.setattr(process, "PATIENCE", 60.0)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML_CONF", str(tmp_path / "nvml.conf"))
    made = Driver(tmp_path / "nvml.conf")
    made.write()
    return made


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library of NVIDIA's at all."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert not Path("/proc/driver/nvidia").exists(), "these tests are for machines without NVIDIA's driver"


@pytest.fixture
async def dcgm() -> AsyncIterator[list[str]]:
    """The URL of a dcgm-exporter."""
    body = (Path(__file__).parents[2] / "captures" / "dcgm" / "pods_1.body").read_bytes()

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body if request.path == "/metrics" else b"<h1>GPU Exporter</h1>")

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield [f"http://127.0.0.1:{runner.addresses[0][1]}"]
    await runner.cleanup()

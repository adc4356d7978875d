"""A server that hangs and says that it is healthy, over HTTP, as the whole exporter sees it."""

import re
from pathlib import Path

import pytest
from aiohttp import web
from test_app import exporter

CAPTURE = Path(__file__).parents[1] / "captures" / "dynamo" / "engines" / "vllm_0.32_metrics.body"


class Vllm:
    """A vLLM with what its own metric classes write; its engine can be frozen, and it says that it is healthy."""

    def __init__(self) -> None:
        self.frozen = False
        self.waiting = 0.0
        self.steps = 40.0
        self.asked: list[str] = []
        self._page = CAPTURE.read_text()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path)
        if request.path == "/health":
            return web.Response()
        if request.path != "/metrics":
            return web.Response(status=404)
        if not self.frozen:
            self.steps += 1.0
        page = self._page
        for name, value in (
            ("num_requests_running", 0.0 if self.frozen else 2.0),
            ("num_requests_waiting", 3.0 if self.frozen else 0.0),
            ("iteration_tokens_total_count", self.steps),
        ):
            page, found = re.subn(rf"^(vllm:{name}{{.*}}) .*$", rf"\1 {value}", page, flags=re.MULTILINE)
            assert found == 1, name
        return web.Response(text=page)


@pytest.mark.parametrize("source", ["vllm", "dynamo"])  # by itself, and behind a worker's port
async def test_a_frozen_engine_that_says_that_it_is_healthy_is_stalled_until_it_moves(
    tmp_path: Path, source: str
) -> None:
    vllm = Vllm()
    runner = web.ServerRunner(web.Server(vllm.answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    file = tmp_path / "llm.yaml"
    file.write_text(
        "stalled_after: 1m\n"
        f"targets: [{{source: {source}, url: {url}, name: gpu-1, interval: 200ms, stalled_after: 1s}},\n"
        f"          {{source: {source}, url: {url}, name: patient, interval: 200ms}}]\n"
    )
    part = r'layer="engine",model="meta-llama/Llama-3\.1-8B-Instruct",rank="0"\}'

    def stalled(target: str, value: float) -> str:
        return rf'^llm_target_stalled\{{source="{source}",target="{target}",{part} {value}$'

    try:
        async with exporter(tmp_path, "--config", str(file)) as made:
            page = await made.until(
                rf'^llm_target_last_progress_timestamp_seconds\{{source="{source}",target="gpu-1",{part}'
            )
            assert re.search(stalled("gpu-1", 0.0), page, re.MULTILINE)
            vllm.frozen = True
            page = await made.until(stalled("gpu-1", 1.0))
            assert re.search(stalled("patient", 0.0), page, re.MULTILINE), "it has a minute"
            for family, value in (("requests_running", 0), ("requests_waiting", 3), ("target_up", 1)):
                line = rf'^llm_{family}\{{source="{source}",target="gpu-1".*\}} {value}\.0$'
                assert re.search(line, page, re.MULTILINE), family
            # vLLM's own is never asked, it tells nothing; Dynamo's has more to say than that it answers
            assert ("/health" in vllm.asked) == (source == "dynamo")
            vllm.frozen = False
            await made.until(stalled("gpu-1", 0.0))
            vllm.frozen = True
            await made.until(stalled("gpu-1", 1.0))
            await runner.cleanup()
            page = await made.until(rf'^llm_target_up\{{source="{source}",target="gpu-1"\}} 0\.0')
            assert f'llm_target_stalled{{source="{source}",target="gpu-1"' not in page, (
                "what cannot be read is not judged"
            )
    finally:
        await runner.cleanup()

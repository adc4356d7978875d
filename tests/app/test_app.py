"""The whole exporter as a process: finds what runs, serves it, takes a new configuration, says what is wrong."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from exporter.app import App
from exporter.config.load import load
from exporter.config.model import Config, TargetConfig, Tls
from exporter.core.fetch import Upstream, session
from exporter.core.https import Session
from exporter.core.state import Store
from exporter.recognition import problem_with
from exporter.sources.http import Http
from exporter.sources.litellm import LiteLLM

CAPTURES = Path(__file__).parents[1] / "captures" / "litellm" / "1.106.2"


class Proxy:
    """A LiteLLM that answers as captured, with a key that it wants."""

    def __init__(self) -> None:
        self.key = "sk-right"
        self.asked: list[str] = []

    def asked_for(self) -> set[str]:
        return {path.partition("?")[0] for path in self.asked}

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path_qs)
        name = {
            "/health/liveliness": "health_liveliness_noauth",
            "/health/readiness": "health_readiness",
            "/health/readiness/details": "health_readiness_details",
            "/model/info": "model_info",
            "/metrics/": "metrics_t1",
        }.get(request.path)
        if name is None:
            return web.Response(status=404)
        open_to_all = ("/health/liveliness", "/health/readiness")
        if request.path not in open_to_all and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        body = (CAPTURES / f"{name}.body").read_bytes()
        return web.Response(body=body, content_type="application/json" if body[:1] in b'{"' else "text/plain")


@contextlib.asynccontextmanager
async def serving(proxy: Proxy, port: int = 0) -> AsyncIterator[int]:
    runner = web.ServerRunner(web.Server(proxy.answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Exporter:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = ""

    async def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        async with aiohttp.ClientSession() as client, client.request(method, self.url + path) as response:
            return response.status, await response.text()

    async def until(self, pattern: str, path: str = "/metrics") -> str:
        """The text at `path` as soon as it matches."""
        text = ""
        async with asyncio.timeout(90):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    text = (await self.get(path))[1]
                    if re.search(pattern, text, re.MULTILINE):
                        return text
                assert self.process.returncode is None, await self.process.stderr.read()  # type: ignore[union-attr]
                await asyncio.sleep(0.1)
        return text

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        _, err = await self.process.communicate()
        self.log += err.decode()
        return self.process.returncode or 0


@contextlib.asynccontextmanager
async def exporter(
    tmp_path: Path, *arguments: str, listen: str | None = None, **environ: str
) -> AsyncIterator[Exporter]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "exporter", "--listen", listen or f"127.0.0.1:{port}", "--interval", "200ms",
        "--state-directory", str(tmp_path / "state"), *arguments,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LITELLM_HOST": "127.0.0.1:1", **environ},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    made = Exporter(process, port)
    try:
        yield made
    finally:
        await made.stop()


async def test_it_finds_a_proxy_that_starts_later_and_shows_it(tmp_path: Path) -> None:
    port = free_port()
    redis = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1"}
    async with exporter(tmp_path, LITELLM_HOST=f"127.0.0.1:{port}", LITELLM_API_KEY="sk-right", **redis) as made:
        page = await made.until("llm_exporter_build_info")
        assert 'llm_target_up{source="litellm"' not in page
        assert "nothing listens there" in await made.until("not found|looked", "/")
        await made.until("is ready", "/-/ready")  # what else was found on this machine has been read, too
        async with serving(Proxy(), port):
            page = await made.until(r'^llm_target_up\{source="litellm",target="litellm"\} 1.0')
            assert 'llm_spend_usd_total{source="litellm",target="litellm"' in page
        assert await made.until(r'^llm_target_up\{source="litellm",target="litellm"\} 0.0')
    assert await made.stop() == 0
    assert re.search("looks again for what is missing.*litellm.*redis", made.log)
    assert "sk-right" not in made.log


async def test_a_proxy_that_wants_a_key_is_asked_once_and_the_page_says_which_line_gives_it(tmp_path: Path) -> None:
    proxy = Proxy()
    async with serving(proxy) as port, exporter(tmp_path, LITELLM_HOST=f"127.0.0.1:{port}") as made:
        assert "set LITELLM_API_KEY" in await made.until("LITELLM_API_KEY", "/")
        page = await made.until('reason="auth"} 1.0')
        assert 'llm_target_interval_seconds{source="litellm",target="litellm"} 60.0' in page
        await asyncio.sleep(1.0)
        assert len([path for path in proxy.asked if path.startswith("/metrics")]) == 1


async def test_nothing_that_costs_or_writes_is_ever_asked(tmp_path: Path) -> None:
    proxy = Proxy()
    async with (
        serving(proxy) as port,
        exporter(tmp_path, LITELLM_HOST=f"127.0.0.1:{port}", LITELLM_API_KEY="sk-right") as made,
    ):
        await made.until("llm_spend_usd_total")
        known = {"/health/liveliness", "/health/readiness", "/health/readiness/details", "/model/info", "/metrics/"}
        async with asyncio.timeout(90):
            while not known <= proxy.asked_for():  # noqa: ASYNC110 - none tells
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
    assert proxy.asked_for() == known


async def test_a_new_configuration_is_taken_and_a_bad_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    async with serving(Proxy()) as port:
        entry = f"{{source: litellm, url: 'http://127.0.0.1:{port}', name: NAME, api_key: sk-right}}"
        good = f"targets:\n  - {entry}\nreload: true\n"
        file.write_text(good.replace("NAME", "one"))
        async with exporter(tmp_path, "--config", str(file)) as made:
            await made.until('llm_target_up{source="litellm",target="one"} 1.0'.replace("{", r"\{"))
            file.write_text(good.replace("NAME", "two").replace("source", "sourse"))
            status, text = await made.get("/-/reload", "POST")
            assert status == 500
            assert "llm.yaml:2: targets.0.sourse: unknown" in text
            page = await made.until("llm_exporter_config_last_reload_successful 0.0")
            assert 'target="one"} 1.0' in page
            file.write_text(good.replace("NAME", "two"))
            made.process.send_signal(signal.SIGHUP)
            page = await made.until('target="two"} 1.0')
            assert "llm_exporter_config_last_reload_successful 1.0" in page
            assert 'target="one"' not in page
    assert "sk-right" not in made.log


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    async with serving(Proxy()) as port:
        environ = {"LITELLM_HOST": f"127.0.0.1:{port}", "LITELLM_API_KEY": "sk-right"}
        async with exporter(tmp_path, **environ) as made:
            before = await made.until("llm_spend_usd_total")
        async with exporter(tmp_path, **environ) as made:
            after = await made.until("llm_spend_usd_total")
    counters = [set(re.findall(r"^llm_\w+_total\{[^}]*layer.*$", page, re.MULTILINE)) for page in (before, after)]
    assert len(counters[0]) > 100
    assert counters[0] == counters[1]


async def test_a_taken_port_says_what_to_look_for_and_what_to_write(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with exporter(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}") as made:
            await made.process.wait()
    assert await made.stop() == 1
    assert "--listen" in made.log
    assert "ss -ltnp" in made.log
    assert "Traceback" not in made.log


async def test_logs_can_be_json(tmp_path: Path) -> None:
    async with exporter(tmp_path, "--log-format", "json") as made:
        await made.until("llm_exporter_build_info")
    await made.stop()
    events = [json.loads(line)["event"] for line in made.log.splitlines()]
    assert "listening" in events


async def run(*arguments: str, **environ: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "exporter", *arguments, env={"PATH": os.environ["PATH"], **environ},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_read_prints_what_would_be_shown_and_what_was_left_out_and_why(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-right\n")
    async with serving(Proxy()) as port:
        status, out, err = await run("read", "litellm", f"http://127.0.0.1:{port}", "--api-key-file", str(key))
        assert status == 0, err
        assert re.search(r"^llm_spend_usd_total\{.*\} [0-9.e-]+$", out, re.MULTILINE)
        assert "left out, no word of ours for it:\n" in err
        assert "  litellm_requests_metric_total (" in err
        assert "left out, by a rule of the map:\n" in err
        status, out, err = await run("read", "litellm", f"http://127.0.0.1:{port}")
        assert (status, out) == (1, "")
        assert "LITELLM_API_KEY" in err


async def test_read_takes_a_key_for_whatever_wants_one_and_says_where_none_is_wanted(tmp_path: Path) -> None:
    key, asked = tmp_path / "key", []

    class Asked(Proxy):
        async def answer(self, request: web.BaseRequest) -> web.Response:
            asked.append(request.headers.get("Authorization"))
            return web.Response(status=404)

    key.write_text("sk-right\n")
    async with serving(Asked()) as port:
        for source in ("llamacpp", "ollama", "vllm", "http"):
            asked.clear()
            environ = {"LLAMA_API_KEY": "sk-other", "VLLM_API_KEY": "sk-other"}
            await run("read", source, f"http://127.0.0.1:{port}", "--api-key-file", str(key), **environ)
            assert asked, source
            assert set(asked) == {"Bearer sk-right"}, source
        status, out, err = await run("read", "etcd", f"http://127.0.0.1:{port}", "--api-key-file", str(key))
    assert (status, out) == (2, "")
    assert err.startswith("--api-key-file: etcd takes no key")


async def test_what_is_made_from_documentation_alone_says_so(tmp_path: Path) -> None:
    class Tgi(Proxy):
        async def answer(self, request: web.BaseRequest) -> web.Response:
            told = "# TYPE tgi_queue_size gauge\ntgi_queue_size 2\n"
            return web.Response(text=told) if request.path == "/metrics" else web.Response(status=404)

    file = tmp_path / "llm.yaml"
    async with serving(Tgi()) as port:
        file.write_text(f"targets: ['http://127.0.0.1:{port}']\n")
        status, out, err = await run("check", str(file))
        assert f"127.0.0.1:{port}: up, tgi (experimental), " in out, out + err
        status, out, err = await run("read", "tgi", f"http://127.0.0.1:{port}")
    assert status == 0
    assert "tgi is experimental: made from its documentation" in err


@pytest.mark.parametrize(
    ("source", "url", "said"),
    [
        ("redis", "redis://user:hunter2@127.0.0.1:1", "redis://127.0.0.1:1: connect: "),
        ("vllm", "http://user:hunter2@127.0.0.1:1", "'http://…@127.0.0.1:1': url: a user or password in a URL"),
        ("vllm", "", "vllm: url: not a URL: ''"),
    ],
)
async def test_read_says_what_is_wrong_without_the_login_of_a_url(source: str, url: str, said: str) -> None:
    status, out, err = await run("read", source, url, HOME="/tmp")
    assert status in (1, 2)
    assert err.startswith(said)
    assert "hunter2" not in out + err


async def test_check_reads_each_target_once_and_lists_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    async with serving(Proxy()) as port:
        file.write_text(f"targets: [{{source: litellm, url: 'http://127.0.0.1:{port}', api_key: sk-right}}]\n")
        status, out, _ = await run("check", str(file))
        assert status == 0
        assert "fine, 1 target," in out
        assert re.search(r": up, \d+ series", out)
        file.write_text(f"targets: ['http://127.0.0.1:{port}', 'http://127.0.0.1:{free_port()}']\n")
        status, out, _ = await run("check", str(file), LITELLM_API_KEY="sk-right")
        assert status == 1
        assert f"127.0.0.1:{port}: down (auth): " in out  # it was recognised, and wants a key
        assert "down (content): not recognised: " in out
        assert (await run("check", "--offline", str(file)))[0] == 0
    file.write_text("# targets: []\n")
    status, out, _ = await run("check", str(file))
    assert status == 0
    assert "nothing would be read (write targets, or detect: true)" in out
    file.write_text("intervall: 5s\ntargets: [{source: litelm, url: 'http://a'}]\n")
    status, out, err = await run("check", str(file))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert "interval" in err
    assert "litellm" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--interval", "5"], "--interval: not a duration: '5' (write 500ms, 2s, 1m30s)"),
        (["--listen", "nowhere"], "--listen:"),
        (["--config", "/nonexistent/llm.yaml"], "/nonexistent/llm.yaml"),
    ],
)
async def test_what_is_written_wrong_is_said_without_a_traceback(arguments: list[str], text: str) -> None:
    status, _, err = await run(*arguments, HOME="/tmp")
    assert status == 2
    assert text in err
    assert "Traceback" not in err


async def test_a_target_given_by_its_url_alone_is_down_until_it_is_recognised(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "llm.yaml"
    file.write_text(f"targets: ['http://127.0.0.1:{port}']\n")
    async with exporter(tmp_path, "--config", str(file)) as made:
        await made.until(rf'^llm_target_up\{{source="auto",target="127.0.0.1:{port}"\}} 0.0')
        page = (await made.get("/"))[1]
        assert "nothing listens there" in page
        assert "(say what it is with <code>source:</code>)" in page
        async with serving(Proxy(), port):
            page = await made.until(rf'^llm_target_up\{{source="litellm",target="127.0.0.1:{port}"\}}')
            assert 'source="auto"' not in page


async def test_a_url_that_hangs_delays_no_other_from_being_recognised(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and says nothing
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        async with serving(Proxy()) as port:
            file.write_text(f"targets: ['http://{place}', 'http://127.0.0.1:{port}']\n")
            async with exporter(tmp_path, "--config", str(file)) as made:
                await made.until(rf'^llm_target_up\{{source="auto",target="{place}"\}} 0.0')
    assert made.log.index("] recognised") < made.log.index(f"{place}: no answer")
    assert made.log.count("is not recognised") == 1


@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-", ">&- 2>&-"])
async def test_a_log_that_cannot_be_written_is_no_reason_to_stop(to: str, tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "llm.yaml"
    file.write_text(f"listen: 127.0.0.1:{port}\nstate_directory: {tmp_path}/state\nreload: true\n")
    command = f"exec {sys.executable} -m exporter --config {file} {to}"
    made = Exporter(await asyncio.create_subprocess_shell(command), port)
    try:
        await made.until("is ready", "/-/ready")
        assert (await made.get("/-/reload", "POST"))[0] == 200
        assert "llm_exporter_build_info" in (await made.get("/metrics"))[1]
    finally:
        made.process.send_signal(signal.SIGTERM)
        await made.process.wait()


async def test_a_configuration_that_reads_nothing_says_so(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text("interval: 1s\n")
    async with exporter(tmp_path, "--config", str(file)) as made:
        await made.until("is ready", "/-/ready")
    assert "nothing is read: no targets are configured, and detect is off" in made.log


async def test_what_holds_for_all_targets_is_taken_by_those_that_are_watched(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    async with serving(Proxy()) as port:
        entry = f"targets: [{{source: litellm, url: 'http://127.0.0.1:{port}', name: one, api_key: sk-right}}]\n"
        file.write_text(entry + "interval: 1m\n")
        async with exporter(tmp_path, "--config", str(file)) as made:
            made_interval = 'llm_target_interval_seconds{source="litellm",target="one"} '
            await made.until(re.escape(made_interval) + "[0-9.]+")
            file.write_text(entry + "limits: {series: 7}\n")
            made.process.send_signal(signal.SIGHUP)
            await made.until(r'^llm_target_series\{source="litellm",target="one"\} [1-7].0')


@pytest.mark.parametrize(
    ("environ", "text"),
    [({"LITELLM_HOST": "http://user:secret@gw"}, "api_key_file"), ({"LITELLM_HOST": "ftp://gw"}, "http")],
)
async def test_a_wrong_environment_is_said_without_its_secrets(
    environ: dict[str, str], text: str, tmp_path: Path
) -> None:
    status, _, err = await run(HOME=str(tmp_path), **environ)
    assert status == 2
    assert text in err
    assert "secret@" not in err
    assert "Traceback" not in err


async def test_an_environment_that_nobody_asked_for_is_no_mistake(tmp_path: Path) -> None:
    """Kubernetes itself sets REDIS_PORT=tcp://… beside a service of that name."""
    wrong = {"REDIS_HOST": "redis", "REDIS_PORT": "tcp://10.0.0.1:6379"}
    file = tmp_path / "llm.yaml"
    file.write_text("targets: []\n")
    async with exporter(tmp_path, "--config", str(file), **wrong) as made:
        await made.until("is ready", "/-/ready")
        file.write_text("detect: true\n")
        made.process.send_signal(signal.SIGHUP)
        await made.until("^llm_exporter_config_last_reload_successful 0.0")
    assert "not a Redis server" in made.log


async def test_a_key_file_that_is_missing_is_the_targets_failure_and_says_so(tmp_path: Path) -> None:
    async with serving(Proxy()) as port:
        environ = {"LITELLM_HOST": f"127.0.0.1:{port}", "LITELLM_API_KEY_FILE": str(tmp_path / "nothing")}
        async with exporter(tmp_path, **environ) as made:
            await made.until('reason="auth"} 1.0')
            assert "nothing" in (await made.get("/"))[1]


class Catchall:
    """Answers everything alike, as no upstream does."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def answer(self, _: web.BaseRequest) -> web.Response:
        return web.Response(body=self.body, content_type="application/json")


async def test_what_answers_where_an_upstream_is_looked_for_never_ends_the_exporter(tmp_path: Path) -> None:
    async with serving(Catchall(b"{}")) as port:
        etcd = {"ETCD_ENDPOINTS": f"http://127.0.0.1:{port}", "ETCD_AUTH_USERNAME": "dynamo"}
        async with exporter(tmp_path, **etcd) as made:
            await made.until("is ready", "/-/ready")
            assert "ETCD_AUTH_PASSWORD is not set" in (await made.get("/"))[1]


async def test_a_look_that_fails_by_a_defect_says_so_and_ends_nothing() -> None:
    class Broken(LiteLLM):
        @staticmethod
        async def recognise(*_: object) -> bool:
            raise KeyError("header")

    async with session() as client:
        target = TargetConfig(url="http://127.0.0.1:1")
        problem = await problem_with(Broken, Upstream(client, target.url), target)
    assert problem == "http://127.0.0.1:1: a defect of the exporter, please report it: KeyError: 'header'"


class Slow(LiteLLM):
    """Takes its time to be recognised: `looked` is set when it is looked at, and `known` lets it be recognised."""

    looked = asyncio.Event()
    known = asyncio.Event()

    @staticmethod
    async def recognise(*_: object) -> bool:
        Slow.looked.set()
        await Slow.known.wait()
        return True


@pytest.mark.parametrize(
    "taken",
    [
        {"targets": ({"source": "http", "name": "litellm", "host": "127.0.0.1", "port": 1},)},
        {"targets": ({"source": "litellm", "name": "gateway", "url": "http://127.0.0.1:4000"},)},
        {"targets": ({"name": "litellm", "url": "http://127.0.0.1:1"},)},
        {"detect": False},
    ],
)
async def test_what_is_found_while_another_configuration_comes_is_not_watched_beside_it(
    taken: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.app.sources", lambda: {"litellm": Slow, "http": Http})
    Slow.looked, Slow.known = asyncio.Event(), asyncio.Event()
    file = tmp_path / "llm.yaml"
    file.write_text(json.dumps({"detect": True, **taken}))
    app = App(Config(detect=True), lambda: load(file), Store(tmp_path / "state"), {})
    async with session() as app._client, asyncio.TaskGroup() as app._group:
        looking = app._group.create_task(app._look(app._client, first=True))
        await Slow.looked.wait()
        assert await app.reload() is None
        configured = {name: watched.task for name, watched in app._targets.items()}
        Slow.known.set()
        await looking
        assert {name: watched.task for name, watched in app._targets.items()} == configured
        for watched in app._targets.values():
            watched.task.cancel()


async def test_what_was_found_gives_way_to_a_configuration_of_the_same_place(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text("detect: true\n")
    async with (
        serving(Proxy()) as port,
        exporter(tmp_path, "--config", str(file), LITELLM_HOST=f"127.0.0.1:{port}") as made,
    ):
        await made.until(r'^llm_target_up\{source="litellm",target="litellm"\}')
        entry = f"{{source: litellm, name: gateway, url: 'http://127.0.0.1:{port}', api_key: sk-right}}"
        file.write_text(f"detect: true\ntargets: [{entry}]\n")
        made.process.send_signal(signal.SIGHUP)
        page = await made.until(r'^llm_target_up\{source="litellm",target="gateway"\} 1.0')
        assert 'target="litellm"' not in page


async def test_looking_for_what_is_not_there_keeps_no_connections_and_no_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.recognition.sources", lambda: {"litellm": LiteLLM})
    monkeypatch.setattr("exporter.app.LOOK_AGAIN", 0.0)
    made: list[Session] = []
    often = asyncio.Event()

    class Kept(Session):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)
            if len(made) == 5:
                often.set()

    monkeypatch.setattr("exporter.core.https.Session", Kept)
    target = TargetConfig(url="https://127.0.0.1:1", tls=Tls())
    app = App(Config(targets=(target,)), Config, Store(tmp_path / "state"), {})
    async with session() as app._client, asyncio.TaskGroup() as app._group:
        working = app._group.create_task(app._work())
        await often.wait()
        assert sum(not each._client.closed for each in made) == 1
        working.cancel()


@pytest.mark.parametrize("arguments", [["--interval", "5", "serve"], ["serve", "--interval", "5"], ["--interval", "5"]])
async def test_a_flag_counts_before_serve_behind_it_and_without_it(arguments: list[str], tmp_path: Path) -> None:
    status, _, err = await run(*arguments, HOME=str(tmp_path))
    assert status == 2
    assert "--interval: not a duration" in err


async def test_what_a_target_knows_of_is_watched_as_long_as_it_does(tmp_path: Path) -> None:
    metrics = 'dynamo_component_requests_total{dynamo_namespace="n",dynamo_component="c",dynamo_endpoint="e"} 5\n'

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/health":
            return web.json_response({"status": "ready", "endpoints": {"e": "ready"}})
        return web.Response(text=metrics) if request.path == "/metrics" else web.Response(status=404)

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    place = f"127.0.0.1:{runner.addresses[0][1]}"
    card = tmp_path / "kv" / "v1" / "mdc" / "n%2Fc%2Fe%2Fa1"
    card.parent.mkdir(parents=True)
    path = f"http://{place}/v1/metadata/config.json"
    written = json.dumps({"card_json": {"model_info": {"hf_config_json": {"path": path}}}})
    card.write_text(written)
    file = tmp_path / "llm.yaml"
    file.write_text(f"targets: [{{source: dynamo, directory: {tmp_path / 'kv'}}}]\n")
    try:
        async with exporter(tmp_path, "--config", str(file), "--metrics-interval", "200ms") as made:
            page = await made.until(rf'^llm_target_up\{{source="dynamo",target="dynamo/{place}"\}} 1.0')
            assert f'llm_dynamo_worker_requests_total{{source="dynamo",target="dynamo/{place}"' in page
            await made.until(r'^llm_dynamo_endpoint_state\{.*state="provisioning"\} 1.0')  # a card without an instance
            made.process.send_signal(signal.SIGHUP)
            await made.until(rf'^llm_target_up\{{source="dynamo",target="dynamo/{place}"\}} 1.0')
            card.unlink()
            page = await made.until(r'^llm_dynamo_endpoint_state\{.*state="offline"\} 1.0')
            assert place not in page
            card.write_text(written)
            await made.until(rf'^llm_target_up\{{source="dynamo",target="dynamo/{place}"\}} 1.0')
            file.write_text("targets: []\n")
            made.process.send_signal(signal.SIGHUP)
            await made.until(r"\A(?!(?s:.*)llm_target_up)")
    finally:
        await runner.cleanup()


ENGINES = Path(__file__).parents[1] / "captures"


async def test_model_servers_given_by_their_urls_alone_are_recognised_and_the_page_says_as_what(tmp_path: Path) -> None:
    bodies = {
        "/metrics": (ENGINES / "vllm/0.32/load1_metrics.body").read_bytes(),
        "/v1/metrics": b'# TYPE num_requests_running gauge\nnum_requests_running{model_name="m"} 3\n',
    }
    asked: list[str] = []

    def only(*paths: str) -> type[Proxy]:
        class Engine(Proxy):
            async def answer(self, request: web.BaseRequest) -> web.Response:
                asked.append(request.path)
                known = request.path in paths
                return web.Response(body=bodies[request.path] if known else b"", status=200 if known else 404)

        return Engine

    file = tmp_path / "llm.yaml"
    async with serving(only("/metrics")()) as vllm, serving(only("/v1/metrics")()) as nim:
        file.write_text(f"targets: ['http://127.0.0.1:{vllm}', 'http://127.0.0.1:{nim}']\n")
        async with exporter(tmp_path, "--config", str(file)) as made:
            await made.until(rf'^llm_requests_running\{{source="nim",target="127.0.0.1:{nim}",.*model="m"\}} 3.0')
            page = await made.until(rf'^llm_requests_running\{{source="vllm",target="127.0.0.1:{vllm}",.*\}} 12.0')
            assert 'source="auto"' not in page
            shown = (await made.get("/"))[1]
            assert f"vllm, recognised by what it answers · http://127.0.0.1:{vllm}" in shown
            assert f"nim (experimental), recognised by what it answers · http://127.0.0.1:{nim}" in shown
        assert re.search(r"recognised .*source=vllm", made.log)
    assert "/health" not in asked

"""compose.yaml against the Compose Specification, and what it promises."""

import re
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"exporter", "demo"}


def specified(compose: dict[str, Any]) -> PyCompose:
    """As the specification has it. Merge keys are YAML's; of hosts the library knows addresses alone."""
    text = yaml.safe_dump(compose).replace("host-gateway", "127.0.0.1")
    made = PyCompose.from_yaml(text)
    made.validate()
    return made


def test_it_is_as_the_specification_wants_it() -> None:
    assert set(specified(COMPOSE).service_names()) == set(SERVICES)


def test_a_key_that_the_specification_does_not_have_would_be_found() -> None:
    wrong = {**COMPOSE, "services": {"grafana": {**SERVICES["grafana"], "healthchek": {}}}}
    with pytest.raises(ValueError, match="healthchek"):
        specified(wrong)


def test_by_default_there_are_the_exporter_prometheus_and_grafana() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert {name for name, profile in profiles.items() if profile is None} == {"exporter", "prometheus", "grafana"}
    others = {name: profile[0] for name, profile in profiles.items() if profile is not None}
    assert others == {"demo": "demo", "loki": "logs", "alloy": "logs", "alertmanager": "alerts"}


def test_the_exporter_sees_the_machine() -> None:
    assert SERVICES["exporter"]["network_mode"] == SERVICES["exporter"]["pid"] == "host"
    assert not any("network_mode" in service for name, service in SERVICES.items() if name != "exporter")


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_confined_and_its_version_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (
        service["image"] == "llm-exporter:local" if name in OURS else re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    )
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_tells_whether_it_is_well_without_the_images_shell(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize(("status", "well"), [(200, True), (503, False)])
def test_alloy_is_asked_by_bash_alone(status: int, well: bool) -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/-/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    written = [part.replace("$$", "$") for part in SERVICES["alloy"]["healthcheck"]["test"][1:]]
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        asked = [part.replace("/12345 ", f"/{server.server_port} ") for part in written]
        assert asked != written
        done = subprocess.run(asked, timeout=120, check=False)
        server.shutdown()
    assert (done.returncode == 0) is well


def test_no_password_is_written() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert not re.search(r"PASSWORD: *\S", text)
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_what_is_mounted_is_there_and_cannot_be_written() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert mode == ["ro"], mount
                if (ROOT / source).parts[len(ROOT.parts)] == "deploy":
                    assert (ROOT / source).is_file(), mount
            elif not source.startswith("/"):
                assert source in COMPOSE["volumes"], mount
            assert target.startswith("/")


def test_prometheus_scrapes_the_exporter_and_the_demo_where_they_are() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = scraped[0]["static_configs"][0]["targets"]
    assert f"{target.partition(':')[0]}:host-gateway" in SERVICES["prometheus"]["extra_hosts"]
    demo = scraped[1]["dns_sd_configs"][0]
    assert demo["names"] == ["demo"]
    assert [str(demo["port"])] == SERVICES["demo"]["expose"]


def test_the_image_has_one_user_without_rights_and_starts_no_shell() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("FROM"))
    words = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines[last:]}
    assert words["USER"] == "65532:65532"
    assert words["ENTRYPOINT"].startswith("[")
    assert "RUN" not in words

"""What `llm-exporter bundle` writes, and where it comes from."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import yaml
from pydantic import SecretStr

from exporter import bundle
from exporter.bundle import found, kubernetes
from exporter.cli import _parser, main
from exporter.config.load import configured_kinds, load

ROOT = Path(__file__).parents[2]
SHIPPED = ("compose.yaml", "Dockerfile", "deploy/compose", "grafana/dashboards", "grafana/provisioning", "prometheus")


@pytest.fixture(autouse=True)
def nothing_runs_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs on the machine of the tests is another one's business; and the log is as it was, afterwards."""

    async def nothing(_: object) -> list[object]:
        return []

    monkeypatch.setattr(bundle, "look", nothing)
    yield
    structlog.reset_defaults()


def test_it_carries_what_stands_at_the_top_of_the_repository() -> None:
    links = [entry for entry in bundle.shipped().rglob("*") if entry.is_symlink()]
    assert len(links) >= len(SHIPPED)
    for link in links:
        place = link.relative_to(bundle.shipped())
        assert link.resolve() == (ROOT / place).resolve()
        assert str(place).startswith(SHIPPED)


def test_a_bundle_holds_all_of_it_and_its_configuration_is_taken(tmp_path: Path) -> None:
    assert main(["bundle", str(tmp_path)]) == 0
    for name in ("compose.yaml", "Dockerfile", "deploy/compose/prometheus.yml"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
        assert not (tmp_path / name).is_symlink()
    for file in (ROOT / "grafana" / "dashboards").glob("*/*.json"):
        assert (tmp_path / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
    assert load(tmp_path / "llm-exporter.yaml").detect


def test_a_second_bundle_keeps_what_is_the_users(tmp_path: Path) -> None:
    bundle.write(tmp_path)
    names = ("llm-exporter.yaml", ".env", "compose.yaml", "prometheus/prometheus.yml")
    for name in names:
        (tmp_path / name).write_text("mine\n")
    written = {str(file.relative_to(tmp_path)) for file in bundle.write(tmp_path)}
    kept = {name for name in names if name not in written}
    assert kept == {"llm-exporter.yaml", ".env"}
    assert (tmp_path / ".env").read_text() == "mine\n" != (tmp_path / "compose.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "arguments"), [("compose.yaml", []), ("README.md", []), ("servicemonitor.yaml", ["--kubernetes"])]
)
def test_a_strangers_file_is_not_written_over(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine\n")
    assert main(["bundle", *arguments, str(tmp_path)]) == 1
    assert f"{name} is there, and is no bundle's" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine\n"


def test_what_was_found_is_written_as_a_file_that_reads_the_same(tmp_path: Path) -> None:
    kinds, environ = configured_kinds(), {"LITELLM_API_KEY": "sk-1"}
    targets = [
        kinds["litellm"](url="http://127.0.0.1:4000", name="litellm", api_key_env="LITELLM_API_KEY"),
        *kinds["dynamo"](
            name="dynamo",
            etcd=("http://127.0.0.1:2379",),
            frontends=("http://127.0.0.1:8000",),
            nats="http://127.0.0.1:8222",
        ).parts(),
    ]
    file = tmp_path / "llm-exporter.yaml"
    file.write_text(found.configuration(targets))
    assert list(load(file, environ=environ).targets) == targets


def test_a_secret_is_not_written() -> None:
    target = configured_kinds()["redis"](server="redis://127.0.0.1:6379", user="u", password=SecretStr("hunter2"))
    text = found.configuration([target])
    assert "hunter2" not in text
    assert "password was given, and is left out: write password_file" in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bundle", str(tmp_path / "file" / "bundle")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_on_kubernetes_each_dashboard_is_a_configmap_and_each_file_of_rules_a_resource(tmp_path: Path) -> None:
    dashboard = {"title": "Überblick", "panels": [{"expr": 'rate(a{b="$c"}[5m])'}]}
    groups = [{"name": "g", "rules": [{"record": "a:b:c", "expr": "sum(a)\n/ sum(b)\n"}]}]
    for name, text in (
        ("grafana/dashboards/LLM/llm-overview.json", json.dumps(dashboard, indent=1)),
        ("prometheus/rules/serving.yml", yaml.safe_dump({"groups": groups})),
        ("prometheus/alerts/gateway.yml", yaml.safe_dump({"groups": groups})),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    made = {name: list(yaml.safe_load_all(text)) for name, text in kubernetes.manifests(tmp_path).items()}
    (shown,) = made["dashboards.yaml"]
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert shown["metadata"]["annotations"] == {"grafana_folder": "LLM"}
    assert json.loads(shown["data"]["llm-overview.json"]) == dashboard
    assert [(rule["kind"], rule["metadata"]["name"]) for rule in made["prometheusrule.yaml"]] == [
        ("PrometheusRule", "llm-exporter-rules-serving"),
        ("PrometheusRule", "llm-exporter-alerts-gateway"),
    ]
    assert all(rule["spec"]["groups"] == groups for rule in made["prometheusrule.yaml"])
    (monitor,) = made["servicemonitor.yaml"]
    assert monitor["spec"]["selector"]["matchLabels"] == monitor["metadata"]["labels"]


def test_a_dashboard_that_no_configmap_holds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "grafana" / "dashboards" / "LLM" / "large.json"
    file.parent.mkdir(parents=True)
    file.write_text(" " * (kubernetes.LARGEST + 1))
    with pytest.raises(OSError, match="too large for a ConfigMap"):
        kubernetes.manifests(tmp_path)


def test_manifests_of_this_version_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "--kubernetes", str(tmp_path)]) == 0
    names = {"llm-exporter.yaml", "dashboards.yaml", "servicemonitor.yaml", "prometheusrule.yaml"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == names
    shown = [
        made["metadata"]["name"] for made in yaml.safe_load_all((tmp_path / "dashboards.yaml").read_text()) if made
    ]
    assert shown == sorted(file.stem for file in (ROOT / "grafana" / "dashboards").glob("*/*.json"))


def test_on_kubernetes_the_exporter_runs_on_its_configuration_behind_the_service_that_is_scraped(
    tmp_path: Path,
) -> None:
    bundle.write(tmp_path, for_kubernetes=True)
    file = tmp_path / "llm-exporter.yaml"
    made = {each["kind"]: each for each in yaml.safe_load_all(file.read_text())}
    assert set(made) == {"ConfigMap", "Deployment", "Service"}
    (name, text), *others = made["ConfigMap"]["data"].items()
    assert not others
    (tmp_path / name).write_text(text.replace("targets: []", "targets:").replace("# -", "-"))
    config = load(tmp_path / name, environ={"LITELLM_API_KEY": "sk-1"})  # the examples, once they are switched on
    assert [target.source for target in config.targets] == ["litellm", "auto"]
    pod = made["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = _parser().parse_args(container["args"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {str(options.config.parent): "configuration", str(options.state_directory): "state"}
    assert options.config.name == name
    (monitor,) = yaml.safe_load_all((tmp_path / "servicemonitor.yaml").read_text())
    service = made["Service"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    file.write_text("mine\n")
    bundle.write(tmp_path, for_kubernetes=True)
    assert file.read_text() == "mine\n"

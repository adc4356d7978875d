import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter.config.load import ConfigError, load
from exporter.config.model import Config, Limits, Score, TargetConfig
from exporter.config.secret import SecretError, WithKey

Kinds = Mapping[str, type[TargetConfig]]

BAD = Path(__file__).parent / "bad"
ENVIRON = {"SET": "x", "EMPTY": "", "CREDENTIALS_DIRECTORY": "/nonexistent"}


def written(folder: Path, text: str) -> Path:
    path = folder / "llm.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_every_mistake_is_listed_with_its_line_and_what_to_write(
    name: str, kinds: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigError) as refused:
        load(Path(f"{name}.yaml"), kinds, ENVIRON)
    assert str(refused.value) + "\n" == Path(f"{name}.txt").read_text()
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_every_expectation_has_its_bad_file() -> None:
    assert {path.stem for path in BAD.glob("*.txt")} == {path.stem for path in BAD.glob("*.yaml")}


@pytest.mark.parametrize("text", ["", "# only words\n", "---\n", "null\n", "{}", "\ufeff"])
def test_a_file_that_says_nothing_is_all_defaults(text: str, tmp_path: Path, kinds: Kinds) -> None:
    config = load(written(tmp_path, text), kinds)
    assert config == Config()
    assert config.address == (None, 9400)
    assert (config.interval, config.timeout, config.targets, config.detect) == (5.0, 10.0, (), False)
    assert config.limits == Limits()
    assert (config.limits.body, config.limits.series) == (256 * 2**20, 100_000)
    assert config.score == Score()
    assert (config.score.window, config.score.minimum_requests) == (900.0, 10)
    assert (config.score.latency, config.score.ttft) == (30.0, 2.0)


def test_a_whole_file_is_read(tmp_path: Path, kinds: Kinds) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    config = load(
        written(
            tmp_path,
            """
            listen: "[::1]:9400"
            interval: 500ms
            detect: true
            state_directory: /var/lib/llm-exporter
            reload: true
            log_level: debug
            log_format: json
            limits: {body: 1GiB, series: 7}
            score: {window: 1h, ttft: 250ms}
            targets:
              - http://gpu-1:8000/
              - source: litellm
                url: http://127.0.0.1:4000
                name: router-a
                api_key_file: ./key
                interval: 15s
                timeout: 1m30s
                labels: {team: search, on: "off"}
                keep: [team_alias]
                exclude: [llm_spend_usd_total]
                endpoint: /metrics/
              - {source: auto, url: https://gw, labels: {team: search}}
            """,
        ),
        kinds,
        {},
    )
    assert config.address == ("::1", 9400)
    assert (config.interval, config.detect, config.reload) == (0.5, True, True)
    assert (config.log_level, config.log_format, config.state_directory) == ("debug", "json", "/var/lib/llm-exporter")
    assert (config.limits.body, config.limits.series) == (2**30, 7)
    assert (config.score.window, config.score.ttft, config.score.latency) == (3600.0, 0.25, 30.0)
    plain, router, tls = config.targets
    assert plain == TargetConfig(source="auto", url="http://gpu-1:8000")
    assert plain.target_name == "gpu-1:8000"
    assert isinstance(router, WithKey)
    assert router.target_name == "router-a"
    assert (router.interval, router.timeout) == (15.0, 90.0)
    assert (router.labels, router.keep) == ({"team": "search", "on": "off"}, ("team_alias",))
    assert router.exclude == ("llm_spend_usd_total",)
    assert router.secret() == "sk-1"
    assert tls.target_name == "gw:443"


def test_a_list_of_urls_is_one_target_each(tmp_path: Path, kinds: Kinds) -> None:
    text = "targets: [{source: litellm, url: [http://a:1, 'http://[::1]:2'], api_key: k, labels: {team: search}}]"
    targets = load(written(tmp_path, text), kinds).targets
    assert [target.target_name for target in targets] == ["a:1", "[::1]:2"]
    assert all(isinstance(target, WithKey) and target.secret() == "k" for target in targets)
    assert all(target.labels == {"team": "search"} for target in targets)


def test_anchors_and_merges_save_writing_and_what_is_written_wins(tmp_path: Path, kinds: Kinds) -> None:
    text = """
    targets:
      - &one {source: litellm, url: http://a, interval: 1s, labels: &labels {team: search}}
      - {<<: *one, url: http://b}
      - {interval: 3s, <<: [{url: http://c}, *one]}
      - {url: http://d, labels: *labels}
    """
    targets = load(written(tmp_path, text), kinds).targets
    assert [(target.source, target.url, target.interval) for target in targets] == [
        ("litellm", "http://a", 1.0),
        ("litellm", "http://b", 1.0),
        ("litellm", "http://c", 3.0),
        ("auto", "http://d", None),
    ]
    assert targets[3].labels == {"team": "search"}


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, kinds: Kinds) -> None:
    text = "targets: [{url: http://a, labels: {a: yes, b: 12:30, c: 2026-01-01, d: '1', e: !!str 1, f: 0x1F}}]"
    labels = load(written(tmp_path, text), kinds).targets[0].labels
    assert labels == {"a": "yes", "b": "12:30", "c": "2026-01-01", "d": "1", "e": "1", "f": "0x1F"}


def test_files_that_cannot_be_read_are_named(tmp_path: Path, kinds: Kinds) -> None:
    for path, what in [
        (tmp_path / "none.yaml", "no such file (write the path of a YAML file)"),
        (tmp_path, "a folder (write the path of a YAML file)"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long (write the path of a YAML file)"),
    ]:
        with pytest.raises(ConfigError) as refused:
            load(path, kinds)
        assert refused.value.problems == (f"{path}: {what}",)


def test_a_file_over_one_mebibyte_is_refused(tmp_path: Path, kinds: Kinds) -> None:
    path = written(tmp_path, "#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(path, kinds)


def test_many_values_are_refused_before_they_are_checked(tmp_path: Path, kinds: Kinds) -> None:
    with pytest.raises(ConfigError, match="more than 100000 values"):
        load(written(tmp_path, f"targets: [{'1,' * 100_001}]"), kinds)


def test_the_kinds_are_those_of_the_sources_folders(tmp_path: Path) -> None:
    target = load(written(tmp_path, "targets: [{source: litellm, url: http://a, api_key: k}]")).targets[0]
    assert isinstance(target, WithKey)
    assert target.source == "litellm"


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_a_secret_is_never_printed(tmp_path: Path, kinds: Kinds) -> None:
    config = load(written(tmp_path, "targets: [{source: litellm, url: http://a, api_key: hunter2}]"), kinds)
    target = config.targets[0]
    for text in (repr(config), str(config), config.model_dump_json(), repr(target), str(config.model_dump())):
        assert "hunter2" not in text
    assert "api_key" in config.model_dump_json()
    assert isinstance(target, WithKey)
    assert target.secret() == "hunter2"


def test_a_refused_secret_is_not_in_the_models_own_words() -> None:
    with pytest.raises(ValidationError) as refused:
        WithKey.model_validate({"url": "http://a", "api_key": ["hunter2"], "hunter": "hunter2"})
    assert "hunter2" not in str(refused.value)


def test_a_file_with_a_secret_is_read_anew_each_time(tmp_path: Path, kinds: Kinds) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    text = f"targets: [{{source: litellm, url: http://a, api_key_file: {key}}}]"
    target = load(written(tmp_path, text), kinds).targets[0]
    assert isinstance(target, WithKey)
    assert target.secret() == "first"
    key.write_bytes(b"second\r\n")
    assert target.secret() == "second"
    key.write_text(" third ")
    assert target.secret() == " third "
    key.unlink()
    with pytest.raises(SecretError, match=r"^no such file: .*key' \(write the path of a file"):
        target.secret()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\nhunter2\n", "holds more than one line"),
        (b"hunter2\n\n", "holds more than one line"),
        (b"hunter2\xff", "not text"),
        (b"hunter2\x00", "holds more than one line"),
        (b"hunter2" * 10_000, "holds more than one line"),
    ],
)
def test_what_is_not_one_line_of_text_is_no_secret(content: bytes, what: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    with pytest.raises(SecretError, match=what) as refused:
        WithKey(source="litellm", url="http://a", api_key_file=str(key)).secret()
    assert "hunter2" not in str(refused.value)
    assert str(key) in str(refused.value)


def test_a_pipe_is_no_file_with_a_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SecretError, match="not a file"):
        WithKey(source="litellm", url="http://a", api_key_file=str(tmp_path / "pipe")).secret()


def test_a_secret_that_may_not_be_read_says_whom_to_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # root, as whom tests may run, is refused nothing
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SecretError, match="may not be read"):
        WithKey(source="litellm", url="http://a", api_key_file=str(tmp_path / "key")).secret()


def test_a_name_without_a_slash_is_a_credential_of_systemd(tmp_path: Path, kinds: Kinds) -> None:
    (tmp_path / "litellm").write_text("sk-1\n")
    text = "targets: [{source: litellm, url: http://a, api_key_file: litellm}]"
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    target = load(written(tmp_path, text), kinds, environ).targets[0]
    assert isinstance(target, WithKey)
    assert target.secret(environ) == "sk-1"
    with pytest.raises(SecretError, match="CREDENTIALS_DIRECTORY is not set"):
        target.secret({})
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        load(written(tmp_path, text), kinds, {})


def test_a_path_that_is_not_whole_starts_at_the_folder_of_the_file(
    tmp_path: Path, kinds: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "litellm").write_text("sk-1")
    monkeypatch.chdir("/")
    text = "targets: [{source: litellm, url: http://a, api_key_file: keys/litellm}]"
    target = load(written(tmp_path, text), kinds, {}).targets[0]
    assert isinstance(target, WithKey)
    assert target.secret() == "sk-1"


def test_a_variable_holds_a_secret(tmp_path: Path, kinds: Kinds) -> None:
    text = "targets: [{source: litellm, url: http://a, api_key_env: LITELLM_KEY}]"
    target = load(written(tmp_path, text), kinds, {"LITELLM_KEY": "sk-1"}).targets[0]
    assert isinstance(target, WithKey)
    assert target.secret({"LITELLM_KEY": "sk-2"}) == "sk-2"
    with pytest.raises(SecretError, match="LITELLM_KEY is not set"):
        target.secret({})


def test_a_target_without_a_key_has_none() -> None:
    assert WithKey(source="litellm", url="http://a").secret() is None


# -- the model in the program's hands ------------------------------------------------------------------------------


def test_what_is_dumped_is_taken_again() -> None:
    target = TargetConfig(url="http://a:1", interval="1m30s", timeout="2s", labels={"team": "x"}, keep=("user",))  # type: ignore[arg-type] # durations are written as text
    assert TargetConfig(**target.model_dump()) == target
    config = Config(detect=True, limits=Limits(body="64KiB"))  # type: ignore[arg-type] # sizes are written as text
    assert Config(**config.model_dump()) == config


# -- whatever is written -------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *Config.model_fields,
        *WithKey.model_fields,
        *Limits.model_fields,
        *Score.model_fields,
        "[key]",
        "targets",
        "<<",
        "",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(max_size=20),
    st.sampled_from(["5s", "http://a", "litellm", "auto", "team", "llm_requests_total", ":9400", "SET"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | SCALARS, inner, max_size=6),
    max_leaves=20,
)
TARGETS = st.lists(st.dictionaries(st.sampled_from(sorted(WithKey.model_fields)), VALUES), max_size=4)
DOCUMENTS = st.dictionaries(st.sampled_from(sorted(Config.model_fields)), VALUES).flatmap(
    lambda rest: TARGETS.map(lambda targets: {**rest, "targets": targets})
)
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def taken_or_refused(path: Path, kinds: Kinds) -> None:
    problems: tuple[str, ...] = ()
    try:
        assert isinstance(load(path, kinds, ENVIRON), Config)
    except ConfigError as refused:
        problems = refused.problems or ("",)
    for problem in problems:
        assert problem.startswith(f"{path}:")
        assert problem.endswith(")")
        assert len(problem.splitlines()) == 1


@QUICK
@given(text=st.text() | st.text(alphabet="a:-[]{}&*!|>'\"%@`#,? \n\t<"))
def test_any_text_is_taken_or_refused(text: str, tmp_path: Path, kinds: Kinds) -> None:
    path = tmp_path / "llm.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    taken_or_refused(path, kinds)


@QUICK
@given(content=st.binary())
def test_any_bytes_are_taken_or_refused(content: bytes, tmp_path: Path, kinds: Kinds) -> None:
    path = tmp_path / "llm.yaml"
    path.write_bytes(content)
    taken_or_refused(path, kinds)


@QUICK
@given(data=VALUES | DOCUMENTS)
def test_any_data_is_taken_or_refused(data: Any, tmp_path: Path, kinds: Kinds) -> None:
    taken_or_refused(written(tmp_path, yaml.dump(data, allow_unicode=True)), kinds)


@pytest.mark.parametrize("name", sorted(path.stem for path in (BAD.parent / "real").glob("*.yaml")))
def test_mistakes_in_targets_of_real_sources_are_listed_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD.parent / "real")
    with pytest.raises(ConfigError) as refused:
        load(Path(f"{name}.yaml"), environ=ENVIRON)
    assert str(refused.value) + "\n" == Path(f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ("source: litellm, url: http://a", "not over TLS: 'http://a' (write https://, or leave tls out)"),
        ("source: litellm, url: http://a, metrics_endpoint: https://a/metrics/", ""),
        ("source: dynamo, etcd: [http://a], frontends: [http://b]", "not over TLS: 'http://a'"),
        ("source: dynamo, etcd: [http://a], frontends: [https://b]", ""),
        ("source: nats, url: http://a:8222", "not over TLS: 'http://a:8222'"),
        ("source: nats, url: http://a:8222, server: nats://a", ""),
        ("source: redis, server: redis://a", "not over TLS: 'redis://a:6379' (write rediss://, or leave tls out)"),
        ("source: redis, server: rediss://a", ""),
        ("source: http, url: http://a/health", "not over TLS: 'http://a/health'"),
        ("source: http, host: a, port: 1", ""),
        ("source: gpu", "nothing is read over TLS here (leave tls out)"),
    ],
)
def test_tls_of_what_is_read_in_plain_is_refused(target: str, refused: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"targets:\n  - {{{target}, tls: {{}}}}\n")
    if not refused:
        assert load(file).targets
        return
    with pytest.raises(ConfigError) as error:
        load(file)
    assert f"{file}:2: targets.0.tls: {refused}" in str(error.value)

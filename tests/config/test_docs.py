import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from exporter.config.load import configured_kinds, load
from exporter.config.model import Config, Limits, Score, TargetConfig, Thresholds, Tls

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", DOCS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schema(make: ModuleType) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(make.schema())
    return made


def test_what_is_made_is_not_stale(make: ModuleType) -> None:
    assert make.stale() == [], "run python docs/make.py"


def test_stale_files_are_named_and_made_again(
    make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    monkeypatch.setattr(make, "HERE", page.parent)
    monkeypatch.setattr(make, "MADE", {page: lambda: "new\n"})
    assert make.main(["--check"]) == 1
    assert not page.exists()
    assert "docs/page.md: stale" in capsys.readouterr().err
    assert make.main([]) == 0
    assert page.read_text() == "new\n"
    assert make.main(["--check"]) == 0


def test_the_page_opens_with_an_example_that_is_taken(
    make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```yaml\n(.*?)```", make.configuration(), re.DOTALL)
    assert found is not None
    (tmp_path / "litellm-key").write_text("sk-1\n")
    monkeypatch.setattr(Tls, "context", lambda _: None)  # whose files are nobody's
    for name in ("ca.pem", "exporter.pem", "exporter.key"):
        (tmp_path / name).write_text("")
    file = tmp_path / "llm-exporter.yaml"
    file.write_text(found[1])
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "LITELLM_API_KEY": "sk-2"}
    names = [target.target_name for target in load(file, environ=environ).targets]
    assert names == ["gpu-1:8000", "router-a", "gw-1:4000", "gw-2:4000", "search", "ssh"]


@pytest.mark.parametrize("model", [Config, Limits, Score, Thresholds, TargetConfig])
def test_the_example_shows_every_key(model: type[BaseModel], make: ModuleType) -> None:
    for key in model.model_fields:
        assert re.search(rf"^[ -]*{key}:", make.EXAMPLE, re.MULTILINE), key


def test_every_key_is_described(make: ModuleType) -> None:
    page = make.configuration()
    models: list[type[BaseModel]] = [Config, Limits, Score, Thresholds, Tls, *configured_kinds().values()]
    for model in models:
        for key, field in model.model_fields.items():
            if issubclass(model, TargetConfig) and key in TargetConfig.model_fields:
                field = TargetConfig.model_fields[key]  # said once, in the words of the common model
            assert field.description, key
            section = model is Config and key in ("targets", "limits", "score", "thresholds")
            assert f"## `{key}`" in page if section else field.description in page, key


def test_the_script_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, DOCS / "make.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- the schema --------------------------------------------------------------------------------------------------------

UNDERSTOOD = {
    *("$schema", "$defs", "title", "description", "default", "format", "writeOnly"),  # nothing to check
    *("$ref", "anyOf", "not", "type", "const", "enum", "pattern", "minLength", "maxLength", "minItems"),
    *("minimum", "maximum"),
    *("items", "properties", "patternProperties", "propertyNames", "additionalProperties", "required"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def valid(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Whether a value is as the schema wants it: JSON Schema, as far as ours goes."""
    assert set(schema) <= UNDERSTOOD, set(schema) - UNDERSTOOD
    if "$ref" in schema:
        place = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        if not valid(value, place, root):
            return False
    if "anyOf" in schema and not any(valid(value, choice, root) for choice in schema["anyOf"]):
        return False
    if "not" in schema and valid(value, schema["not"], root):
        return False
    if "type" in schema:
        wanted = TYPES[schema["type"]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return False
        if not re.search(schema.get("pattern", ""), value):
            return False
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return False
        if not all(valid(item, schema.get("items", {}), root) for item in value):
            return False
    if isinstance(value, dict):
        if not set(schema.get("required", ())) <= value.keys():
            return False
        for key, inner in value.items():
            if not valid(key, schema.get("propertyNames", {}), root):
                return False
            found = [schema["properties"][key]] if key in schema.get("properties", {}) else []
            found += [each for name, each in schema.get("patternProperties", {}).items() if re.search(name, key)]
            if not found and not schema.get("additionalProperties", True):
                return False
            if not all(valid(inner, each, root) for each in found):
                return False
    return True


def test_the_schema_takes_the_example(make: ModuleType, schema: dict[str, Any]) -> None:
    assert valid(yaml.safe_load(make.EXAMPLE), schema, schema)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "targets: ['http://gpu-1:8000', {url: 'http://a'}, {source: litellm, url: ['http://a/b', 'http://c']}]",
        "interval: 1m30s",
        "limits: {body: 64KiB}",
        "listen: '[::1]:9400'",
    ],
)
def test_the_schema_takes_what_may_be_written(text: str, schema: dict[str, Any]) -> None:
    assert valid(yaml.safe_load(text), schema, schema)


@pytest.mark.parametrize(
    "text",
    [
        "intervall: 5s",
        "interval: 2sec",
        "interval: 5",
        "interval: ''",
        "interval: null",
        "limits: {bodi: 64KiB}",
        "score: {minimum_requests: 0}",
        "targets: ['gpu-1:8000']",
        "targets: ['http://u:p@gpu-1:8000']",
        "targets: [{url: 'http://a', colour: blue}]",
        "targets: [{url: 'http://a', api_key: k}]",
        "targets: [{source: litellm}]",
        "targets: [{source: litellm, url: []}]",
        "targets: [{source: teapot, url: 'http://a'}]",
        "targets: [{url: 'http://a', labels: {job: x}}]",
        "targets: [{url: 'http://a', labels: {team-name: x}}]",
        "targets: [{url: 'http://a', labels: {__team: x}}]",
        "targets: [{url: 'http://a', keep: [model]}]",
        "targets: [{url: 'http://a', exclude: [up]}]",
        "targets: http://a",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str, schema: dict[str, Any], tmp_path: Path) -> None:
    assert not valid(yaml.safe_load(text), schema, schema)
    file = tmp_path / "llm.yaml"
    file.write_text(text)
    with pytest.raises(Exception, match=r"llm\.yaml:1: "):
        load(file)

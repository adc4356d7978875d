"""Which alerts a simulated day raises: `tests/run day`, forty minutes; `tests/run day 16` from 16:00 on.

Runs `llm-exporter demo` and a Prometheus (Debian's) with our configuration, rules and alerts, writes down each alert
while it fires, and holds it against what went wrong at that hour. Ends with 1 where one is missing or out of place.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real")]

import stack  # noqa: E402 - found by the line above

from exporter.demo.world import MORNING, TROUBLES  # noqa: E402 - the same

SPEED = 24.0
AFTER = 4.5
"""Simulated hours after a trouble in which its alerts may still fire: rates look back up to 10 real minutes."""
END = 24.5
LOOK = 5.0
"""Seconds between two looks."""

EXPECTED: dict[str, dict[str, str]] = {
    "provider": {"LLMProviderFailing": "azure"},
    "engine": {"LLMTargetStalled": "vllm-b"},
    "worker": {
        "LLMDynamoInstanceLost": "backend",
        "LLMNatsSlowConsumers": "nats",
        "LLMUnitFailed": "dynamo-worker@2.service",
    },
    "gpu": {"LLMGPUHot": "5"},
    "limits": {"LLMNoHealthyDeployment": "claude-sonnet-4"},
    "service": {"LLMServiceDown": "search"},
    "cache": {"LLMCacheBackendDown": "litellm"},
    "unit": {
        "LLMUnitRestartLoop": "reranker.service",
        "LLMUnitFailed": "reranker.service",
        "LLMFailuresThresholdPassed": "reranker.service",
        "LLMServiceDown": "reranker",
        "LLMGPUXID": "6",
    },
}
"""What must fire while something goes wrong, each with the value that one of its labels has."""
ALLOWED: dict[str, tuple[str, ...]] = {
    "engine": ("LLMProviderFailing",),
    "gpu": ("LLMProviderFailing", "LLMGPUThrottled"),
    "limits": ("LLMProviderFailing",),
    "cache": ("LLMTargetDown", "LLMTargetReadsFailing"),
}
"""What else may fire then: it follows from the same trouble."""
REAL = "this-machine"
"""What is really read: whether it is busy or full is no doing of the day's."""
LATE = {"LLMProviderScoreLow", "LLMErrorBudgetBurningFast", "LLMErrorBudgetBurningSlow", "LLMTTFTObjectiveMissed"}
"""What follows from a trouble, and may do so for hours: it looks back further than a day here lasts."""


def prometheus(folder: Path, target: str) -> stack.Server:
    """With the repository's own configuration, on a port of its own."""
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text("utf-8"))
    config["rule_files"] = [str(ROOT / "prometheus" / pattern) for pattern in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = stack.free_port()
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    return stack.Server(command, port, folder / "prometheus.log", ready="/-/ready")


def firing(url: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The alerts that fire now, with their labels."""
    with urlopen(f"{url}/api/v1/alerts", timeout=10) as answer:
        for alert in json.loads(answer.read())["data"]["alerts"]:
            if alert["state"] == "firing":
                yield alert["labels"]["alertname"], alert["labels"]


def main(start: float = MORNING) -> int:
    seen: dict[tuple[str, ...], list[float]] = {}
    wrong: dict[tuple[str, ...], float] = {}
    met: set[tuple[str, str]] = set()
    with ExitStack() as stacked:
        folder = Path(stacked.enter_context(tempfile.TemporaryDirectory()))
        demo = stack.demo(folder, "--speed", f"{SPEED:g}", "--hour", f"{start}")
        stacked.enter_context(stack.running(demo))
        began = time.time()
        server = prometheus(folder, demo.url)
        stacked.enter_context(stack.running(server))
        while (hour := start + (time.time() - began) * SPEED / 3600) < END:
            for name, labels in firing(server.url):
                shown = tuple(
                    f"{label}={value}"
                    for label, value in sorted(labels.items())
                    if label not in ("alertname", "job", "instance", "severity")
                )
                hours = seen.setdefault((name, *shown), [hour, hour])
                if hours == [hour, hour]:
                    print(f"{hour:5.2f} {name} {' '.join(shown)}", flush=True)
                hours[1] = hour
                now = [trouble for trouble, (begin, end) in TROUBLES.items() if begin <= hour <= end + AFTER]
                for trouble in now:
                    if EXPECTED[trouble].get(name, "-") in ("", *labels.values()):
                        met.add((trouble, name))
                allowed = {alert for trouble in now for alert in (*EXPECTED[trouble], *ALLOWED.get(trouble, ()))}
                if name not in allowed | LATE and labels.get("target") != REAL:
                    wrong.setdefault((name, *shown), hour)
            time.sleep(LOOK)
    print("\n| from | to | alert | |\n| --- | --- | --- | --- |")
    for (name, *shown), (first, last) in sorted(seen.items(), key=lambda item: item[1]):
        print(f"| {first:.2f} | {last:.2f} | {name} | {' '.join(shown)} |")
    due = {trouble: names for trouble, names in EXPECTED.items() if TROUBLES[trouble][0] >= start}
    missing = [(trouble, name) for trouble, names in due.items() for name in names if (trouble, name) not in met]
    for trouble, name in missing:
        print(f"missing: {name}, while {trouble}", file=sys.stderr)
    for (name, *shown), hour in wrong.items():
        print(f"out of place: {name} at {hour:.2f}: {' '.join(shown)}", file=sys.stderr)
    return int(bool(missing or wrong))


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2])))

"""How each participant of the benchmark is told to do its job: its command, its configuration, and where its page is.

What every peer can do in its ordinary way is asked of it: Prometheus sums by recording rules, the collector by a
processor, prometheus-client in Python. The agent, vmagent and Telegraf only keep the same samples; they sum nothing.
JSON is YAML, so that is what the configurations are written in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builds import VERSIONS, program
from job import JOBS, Job

HERE = Path(__file__).parent
US = "llm-exporter"


@dataclass(frozen=True, slots=True)
class Run:
    """One participant's turn."""

    size: str
    interval: int
    instance: str  # path of the instance that is read
    upstream: str  # host:port of upstream.py
    port: int  # where the participant's own page has to be
    folder: Path

    @property
    def job(self) -> Job:
        return JOBS[self.size]

    @property
    def mark(self) -> str:
        """What a page with the job's samples has."""
        return f"{self.job.histograms[0]}_bucket{{"

    @property
    def url(self) -> str:
        return f"http://{self.upstream}{self.instance}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def sink(self) -> str:
        return f"http://{self.upstream}/sink"

    def write(self, name: str, text: str) -> str:
        """A file of the participant's own."""
        file = self.folder / name
        file.write_text(text)
        return str(file)


@dataclass(frozen=True, slots=True)
class Start:
    """A command, what its page must have, and the page's path; None where it sends on what it made instead."""

    command: list[str]
    mark: str = ""
    page: str | None = "/metrics"


@dataclass(frozen=True, slots=True)
class Participant:
    """Who takes part: a row of the table, how it is started, and the program (builds.py) that is built for it."""

    title: str
    start: Callable[[Run], Start]
    program: str | None = None


def _scraping(run: Run, **more: Any) -> dict[str, Any]:
    """Prometheus' own configuration, which three others understand as well."""
    seconds = f"{run.interval}s"
    keep = {"source_labels": ["__name__"], "regex": run.job.samples, "action": "keep"}
    return {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds, **more},
        "scrape_configs": [
            {
                "job_name": "bench",
                "metrics_path": f"{run.instance}/metrics",
                "static_configs": [{"targets": [run.upstream]}],
                "metric_relabel_configs": [keep],
            }
        ],
    }


def _rules(run: Run) -> Start:
    by = ", ".join(run.job.labels)
    sums = [(f"{name}_bucket", f"{by}, le") for name in run.job.histograms]
    sums += [(f"{name}{part}", by) for name in run.job.histograms for part in ("_count", "_sum")]
    sums += [(name, by) for name in run.job.others]
    rules = [{"record": f"summed:{name}", "expr": f"sum by ({labels}) ({name})"} for name, labels in sums]
    written = run.write("rules.json", json.dumps({"groups": [{"name": "bench", "rules": rules}]}))
    config = {**_scraping(run, evaluation_interval=f"{run.interval}s"), "rule_files": [written]}
    command = _prometheus(run, config, "--storage.tsdb.path")
    return Start(command, run.mark, "/federate?match[]=%7B__name__%3D~%22summed:.*%22%7D")


def _agent(run: Run) -> Start:
    config = {**_scraping(run), "remote_write": [{"url": run.sink}]}
    return Start([*_prometheus(run, config, "--storage.agent.path"), "--agent"], page=None)


def _prometheus(run: Run, config: dict[str, Any], storage: str) -> list[str]:
    file = run.write("prometheus.json", json.dumps(config))
    return [
        str(program("prometheus")),
        f"--config.file={file}",
        f"--web.listen-address={run.address}",
        f"{storage}={run.folder}/data",
        "--log.level=error",
    ]


def _collector(run: Run) -> Start:
    add = {"action": "aggregate_labels", "label_set": list(run.job.labels), "aggregation_type": "sum"}
    transform = {"include": "^(litellm|vllm)", "match_type": "regexp", "action": "update", "operations": [add]}
    config = {
        "receivers": {"prometheus": {"config": _scraping(run)}},
        "processors": {"metricstransform": {"transforms": [transform]}},
        "exporters": {"prometheus": {"endpoint": run.address}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            "pipelines": {
                "metrics": {
                    "receivers": ["prometheus"],
                    "processors": ["metricstransform"],
                    "exporters": ["prometheus"],
                }
            },
        },
    }
    file = run.write("collector.yaml", json.dumps(config))
    return Start([str(program("collector")), f"--config={file}"], run.mark)


_TELEGRAF = """\
[agent]
  interval = "{interval}s"
  flush_interval = "{interval}s"
  metric_batch_size = 200000
  metric_buffer_limit = 400000
  omit_hostname = true
  quiet = true
[[inputs.prometheus]]
  urls = ["{url}/metrics"]
  metric_version = 2
  fieldinclude = {fields}
[[outputs.prometheus_client]]
  listen = "{address}"
  metric_version = 2
  collectors_exclude = ["gocollector", "process"]
"""


def _telegraf(run: Run) -> Start:
    fields = json.dumps([f"{name}*" for name in run.job.families])
    config = _TELEGRAF.format(interval=run.interval, url=run.url, fields=fields, address=run.address)
    return Start([str(program("telegraf")), "--config", run.write("telegraf.conf", config)], run.mark)


def _vmagent(run: Run) -> Start:
    file = run.write("scrape.json", json.dumps(_scraping(run)))
    command = [
        str(program("vmagent")),
        f"-promscrape.config={file}",
        "-promscrape.maxScrapeSize=256MB",
        f"-remoteWrite.url={run.sink}",
        f"-remoteWrite.tmpDataPath={run.folder}/data",
        f"-httpListenAddr={run.address}",
        "-loggerLevel=ERROR",
    ]
    return Start(command, page=None)


def _client(run: Run) -> Start:
    script = [str(program("prometheus-client")), str(HERE / "client_peer.py")]
    return Start([*script, str(run.port), str(run.interval), run.size, f"{run.url}/metrics"], run.mark)


def ours(port: int, interval: int, urls: list[str]) -> list[str]:
    """The command of the exporter with these targets."""
    return [sys.executable, str(HERE / "daemon.py"), str(port), str(interval), *urls]


def _us(run: Run) -> Start:
    return Start(ours(run.port, run.interval, [run.url]), "llm_request_duration_seconds_bucket{")


def _peer(name: str, how: str, start: Callable[[Run], Start]) -> Participant:
    return Participant(f"{name} {VERSIONS[name]}, {how}", start, name)


PARTICIPANTS = {
    US: Participant(US, _us),
    "rules": _peer("prometheus", "recording rules", _rules),
    "agent": _peer("prometheus", "agent (no sums)", _agent),
    "collector": _peer("collector", "summing", _collector),
    "telegraf": _peer("telegraf", "no sums", _telegraf),
    "vmagent": _peer("vmagent", "no sums", _vmagent),
    "client": _peer("prometheus-client", "summing", _client),
}
"""By the name that `--peers` knows."""

"""The same for Kubernetes: the exporter, ConfigMaps for Grafana's sidecar, and the Prometheus operator's resources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from exporter import __version__

NAME = "llm-exporter"
LABELS = {"app.kubernetes.io/name": NAME}
LARGEST = 1_000_000
"""Bytes of a dashboard: a ConfigMap holds no more than a MiB."""

CONFIGURATION = """\
# Every key: docs/configuration.md. Keys stand in the Secret llm-exporter, by the names of variables.
targets: []
# - {source: litellm, url: "http://litellm.NAMESPACE:4000", api_key_env: LITELLM_API_KEY}
# - http://vllm.NAMESPACE:8000
"""

Manifest = dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, and all in full: no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - its parent's signature
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def manifests(shipped: Path) -> dict[str, str]:
    """The manifests, by the name of their file. Raises OSError where what is shipped cannot be read."""
    return {
        "llm-exporter.yaml": _documents(_exporter()),
        "dashboards.yaml": _documents(_dashboards(shipped / "grafana" / "dashboards")),
        "servicemonitor.yaml": _documents([_service_monitor()]),
        "prometheusrule.yaml": _documents(_rules(shipped / "prometheus")),
    }


def _documents(documents: Iterable[Manifest]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _about(kind: str, version: str, name: str, labels: dict[str, str], **more: Any) -> Manifest:
    metadata: Manifest = {"name": name, "labels": {**LABELS, **labels}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def _exporter() -> Iterable[Manifest]:
    """The exporter itself: its configuration, one pod that may do nothing else, and the Service that is scraped."""
    yield _about("ConfigMap", "v1", NAME, {}, data={"llm-exporter.yaml": CONFIGURATION})
    container = {
        "name": NAME,
        "image": f"{NAME}:{__version__}",
        "args": ["--config", "/etc/llm-exporter/llm-exporter.yaml", "--state-directory", "/var/lib/llm-exporter"],
        "envFrom": [{"secretRef": {"name": NAME, "optional": True}}],
        "ports": [{"name": "metrics", "containerPort": 9400}],
        "livenessProbe": {"httpGet": {"path": "/-/healthy", "port": "metrics"}},
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": "metrics"}},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "configuration", "mountPath": "/etc/llm-exporter", "readOnly": True},
            {"name": "state", "mountPath": "/var/lib/llm-exporter"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "configuration", "configMap": {"name": NAME}}, {"name": "state", "emptyDir": {}}],
    }
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    yield _about("Deployment", "apps/v1", NAME, {}, spec=spec)
    ports = [{"name": "metrics", "port": 9400, "targetPort": "metrics"}]
    yield _about("Service", "v1", NAME, {}, spec={"selector": LABELS, "ports": ports})


def _dashboards(folder: Path) -> Iterable[Manifest]:
    """One ConfigMap for each dashboard, labelled as the sidecar of Grafana's chart wants it."""
    for file in sorted(folder.glob("*/*.json")):
        text = file.read_text(encoding="utf-8")
        if len(text.encode()) > LARGEST:
            raise OSError(27, "is too large for a ConfigMap", str(file))
        made = _about("ConfigMap", "v1", file.stem, {"grafana_dashboard": "1"}, data={file.name: text})
        made["metadata"]["annotations"] = {"grafana_folder": file.parent.name}
        yield made


def _service_monitor() -> Manifest:
    """Scrapes each Service that is labelled as the exporter's, in its namespace, at its port `metrics`."""
    spec = {"selector": {"matchLabels": LABELS}, "endpoints": [{"port": "metrics", "interval": "15s"}]}
    return _about("ServiceMonitor", "monitoring.coreos.com/v1", NAME, {}, spec=spec)


def _rules(folder: Path) -> Iterable[Manifest]:
    """One PrometheusRule for each file of rules and of alerts."""
    for part in ("rules", "alerts"):
        for file in sorted((folder / part).glob("*.yml")):
            groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
            name = f"{NAME}-{part}-{file.stem}"
            yield _about("PrometheusRule", "monitoring.coreos.com/v1", name, {}, spec={"groups": groups})

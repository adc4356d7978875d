"""What the dashboards ask: every query of their panels, annotations and variables, as Prometheus would get it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "grafana" / "dashboards").glob("*/*.json"))
STEP, SPAN = "75s", "1h"
"""What Grafana would put for $__rate_interval and $__range."""


@dataclass(frozen=True)
class Question:
    place: str
    expr: str
    legend: str = ""
    instant: bool = False

    @property
    def is_variable(self) -> bool:
        return self.place.split(": ")[1].startswith("$")

    @property
    def expr_with_ranges(self) -> str:
        """The expression with the variables of labels left as they are."""
        return self.expr.replace("$__rate_interval", STEP).replace("$__range", SPAN)

    @property
    def asked(self) -> str:
        """The expression with the variables put in, All of each; of a variable with one value, any."""
        text = re.sub(r'="\$\w+"', '=~".+"', self.expr_with_ranges)
        return re.sub(r'=~"\$(\w+)"', lambda found: f'=~"{"[^ ]+" if found[1] in ("job", "instance") else ".*"}"', text)


def dashboards() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text("utf-8")) for file in FILES}


def of_panels(dashboard: dict[str, Any]) -> Iterator[Question]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            place = f"{dashboard['uid']}: {panel['title']} ({target['refId']})"
            yield Question(place, target["expr"], target["legendFormat"], target.get("instant", False))


def of_annotations(dashboard: dict[str, Any]) -> Iterator[Question]:
    for annotation in dashboard["annotations"]["list"]:
        yield Question(f"{dashboard['uid']}: {annotation['name']}", annotation["expr"], annotation["titleFormat"])


def of_variables(dashboard: dict[str, Any]) -> Iterator[Question]:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"(?:label_values|query_result)\((.+?)(?:, (\w+))?\)", variable["query"]["query"])
            assert inner is not None, variable
            yield Question(
                f"{dashboard['uid']}: ${variable['name']}", inner[1], f"{{{{{inner[2]}}}}}" if inner[2] else ""
            )


def everything() -> list[Question]:
    return [
        question
        for dashboard in dashboards().values()
        for part in (of_panels, of_annotations, of_variables)
        for question in part(dashboard)
    ]

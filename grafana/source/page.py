"""The frame that all dashboards share: variables, links between siblings, annotations, rows that fill the grid."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus as prom
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from grafana.source.panels import DATASOURCE, Panel
from grafana.source.query import OURS, gain, pick, select
from grafana.source.style import BAD, BUSY, SEVERITIES

TAG = "llm"

EXPORTER = (
    "The exporters. Replicas of one that share an instance count once (docs/prometheus.md); of several that read the"
    " same targets and have an instance each, choose one: they would count twice."
)
"""What is said of the variable `instance`."""

ROWS = ("Now", "Over time", "Traffic", "Failures", "Latency", "Load", "Caches", "Money", "Parts", "Each", "Beside it")
"""What rows are about, in the order that they have on every dashboard; a row may say more after a colon."""

SCHEMA_VERSION = 39
"""The Classic JSON that Grafana 10 to 13 take from files; newer ones migrate it upward."""


def variable(name: str, label: str, family: str, *matchers: str, absent: bool = False) -> build.QueryVariable:
    """Values of a label of ours, several or all. `absent`: All takes in the series that lack the label, too."""
    made = _values(name, label, f"label_values({select(family, *matchers)}, {name})").multi(True).include_all(True)
    made.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made.all_value(".*") if absent else made


def choice(name: str, label: str, family: str, *matchers: str) -> build.QueryVariable:
    """One value of a label of ours. Of layers the last by name comes first: the gateway, where there is one."""
    made = _values(name, label, f"label_values({select(family, *matchers)}, {name})")
    return made.sort(dashboard.VariableSort.ALPHABETICAL_DESC)


def found(name: str, label: str, selector: str, regex: str) -> build.QueryVariable:
    """Several or all of what a regular expression with groups `text` and `value` finds in series."""
    made = _values(name, label, f"query_result({selector})").regex(regex).multi(True).include_all(True)
    return made.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))


def _values(name: str, label: str, query: str) -> build.QueryVariable:
    made = build.QueryVariable(name).label(label).datasource(DATASOURCE).definition(query)
    made.query({"query": query, "refId": f"variable-{name}", "qryType": 5})  # 5: as written in `query`
    return made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.ALPHABETICAL_ASC)


FIRING = 'ALERTS{alertstate="firing",alertname=~"LLM.+"}'
"""Alerts of ours that fire. They need not have a job or an instance: some are of all."""


class Page:
    """One dashboard in the making. `row` by `row`, then `text`, the file."""

    def __init__(self, uid: str, title: str, text: str, *variables: build.QueryVariable) -> None:
        self.uid = uid
        self._y = 0
        self._next = 1
        self._place = 0
        self._panels: list[dashboard.Panel | dashboard.RowPanel] = []
        self._made = build.Dashboard(title).uid(uid).description(text).tags([TAG]).time("now-1h", "now").refresh("30s")
        self._made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR).editable()
        self._made.with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        self._made.with_variable(_target_label("job", "Job"))
        exporter = _target_label("instance", "Instance", 'job=~"$job"')
        self._made.with_variable(exporter.description(EXPORTER))
        for each in variables:
            self._made.with_variable(each)
        siblings = build.DashboardLink("LLM dashboards").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
        self._made.link(siblings.as_dropdown(True).include_vars(True).keep_time(True).icon("external link"))
        for annotation in _annotations():
            self._made.annotation(annotation)

    def row(self, title: str, *panels: Panel, repeat: str | None = None) -> None:
        """Panels from left to right under a title, in lines of one height that fill the width.

        Raises ValueError where the row is out of its order (`ROWS`), or a line has a gap or is too wide.
        """
        about = title.split(":")[0]
        place = ROWS.index(about)
        if place < self._place:
            raise ValueError(f"{self.uid}: the row {title!r} comes too late, rows are in the order {ROWS}")
        self._place = place
        head = build.Row(title).grid_pos(dashboard.GridPos(h=1, w=24, x=0, y=self._y)).id(self._id())
        self._panels.append((head.repeat(repeat) if repeat else head).build())
        self._y += 1
        x = height = 0
        for builder in panels:
            panel = builder.id(self._id()).build()
            position = panel.grid_pos
            if position is None or (x and position.h != height) or x + position.w > 24:
                raise ValueError(f"{self.uid}: {panel.title!r} does not fit into its line")
            height = position.h
            position.x, position.y = x, self._y
            self._panels.append(panel)
            x += position.w
            if x == 24:
                self._y += height
                x = 0
        if x:
            raise ValueError(f"{self.uid}: the last line of the row {title!r} has a gap")

    def text(self) -> str:
        """The dashboard as Grafana takes it from a file, the same bytes for the same source."""
        made: dict[str, Any] = json.loads(json.dumps(self._made.build(), cls=JSONEncoder))
        made["panels"] = json.loads(json.dumps(self._panels, cls=JSONEncoder))
        made["schemaVersion"] = SCHEMA_VERSION
        made["__requires"] = [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.0.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        ]
        _unhidden(made)
        return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _id(self) -> int:
        taken = self._next
        self._next += 1
        return taken


def _unhidden(made: Any) -> None:
    """Take links and annotations out of the menu that the SDK puts them in, where nobody finds them."""
    if isinstance(made, dict):
        if made.get("placement") == dashboard.DashboardLinkPlacement.IN_CONTROLS_MENU:
            del made["placement"]
        made = list(made.values())
    if isinstance(made, list):
        for part in made:
            _unhidden(part)


def _target_label(name: str, label: str, *matchers: str) -> build.QueryVariable:
    """The job or the instance of exporters of ours, whatever they are called."""
    known = f"llm_exporter_build_info{{{','.join(matchers)}}}" if matchers else "llm_exporter_build_info"
    made = _values(name, label, f"label_values({known}, {name})").multi(True).include_all(True)
    return made.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))


def _annotations() -> list[build.AnnotationQuery]:
    """What happened: drawn where the value is above 0, so that what is told by a 0 is asked as `== bool 0`."""
    return [
        _annotation("Target down", BAD, f"{pick('llm_target_up')} == bool 0", "{{source}} {{target}} is down"),
        _annotation(
            "Exporter restarted",
            BUSY,
            f"changes(process_start_time_seconds{{{OURS}}}[$__rate_interval])",
            "the exporter {{instance}} restarted",
        ),
        _annotation("Unit started", BUSY, gain("llm_unit_activations_total"), "{{unit}} was started"),
        *(
            _annotation(
                f"Alert: {severity}",
                colour,
                FIRING.replace("}", f',severity="{severity}"}}'),
                "{{alertname}} {{target}} {{model}}",
            )
            for severity, colour in SEVERITIES.items()
        ),
    ]


def _annotation(name: str, colour: str, expr: str, title: str) -> build.AnnotationQuery:
    target = prom.Dataquery().expr(expr).ref_id("A")
    made = build.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).hide(False).icon_color(colour)
    return made.expr(expr).target(target).title_format(title)

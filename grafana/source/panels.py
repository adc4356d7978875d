"""One way to show each kind of thing: with a title, a description, a unit, and words for when it is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    nodegraph,
    stat,
    statetimeline,
    statushistory,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus as prom
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as prom_kinds

from grafana.source.query import Query, state
from grafana.source.style import BUSY, GOOD, STATES, Steps, codes, mapped, named, thresholds

Panel = (
    timeseries.Panel
    | stat.Panel
    | statetimeline.Panel
    | statushistory.Panel
    | bargauge.Panel
    | heatmap.Panel
    | tables.Panel
    | nodegraph.Panel
)
P = TypeVar(
    "P",
    timeseries.Panel,
    stat.Panel,
    statetimeline.Panel,
    statushistory.Panel,
    bargauge.Panel,
    heatmap.Panel,
    tables.Panel,
    nodegraph.Panel,
)

DATASOURCE = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")
LINKED = dict[str, str]
"""Links of a panel or a column: the title, and the path to go to."""

SAME = "${__url_time_range}&${datasource:queryparam}&${job:queryparam}&${instance:queryparam}"
"""What a link to another dashboard takes along."""


@dataclass(frozen=True, slots=True)
class Size:
    """Columns of 24, and rows of 38 pixels."""

    w: int = 8
    h: int = 8


THIRD, HALF, FULL = Size(8), Size(12), Size(24)
SMALL = Size(6, 4)


def reference(place: int) -> str:
    """The refId of a panel's nth query."""
    return chr(ord("A") + place)


def _framed(
    panel: P, title: str, text: str, unit: str, empty: str, size: Size, queries: Sequence[Query], shape: str
) -> P:
    """What all panels have. `shape` of a query's answer: time_series, heatmap, or at one time: instant, table."""
    panel.title(title).description(text).unit(unit).no_value(empty).span(size.w).height(size.h).datasource(DATASOURCE)
    for place, query in enumerate(queries):
        target = prom.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(reference(place))
        if shape in ("instant", "table"):
            target.instant()
        else:
            target.range()
        if shape in ("table", "heatmap"):
            target.format(prom_kinds.PromQueryFormat(shape))
        else:
            target.format(prom_kinds.PromQueryFormat.TIME_SERIES)
        panel.with_target(target)
        if query.colour:
            colour = {"mode": "shades" if "{{" in query.legend else "fixed", "fixedColor": query.colour}
            panel.override_by_query(reference(place), [dashboard.DynamicConfigValue("color", colour)])
    return panel


def _by_name() -> build.FieldColor:
    """The same name has the same colour on every panel."""
    return build.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME)


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _last() -> common.ReduceDataOptions:
    """The value that there is now; nothing is looked for in the past, so that an old value never poses as new."""
    return common.ReduceDataOptions().calcs(["last"]).values(False).fields("")


def series(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    empty: str = "nothing is told of this",
    size: Size = THIRD,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
) -> timeseries.Panel:
    """Values over time, on an axis from 0 unless told otherwise; stacked only what may be added."""
    panel = _framed(timeseries.Panel(), title, text, unit, empty, size, queries, "time_series")
    panel.legend(_legend()).tooltip(_tooltip()).color_scheme(_by_name())
    panel.show_points(kinds.VisibilityMode.NEVER).line_width(1).fill_opacity(60 if stacked else 8)
    panel.stacking(
        common.StackingConfig().mode(kinds.StackingMode.NORMAL if stacked else kinds.StackingMode.NONE).group("A")
    )
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    return panel


def number(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    empty: str = "not told",
    size: Size = SMALL,
    base: str = BUSY,
    steps: Steps = (),
    links: LINKED | None = None,
) -> stat.Panel:
    """What is now, one figure for each series. Without steps the colour says nothing (blue)."""
    panel = _framed(stat.Panel(), title, text, unit, empty, size, queries, "instant")
    panel.color_mode(kinds.BigValueColorMode.VALUE).graph_mode(kinds.BigValueGraphMode.NONE).reduce_options(_last())
    panel.text_mode(kinds.BigValueTextMode.AUTO).justify_mode(kinds.BigValueJustifyMode.AUTO)
    panel.thresholds(thresholds(base, steps))
    panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return panel.links(_links(links)) if links else panel


def bars(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    empty: str = "nothing is told of this",
    size: Size = THIRD,
    steps: Steps = (),
    most: float | None = None,
) -> bargauge.Panel:
    """What is now, one bar for each series."""
    panel = _framed(bargauge.Panel(), title, text, unit, empty, size, queries, "instant")
    panel.orientation(kinds.VizOrientation.HORIZONTAL).display_mode(kinds.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(_last()).thresholds(thresholds(GOOD, steps)).min(0)
    panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return panel.max(most) if most is not None else panel


def timeline(
    title: str,
    text: str,
    query: Query,
    words: Mapping[str, str],
    empty: str = "nothing is told of this",
    size: Size = HALF,
) -> statetimeline.Panel:
    """States over time, in the colours of the words that values stand for; the legend has both."""
    panel = _framed(statetimeline.Panel(), title, text, "none", empty, size, [query], "time_series")
    panel.mappings(mapped(words)).thresholds(thresholds(BUSY)).legend(_legend()).tooltip(_tooltip())
    panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return (
        panel.show_value(kinds.VisibilityMode.NEVER).merge_values(True).row_height(0.8).fill_opacity(80).line_width(0)
    )


def states(
    title: str, text: str, family: str, by: str, legend: str, *matchers: str, empty: str, size: Size = HALF
) -> statetimeline.Panel:
    """The states of a family, as the catalogue declares them, over time."""
    return timeline(title, text, Query(state(family, by, *matchers), legend), named(family), empty, size)


def history(
    title: str, text: str, query: Query, words: Mapping[str, str], empty: str, size: Size = HALF
) -> statushistory.Panel:
    """Looks at a state, side by side. More than about 60 of them are refused as too many points."""
    panel = _framed(statushistory.Panel(), title, text, "none", empty, size, [query], "time_series")
    panel.mappings(mapped(words)).thresholds(thresholds(BUSY)).legend(_legend()).tooltip(_tooltip())
    panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return panel.show_value(kinds.VisibilityMode.NEVER).max_data_points(60).row_height(0.8).fill_opacity(80)


def spread(title: str, text: str, unit: str, expr: str) -> heatmap.Panel:
    """How values spread over the buckets of one source, over time."""
    empty, queries = "no request has been timed", [Query(expr, "{{le}}")]
    panel = _framed(heatmap.Panel(), title, text, unit, empty, THIRD, queries, "heatmap")
    panel.calculate(False).show_legend().cell_gap(1).max_data_points(120)
    panel.color(heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Purples").steps(64))
    panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    panel.rows_frame(heatmap.RowsHeatmapOptions().layout(kinds.HeatmapCellLayout.AUTO))
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(kinds.AxisPlacement.LEFT))
    return panel.tooltip(heatmap.HeatmapTooltip().mode(kinds.TooltipDisplayMode.SINGLE).y_histogram(True))


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a table's lines, coloured by steps, or shown by the words of states.

    One without a title makes lines and is not shown.
    """

    title: str
    unit: str
    expr: str
    steps: Steps = ()
    base: str = GOOD
    words: Mapping[str, str] | None = None


def table(
    title: str,
    text: str,
    keys: Mapping[str, str],
    *columns: Column,
    empty: str = "nothing is told of this",
    size: Size = HALF,
    order: str | None = None,
    links: LINKED | None = None,
    falling: bool = True,
) -> tables.Panel:
    """One line for each combination of `keys` (label and title), one column for each query.

    Lines are ordered by the column `order`, the greatest first unless `falling` is False. Links are of the first key.
    """
    queries = [Query(column.expr) for column in columns]
    panel = _framed(tables.Panel(), title, text, "none", empty, size, queries, "table")
    panel.cell_height(kinds.TableCellHeight.SM).filterable(len(columns) > 1)
    field = "Value #{}" if len(columns) > 1 else "Value"
    shown = {field.format(reference(place)): column.title for place, column in enumerate(columns) if column.title}
    shown = {**keys, **shown}
    panel.with_transformation(dashboard.DataTransformerConfig("merge", options={}))
    kept = {"include": {"names": list(shown)}}
    panel.with_transformation(dashboard.DataTransformerConfig("filterFieldsByName", options=kept))
    arranged = {"indexByName": {name: place for place, name in enumerate(shown)}, "renameByName": shown}
    panel.with_transformation(dashboard.DataTransformerConfig("organize", options=arranged))
    # a cell without a value would show what the empty panel does; a label that looks like a number is none
    panel.override_by_regexp(".*", [dashboard.DynamicConfigValue("noValue", "–")])
    for title_of_key in keys.values():
        panel.override_by_name(title_of_key, [dashboard.DynamicConfigValue("unit", "string")])
    for column in columns:
        properties = [dashboard.DynamicConfigValue("unit", column.unit)]
        if column.words:
            properties += coloured(mapped(column.words))
        if column.steps:
            properties += [
                dashboard.DynamicConfigValue("thresholds", thresholds(column.base, column.steps).build()),
                dashboard.DynamicConfigValue("color", {"mode": "thresholds"}),
                dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(column.title, properties)
    if links:
        first = next(iter(keys.values()))
        panel.override_by_name(first, [dashboard.DynamicConfigValue("links", [link.build() for link in _links(links)])])
    if order:
        panel.sort_by([common.TableSortByFieldState().display_name(order).desc(falling)])
    return panel


def coloured(mappings: list[dashboard.ValueMapping]) -> list[dashboard.DynamicConfigValue]:
    """Properties of a table's column whose words have colours."""
    return [
        dashboard.DynamicConfigValue("mappings", mappings),
        dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]


def by_state(panel: P, family: str) -> P:
    """A panel whose series are called as the states of a family, in the colours of those."""
    for word in codes(family):
        panel.override_by_name(
            word, [dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": STATES[word]})]
        )
    return panel


def graph(title: str, text: str, nodes: str, edges: str, empty: str, size: Size = HALF) -> nodegraph.Panel:
    """Nodes (labels id, title, subtitle, mainstat) and edges between them (id, source, target), as they are now."""
    panel = nodegraph.Panel()
    return _framed(panel, title, text, "none", empty, size, [Query(nodes, "nodes"), Query(edges, "edges")], "table")


def _links(links: LINKED) -> list[Builder[dashboard.DashboardLink]]:
    return [build.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url) for title, url in links.items()]

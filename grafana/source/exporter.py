"""llm-exporter: how the exporter itself fares with its targets, and what it costs."""

from __future__ import annotations

from grafana.source import overview
from grafana.source.page import Page, variable
from grafana.source.panels import Column, Panel, Size, number, series, table
from grafana.source.query import BY, NAME, Query, highest, pick, rate, select, total
from grafana.source.style import ANY_BAD, GOOD, WARN

TARGET = 'target=~"$target"'
NONE = "no exporter is scraped"
PROCESS = "job, instance, replica, pod"
REPLICA = "{{instance}} {{replica}} {{pod}}"
"""Of an exporter's process."""


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-exporter",
        "LLM / Exporter",
        "Reads, failures, series, CPU and memory of the exporter itself.",
        variable("target", "Target", "llm_target_up"),
    )
    made.row("Now", *_now())
    made.row("Over time", overview.targets(Size(24, 8)))
    made.row("Failures", *_failures())
    made.row("Latency: reads", *_reads())
    made.row("Load", *_load())
    made.row("Parts: targets", _targets())
    return made


def _own(expr: str) -> str:
    """Of what every client library or scrape tells, what is of exporters: of each replica by itself."""
    return f"{expr} and on ({PROCESS}) {select('llm_exporter_build_info')}"


def _now() -> list[Panel]:
    up = pick("llm_target_up", TARGET)
    return [
        number(
            "Targets down",
            "Targets whose last read failed.",
            "none",
            Query(f"count({up} == 0) or 0 * count({up})", "down"),
            empty=NONE,
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Series",
            "Series that the exporter shows of the targets.",
            "short",
            Query(f"sum({pick('llm_target_series', TARGET)})", "series"),
            empty=NONE,
        ),
        number(
            "Configuration",
            "Exporters whose configuration was refused when it was last read; the one before is in force.",
            "none",
            Query(f"sum(1 - {select('llm_exporter_config_last_reload_successful')})", "refused"),
            empty=NONE,
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Version",
            "Exporters by their version.",
            "none",
            Query(f"count by (version) ({select('llm_exporter_build_info')})", "{{version}}"),
            empty=NONE,
        ),
    ]


def _failures() -> list[Panel]:
    failed = total("reason", rate("llm_target_read_failures_total", TARGET))
    by_target = total(BY, rate("llm_target_read_failures_total", TARGET))
    dropped = total(f"{BY}, reason", rate("llm_target_series_dropped_total", TARGET))
    return [
        series(
            "Reads that failed, by reason",
            "Of all targets shown.",
            "ops",
            Query(failed, "{{reason}}"),
            empty=NONE,
            stacked=True,
        ),
        series(
            "Reads that failed, by target",
            "For all reasons.",
            "ops",
            Query(by_target, NAME),
            empty=NONE,
        ),
        series(
            "Samples left out",
            "Samples that no exporter may pass on: duplicates, impossible values, what is over a limit.",
            "ops",
            Query(f"{dropped} > 0 or on () 0 * sum({dropped})", NAME + " {{reason}}"),
            empty=NONE,
        ),
    ]


def _reads() -> list[Panel]:
    def each(family: str) -> str:
        return highest("instance, source, target", family, TARGET)

    took, every = each("llm_target_read_duration_seconds"), each("llm_target_interval_seconds")
    return [
        series("Time of a read", "Time that the last read of each target took.", "s", Query(took, NAME), empty=NONE),
        series(
            "Part of the upstream's time",
            "Time of a read over the time between two. The exporter reads more seldom before this passes a tenth.",
            "percentunit",
            Query(f"{took} / {every}", NAME),
            empty=NONE,
        ),
        series(
            "Age of the values",
            "Time since the last read that succeeded.",
            "s",
            Query(f"time() - {each('llm_target_last_success_timestamp_seconds')}", NAME),
            empty=NONE,
        ),
    ]


def _load() -> list[Panel]:
    quarter = Size(6, 7)
    return [
        series(
            "CPU",
            "CPUs that each exporter keeps busy.",
            "percentunit",
            Query(_own(f"rate({select('process_cpu_seconds_total')}[$__rate_interval])"), REPLICA),
            empty=NONE,
            size=quarter,
        ),
        series(
            "Memory",
            "What each exporter has resident.",
            "bytes",
            Query(_own(select("process_resident_memory_bytes")), REPLICA),
            empty=NONE,
            size=quarter,
        ),
        series(
            "Samples read",
            "Samples in the last answer of each target.",
            "short",
            Query(highest(BY, "llm_target_samples", TARGET), NAME),
            empty=NONE,
            size=quarter,
        ),
        series(
            "Time of a scrape",
            "Time that Prometheus takes for the exporter's page.",
            "s",
            Query(_own(select("scrape_duration_seconds")), REPLICA),
            empty=NONE,
            size=quarter,
        ),
    ]


def _targets() -> Panel:
    by = "instance, source, target"

    def now(family: str) -> str:
        return highest(by, family, TARGET)

    return table(
        "What is read",
        "Every target, how it is read and what comes of it.",
        {"target": "Target", "source": "Source", "instance": "Exporter"},
        Column("Up", "none", now("llm_target_up"), words={"1": "up", "0": "down"}),
        Column("Read took", "s", now("llm_target_read_duration_seconds"), ((1, WARN),)),
        Column("Every", "s", now("llm_target_interval_seconds")),
        Column("Samples", "short", now("llm_target_samples")),
        Column("Series", "short", now("llm_target_series")),
        empty=NONE,
        size=Size(24, 10),
        order="Up",
        falling=False,
    )

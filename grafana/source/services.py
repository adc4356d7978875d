"""llm-services: units of systemd and configured services: how they are, and what they are held to."""

from __future__ import annotations

from grafana.source.page import Page, variable
from grafana.source.panels import Column, Panel, Size, history, number, series, states, table
from grafana.source.query import Query, gain, highest, lowest, pick, rate, total
from grafana.source.style import ANY_BAD, BAD, GOOD, LIMIT, WARN

UNIT, SERVICE = 'unit=~"$unit"', 'target=~"$service"'
NO_UNIT, NO_SERVICE = "no unit is watched", "no service is watched"
SPAN = "$__range"


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-services",
        "LLM / Services",
        "Units of systemd and services over HTTP or TCP: state, time up, latency, restarts, and the limits they are"
        " held to.",
        variable("unit", "Unit", "llm_unit_state"),
        variable("target", "Service", "llm_probe_up").name("service"),
    )
    made.row("Now", *_now())
    made.row(
        "Over time",
        states(
            "Units over time",
            "The state of each unit; not found: the configuration names it, and it is not there.",
            "llm_unit_state",
            "instance, unit, scope",
            "{{instance}} {{unit}} ({{scope}})",
            UNIT,
            empty=NO_UNIT,
            size=Size(12, 9),
        ),
        history(
            "Services over time",
            "Whether each health endpoint or service answered as it should, when it was looked at.",
            Query(lowest("instance, target, probe", "llm_probe_up", SERVICE), "{{instance}} {{target}} {{probe}}"),
            {"1": "up", "0": "down"},
            empty=NO_SERVICE,
            size=Size(12, 9),
        ),
    )
    made.row("Failures: units", *_failures())
    made.row("Latency: services", *_answers())
    made.row("Load: units, and what is too much", *_load())
    made.row("Parts", *_lists())
    return made


def _now() -> list[Panel]:
    service = pick("llm_probe_up", SERVICE)
    failed = pick("llm_unit_state", UNIT, 'state="failed"')
    active = pick("llm_unit_state", UNIT, 'state="active"')
    return [
        number(
            "Units that are active",
            "Units of systemd that run.",
            "none",
            Query(f"sum({active})", "active"),
            empty=NO_UNIT,
            base=GOOD,
        ),
        number(
            "Units that failed",
            "Units of systemd that ended in failure and were not started again.",
            "none",
            Query(f"sum({failed})", "failed"),
            empty=NO_UNIT,
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Services that are down",
            "Health endpoints and services that did not answer as they should.",
            "none",
            Query(f"count({service} == 0) or 0 * count({service})", "down"),
            empty=NO_SERVICE,
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Failures of units",
            "Starts of units that ended in failure within the time shown, those between two reads included.",
            "none",
            Query(f"sum({gain('llm_unit_failures_total', UNIT, over=SPAN)})", "failures"),
            empty=NO_UNIT,
            base=GOOD,
            steps=((1, WARN), (5, BAD)),
        ),
    ]


def _failures() -> list[Panel]:
    counted = {
        "Starts": ("llm_unit_activations_total", "Times that each unit was started, within a step."),
        "Failures": ("llm_unit_failures_total", "Starts of each unit that ended in failure, within a step."),
        "Automatic restarts": ("llm_unit_restarts_total", "Restarts by systemd itself (Restart=), within a step."),
    }
    errors = gain("llm_log_entries_total", UNIT, 'priority=~"emerg|alert|crit|err"')
    return [
        *(
            series(
                title,
                text,
                "none",
                Query(total("instance, unit", gain(family, UNIT)), "{{instance}} {{unit}}"),
                empty=NO_UNIT,
                size=Size(6, 8),
            )
            for title, (family, text) in counted.items()
        ),
        series(
            "Errors in the journal",
            "Entries of each unit with priority err or worse, within a step.",
            "none",
            Query(total("instance, unit", errors), "{{instance}} {{unit}}"),
            empty="no journal is read",
            size=Size(6, 8),
        ),
    ]


def _answers() -> list[Panel]:
    since = highest("instance, target, probe", "llm_probe_up_since_timestamp_seconds", SERVICE)
    return [
        series(
            "Time to answer",
            "Time that the answer, or the connection, took; a gap where there was none.",
            "s",
            Query(
                highest("instance, target, probe", "llm_probe_duration_seconds", SERVICE),
                "{{instance}} {{target}} {{probe}}",
            ),
            empty=NO_SERVICE,
            size=Size(12, 8),
        ),
        series(
            "Time up",
            "How long each service has been up without a break that the exporter saw.",
            "s",
            Query(f"time() - {since}", "{{instance}} {{target}} {{probe}}"),
            empty="no configured service is up",
            size=Size(12, 8),
        ),
    ]


def _load() -> list[Panel]:
    cpu = total("instance, unit", rate("llm_unit_cpu_seconds_total", UNIT))
    cpus = highest("instance", "llm_host_cpus")
    memory = highest("instance, unit", "llm_unit_memory_bytes", UNIT)
    installed = highest("instance", "llm_host_memory_total_bytes")
    failures = total("instance, unit", gain("llm_unit_failures_total", UNIT, over=SPAN))

    def limit(what: str) -> Query:
        expr = highest("instance, target", f"llm_threshold_{what}", 'source="systemd"')
        return Query(expr, "{{instance}} {{target}} limit", LIMIT)

    return [
        series(
            "CPU",
            "Part of the machine's CPUs that each unit uses, and the limit that the configuration sets.",
            "percentunit",
            Query(f"{cpu} / on (instance) group_left () {cpus}", "{{instance}} {{unit}}"),
            limit("cpu_ratio"),
            empty="no unit is watched, or the host is not",
        ),
        series(
            "Memory",
            "Part of the machine's memory that each unit uses, files that it has cached included, and the limit.",
            "percentunit",
            Query(f"{memory} / on (instance) group_left () {installed}", "{{instance}} {{unit}}"),
            limit("memory_ratio"),
            empty="no unit is watched, or the host is not",
        ),
        series(
            "Failures within the time shown",
            "Starts that ended in failure, and how many are too many.",
            "none",
            Query(failures, "{{instance}} {{unit}}"),
            limit("restart_failures"),
            empty=NO_UNIT,
        ),
    ]


def _lists() -> list[Panel]:
    by = "instance, unit, scope"

    def newest(family: str) -> str:
        return highest(by, family, UNIT)

    expiry = lowest("instance, target, probe", "llm_probe_certificate_expiry_timestamp_seconds", SERVICE)
    return [
        table(
            "Units",
            "Each unit: for how long it is active, how its main process ended last, how often it restarted.",
            {"unit": "Unit", "scope": "Scope", "instance": "Exporter"},
            Column("Active for", "s", f"time() - {newest('llm_unit_start_timestamp_seconds')}"),
            Column("Tasks", "none", newest("llm_unit_tasks")),
            Column("Memory", "bytes", newest("llm_unit_memory_bytes")),
            Column("Restarts", "none", newest("llm_unit_restarts_total"), ((1, WARN),)),
            Column("Last exit status", "none", newest("llm_unit_exit_status"), ((1, BAD),)),
            empty=NO_UNIT,
            size=Size(16, 9),
            order="Active for",
            falling=False,
        ),
        table(
            "Certificates",
            "How long the TLS certificate of each service is still valid.",
            {"target": "Service", "probe": "Probe", "instance": "Exporter"},
            Column("Left", "s", f"{expiry} - time()", ((7 * 86400, WARN), (21 * 86400, GOOD)), BAD),
            empty="no service has a certificate",
            size=Size(8, 9),
            order="Left",
            falling=False,
        ),
    ]

"""llm-nats: NATS and etcd, over which Dynamo's parts find and reach each other."""

from __future__ import annotations

from grafana.source.page import Page, variable
from grafana.source.panels import Panel, Size, number, series, states, timeline
from grafana.source.query import AT, BY, NAME, Query, gain, highest, lowest, quantile, rate, total
from grafana.source.style import ANY_BAD, BAD, GOOD, IN, LIMIT, OUT, WARN

TARGET = 'target=~"$target"'
QUARTER = Size(6, 8)


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-nats",
        "LLM / NATS and etcd",
        "The servers that Dynamo's parts find and reach each other over.",
        variable("target", "Server", "llm_target_up", 'source=~"nats|etcd"'),
    )
    made.row("Now", *_now())
    made.row(
        "Over time",
        states(
            "The exporter's connection to NATS",
            "What happens to a client's connection: it is the exporter's own, kept open and watched.",
            "llm_nats_connection_state",
            BY,
            NAME,
            TARGET,
            empty="no connection to a NATS server is configured",
        ),
        timeline(
            "etcd: has a leader",
            "Without a leader nothing can be written, and no lease renewed: Dynamo's frontends end themselves after"
            " about 18 s.",
            Query(lowest(BY, "llm_etcd_has_leader", TARGET), NAME),
            {"1": "yes", "0": "no"},
            empty="no etcd is read",
        ),
    )
    made.row("Traffic: NATS", *_traffic())
    made.row("Load: NATS", *_load())
    made.row("Parts: JetStream", *_jetstream())
    made.row("Beside it: etcd", *_etcd())
    return made


def _now() -> list[Panel]:
    has_leader, up = (highest(AT, f"llm_etcd_{what}", TARGET) for what in ("has_leader", "up"))
    return [
        number(
            "Slowest round trip",
            "Time from a PING on the exporter's own connection to its PONG.",
            "s",
            Query(highest("", "llm_nats_round_trip_seconds", TARGET), "slowest"),
            empty="no connection",
        ),
        number(
            "Slow consumers",
            "Clients that NATS cut off within the time shown because they did not read fast enough.",
            "none",
            Query(f"sum({gain('llm_nats_slow_consumers_total', TARGET, over='$__range')})", "cut off"),
            empty="no NATS server is read",
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "etcd members without a leader",
            "Members that know no leader, or do not answer.",
            "none",
            Query(f"count({has_leader} == 0) or count({up} == 0) or 0 * count({up})", "members"),
            empty="no etcd is read",
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Leases",
            "Leases that are alive in etcd: one for each process of Dynamo. Every member tells all of them.",
            "none",
            Query(highest("", "llm_etcd_leases", TARGET), "leases"),
            empty="no etcd tells",
        ),
    ]


def _both(title: str, text: str, unit: str, what: str) -> Panel:
    return series(
        title,
        text,
        unit,
        Query(total(BY, rate(f"llm_nats_in_{what}_total", TARGET)), f"{NAME} in", IN),
        Query(total(BY, rate(f"llm_nats_out_{what}_total", TARGET)), f"{NAME} out", OUT),
        empty="no NATS server is read",
    )


def _traffic() -> list[Panel]:
    return [
        _both("Messages", "Messages that NATS received, and sent: one for each subscriber.", "mps", "messages"),
        _both("Bytes", "Bytes of messages that NATS received and sent.", "Bps", "bytes"),
        series(
            "Round trip",
            "Time from a PING on the exporter's own connection to its PONG; a gap where there was no connection.",
            "s",
            Query(highest(BY, "llm_nats_round_trip_seconds", TARGET), NAME),
            empty="no connection to a NATS server is configured",
        ),
    ]


def _load() -> list[Panel]:
    return [
        series(
            "Connections and subscriptions",
            "Clients that are connected, the exporter's own included, and what they are subscribed to.",
            "short",
            Query(highest(BY, "llm_nats_connections", TARGET), f"{NAME} connections"),
            Query(highest(BY, "llm_nats_subscriptions", TARGET), f"{NAME} subscriptions"),
            empty="no NATS server is read",
            size=QUARTER,
        ),
        series(
            "Dynamo's subjects",
            "Subjects of Dynamo that are subscribed, by plane: 0 where Dynamo does not use this server.",
            "none",
            Query(
                highest(f"{BY}, plane", "llm_nats_dynamo_subjects", TARGET),
                NAME + " {{plane}}",
            ),
            empty="no NATS server is read",
            size=QUARTER,
        ),
        series(
            "Slow consumers and reconnects",
            "Clients that NATS cut off because they did not read fast enough, and times that the exporter's own"
            " connection was lost and came back, within a step.",
            "none",
            Query(
                total(BY, gain("llm_nats_slow_consumers_total", TARGET)),
                f"{NAME} cut off",
                BAD,
            ),
            Query(
                total(BY, gain("llm_nats_reconnects_total", TARGET)),
                f"{NAME} reconnects",
                WARN,
            ),
            empty="no NATS server is read",
            size=QUARTER,
        ),
        series(
            "Memory",
            "Memory that the server's process has resident.",
            "bytes",
            Query(highest(BY, "llm_nats_memory_bytes", TARGET), NAME),
            empty="no NATS server is read",
            size=QUARTER,
        ),
    ]


def _jetstream() -> list[Panel]:
    off = "JetStream is off"

    def held(what: str, text: str) -> Panel:
        used, limit = (highest(BY, f"llm_nats_jetstream_{what}_{of}bytes", TARGET) for of in ("", "limit_"))
        return series(
            f"{what.capitalize()} of JetStream",
            text,
            "bytes",
            Query(used, NAME),
            Query(limit, f"{NAME} limit", LIMIT),
            empty=off,
            size=QUARTER,
        )

    return [
        series(
            "Streams and consumers",
            "Streams that JetStream keeps, and consumers of them.",
            "none",
            Query(highest(BY, "llm_nats_jetstream_streams", TARGET), f"{NAME} streams"),
            Query(highest(BY, "llm_nats_jetstream_consumers", TARGET), f"{NAME} consumers"),
            empty=off,
            size=QUARTER,
        ),
        held("memory", "Memory that JetStream uses, and may use."),
        held("storage", "Disk that JetStream uses, and may use."),
        series(
            "API: requests and errors",
            "Requests to JetStream's API, and those that failed.",
            "reqps",
            Query(
                total(BY, rate("llm_nats_jetstream_api_requests_total", TARGET)),
                NAME,
            ),
            Query(
                total(BY, rate("llm_nats_jetstream_api_errors_total", TARGET)),
                f"{NAME} errors",
                BAD,
            ),
            empty=off,
            size=QUARTER,
        ),
    ]


def _etcd() -> list[Panel]:
    none = "no etcd is read"
    disk = {"wal_sync": "to the log", "commit": "to the database"}
    sizes = {"in use": "llm_etcd_db_in_use_bytes", "file": "llm_etcd_db_size_bytes"}
    keys = {"leases": "llm_etcd_leases", "keys": "llm_etcd_keys", "watchers": "llm_etcd_watchers"}
    failures = {
        "leader changes": "llm_etcd_leader_changes_total",
        "failed writes": "llm_etcd_proposals_failed_total",
        "slow writes": "llm_etcd_slow_applies_total",
        "leases expired": "llm_etcd_leases_expired_total",
    }
    return [
        series(
            "Database",
            "Size of the database's file and what of it is in use; at its quota etcd refuses to write.",
            "bytes",
            *(Query(highest(BY, family, TARGET), f"{NAME} {what}") for what, family in sizes.items()),
            Query(highest(BY, "llm_etcd_db_quota_bytes", TARGET), f"{NAME} quota", LIMIT),
            empty=none,
            size=QUARTER,
        ),
        series(
            "Leases, keys, watchers",
            "What etcd holds. Leases that fall together are processes that went.",
            "none",
            *(Query(highest(BY, family, TARGET), f"{NAME} {what}") for what, family in keys.items()),
            empty=none,
            size=QUARTER,
        ),
        series(
            "Disk p99",
            "99 of 100 writes are on the disk within this time. Over 10 ms to the log, or 25 ms to the database, the"
            " disk is too slow for etcd.",
            "s",
            *(
                Query(
                    quantile(0.99, f"llm_etcd_{part}_seconds", f"source, {BY}", TARGET),
                    f"{NAME} {what}",
                )
                for part, what in disk.items()
            ),
            empty=none,
            size=QUARTER,
        ),
        series(
            "What goes wrong",
            "Changes of the leader, writes that the cluster did not consent to, writes slower than 100 ms, and leases"
            " whose holder no longer renewed them, within a step.",
            "none",
            *(Query(total(BY, gain(family, TARGET)), f"{NAME} {what}") for what, family in failures.items()),
            empty=none,
            size=QUARTER,
        ),
    ]

"""llm-gpu-host: each GPU, who uses it, and the machine around it."""

from __future__ import annotations

from grafana.source.page import Page, found, variable
from grafana.source.panels import Column, Panel, Size, bars, number, series, table, timeline
from grafana.source.query import Query, gain, highest, pick, rate, select, share, total
from grafana.source.style import ANY_BAD, BAD, GOOD, IN, LIMIT, OUT, RATIO_FULL

UUID = 'uuid=~"$gpu"'  # in the row of one GPU just that
HOST = 'source="host"'
NO_GPU = "no GPU is read"
NO_HOST = "the host is not read: a node_exporter tells of it"
QUARTER = Size(6, 7)


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-gpu-host",
        "LLM / GPUs and host",
        "Each GPU: how busy, how full and by whom, how warm, what holds it down, what broke. And the machine around"
        " it.",
        found("gpu", "GPU", select("llm_gpu_up"), r'/[{,] ?gpu="(?<text>[^"]+)|[{,] ?uuid="(?<value>[^"]+)/g'),
        variable("workload", "Workload", "llm_workload_memory_bytes"),
    )
    made.row("Now", *_now())
    made.row("Over time", *_over_time())
    made.row("Load: the host", *_host())
    made.row("Parts: workloads, who serves models here", *_workloads())
    made.row("Each: GPU $gpu", *_each(), repeat="gpu")
    return made


def _now() -> list[Panel]:
    used, whole = (f"sum({pick(f'llm_gpu_memory_{what}_bytes', UUID)})" for what in ("used", "total"))
    up = pick("llm_gpu_up", UUID)
    return [
        number(
            "GPUs",
            "GPUs that answer, and those that are lost, want a reset, or hang.",
            "none",
            Query(f"count({up} == 1) or 0 * count({up})", "answer"),
            Query(f"count({up} == 0) or 0 * count({up})", "lost", BAD),
            empty=NO_GPU,
            base=GOOD,
        ),
        number(
            "Memory in use",
            "Memory that processes hold on all GPUs shown, of what there is.",
            "percentunit",
            Query(f"{used} / {whole}", "in use"),
            empty=NO_GPU,
            base=GOOD,
            steps=RATIO_FULL,
        ),
        number(
            "Power",
            "What all GPUs shown draw now.",
            "watt",
            Query(f"sum({pick('llm_gpu_power_watts', UUID)})", "draw"),
            empty=NO_GPU,
        ),
        number(
            "XIDs",
            "Errors that the driver reported within the time shown.",
            "none",
            Query(f"sum({gain('llm_gpu_xid_errors_total', UUID, over='$__range')}) or 0 * count({up})", "errors"),
            empty=NO_GPU,
            base=GOOD,
            steps=ANY_BAD,
        ),
    ]


def _over_time() -> list[Panel]:
    name = "{{instance}} {{gpu}}"
    memory = share(
        highest("instance, gpu, uuid", "llm_gpu_memory_used_bytes", UUID),
        highest("instance, gpu, uuid", "llm_gpu_memory_total_bytes", UUID),
    )
    return [
        series(
            "Utilisation of GPUs",
            "Part of the time in which at least one kernel ran: one small kernel is enough for 1.",
            "percentunit",
            Query(highest("instance, gpu, uuid", "llm_gpu_utilization_ratio", UUID), name),
            empty=NO_GPU,
            most=1,
        ),
        series(
            "Memory of GPUs",
            "Used part of each GPU's memory.",
            "percentunit",
            Query(memory, name),
            empty=NO_GPU,
            most=1,
        ),
        timeline(
            "GPUs held down",
            "Whether the clocks of each GPU are held down, for heat, power or another reason; being idle is none.",
            Query(highest("instance, gpu, uuid", "llm_gpu_throttle_active", UUID), name),
            {"0": "clear", "1": "held down"},
            empty="no driver tells why clocks are held down",
            size=Size(8, 8),
        ),
    ]


def _each() -> list[Panel]:
    by_workload = f"sum by (workload) ({pick('llm_gpu_process_memory_bytes', UUID)})"
    errors = {
        "XID {{xid}}": total("xid", gain("llm_gpu_xid_errors_total", UUID)),
        "ECC {{severity}}": total("severity", gain("llm_gpu_ecc_errors_total", UUID)),
        "PCIe replays": total("uuid", gain("llm_gpu_pcie_replays_total", UUID)),
    }
    moved = {"PCIe": "llm_gpu_pcie_bytes_total", "NVLink": "llm_gpu_nvlink_bytes_total"}
    return [
        series(
            "Busy: GPU $gpu",
            "Part of the time in which at least one kernel ran, and in which memory was read or written (not how full"
            " it is).",
            "percentunit",
            Query(highest("", "llm_gpu_utilization_ratio", UUID), "kernels"),
            Query(highest("", "llm_gpu_memory_busy_ratio", UUID), "memory"),
            empty=NO_GPU,
            size=QUARTER,
            most=1,
        ),
        series(
            "Memory by workload: GPU $gpu",
            "Memory that the processes of each unit or container hold, and what there is.",
            "bytes",
            Query(by_workload, "{{workload}}"),
            empty="nobody holds memory, or the driver does not tell who",
            size=QUARTER,
            stacked=True,
        ),
        series(
            "Power: GPU $gpu",
            "What the GPU draws, and may draw.",
            "watt",
            Query(highest("", "llm_gpu_power_watts", UUID), "draws"),
            Query(highest("", "llm_gpu_power_limit_watts", UUID), "may draw", LIMIT),
            empty=NO_GPU,
            size=QUARTER,
        ),
        series(
            "Temperature: GPU $gpu",
            "By sensor.",
            "celsius",
            Query(highest("sensor", "llm_gpu_temperature_celsius", UUID), "{{sensor}}"),
            empty=NO_GPU,
            size=QUARTER,
        ),
        timeline(
            "Held down by: GPU $gpu",
            "Why the clocks are held down; being idle is no reason here.",
            Query(highest("reason", "llm_gpu_throttle_active", UUID), "{{reason}}"),
            {"0": "clear", "1": "held down"},
            empty="the driver does not tell",
            size=QUARTER,
        ),
        series(
            "Clocks: GPU $gpu",
            "What each part of the GPU runs at.",
            "hertz",
            Query(highest("domain", "llm_gpu_clock_hertz", UUID), "{{domain}}"),
            empty="the driver does not tell",
            size=QUARTER,
        ),
        series(
            "Errors: GPU $gpu",
            "XIDs, errors of memory and of the bus, within a step.",
            "none",
            *(Query(expr, legend) for legend, expr in errors.items()),
            empty="no errors are told of",
            size=QUARTER,
        ),
        series(
            "Bus: GPU $gpu",
            "Bytes over PCIe and NVLink.",
            "Bps",
            *(
                Query(total("direction", rate(family, UUID)), f"{what} {{{{direction}}}}")
                for what, family in moved.items()
            ),
            empty="the driver does not tell",
            size=QUARTER,
        ),
    ]


def _host() -> list[Panel]:
    cpus = highest("instance", "llm_host_cpus")
    modes = total("instance, mode", rate("llm_host_cpu_seconds_total", 'mode!="idle"'))
    free, size = (pick(f"llm_host_filesystem_{what}_bytes") for what in ("avail", "size"))
    memory, installed = (pick(f"llm_host_memory_{what}_bytes") for what in ("available", "total"))
    limits = {what: highest("instance", f"llm_threshold_{what}_ratio", HOST) for what in ("cpu", "memory")}
    return [
        series(
            "CPU of the host",
            "Part of all CPUs by what they are used for, and the limit that the configuration sets.",
            "percentunit",
            Query(f"{modes} / on (instance) group_left () {cpus}", "{{instance}} {{mode}}"),
            Query(limits["cpu"], "{{instance}} limit", LIMIT),
            empty=NO_HOST,
            size=QUARTER,
        ),
        series(
            "Memory of the host",
            "Part of the memory that could not be had without swapping, and the limit that the configuration sets.",
            "percentunit",
            Query(f"max by (instance) (1 - {memory} / {installed})", "{{instance}}"),
            Query(limits["memory"], "{{instance}} limit", LIMIT),
            empty=NO_HOST,
            size=QUARTER,
            most=1,
        ),
        bars(
            "Disks",
            "Used part of each local file system.",
            "percentunit",
            Query(f"max by (instance, mountpoint) (1 - {free} / {size})", "{{instance}} {{mountpoint}}"),
            empty=NO_HOST,
            size=QUARTER,
            steps=RATIO_FULL,
            most=1,
        ),
        series(
            "Temperature of the host",
            "By sensor.",
            "celsius",
            Query(
                highest("instance, chip, sensor", "llm_host_temperature_celsius"), "{{instance}} {{chip}} {{sensor}}"
            ),
            empty="the machine tells no temperatures",
            size=QUARTER,
        ),
        _in_out("Disk", "disk", "read", "written", "Bytes read from and written to disks."),
        _in_out("Network", "network", "receive", "transmit", "Bytes that network cards received and sent."),
    ]


def _in_out(title: str, what: str, into: str, out: str, text: str) -> Panel:
    return series(
        title,
        text,
        "Bps",
        Query(
            total("instance, device", rate(f"llm_host_{what}_{into}_bytes_total")),
            f"{{{{instance}}}} {{{{device}}}} {into}",
            IN,
        ),
        Query(
            total("instance, device", rate(f"llm_host_{what}_{out}_bytes_total")),
            f"{{{{instance}}}} {{{{device}}}} {out}",
            OUT,
        ),
        empty=NO_HOST,
        size=Size(12, 7),
    )


def _workloads() -> list[Panel]:
    mine = 'workload=~"$workload"'
    by = "instance, workload"
    gpu = f"sum by ({by}) ({pick('llm_gpu_process_memory_bytes', mine)})"
    return [
        series(
            "CPU by workload",
            "CPUs that each unit, container or process that serves models keeps busy.",
            "none",
            Query(total(by, rate("llm_workload_cpu_seconds_total", mine)), "{{instance}} {{workload}}"),
            empty="no server of models runs here",
        ),
        series(
            "Memory by workload",
            "Memory of each, the cache of its files included where its cgroup tells.",
            "bytes",
            Query(f"sum by ({by}) ({pick('llm_workload_memory_bytes', mine)})", "{{instance}} {{workload}}"),
            empty="no server of models runs here",
        ),
        table(
            "Workloads",
            "Each unit, container or process that serves models here.",
            {"workload": "Workload", "instance": "Exporter"},
            Column("GPU memory", "bytes", gpu),
            Column("Memory", "bytes", f"sum by ({by}) ({pick('llm_workload_memory_bytes', mine)})"),
            Column("Threads", "none", f"sum by ({by}) ({pick('llm_workload_threads', mine)})"),
            Column("Open files", "none", f"sum by ({by}) ({pick('llm_workload_open_fds', mine)})"),
            empty="no server of models runs here",
            size=Size(8, 8),
            order="GPU memory",
        ),
    ]

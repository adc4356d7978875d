"""What Linux says of the machine, as rows under the names that map.yaml has. Calls block: 1 ms in all, or for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from exporter.core.source import Row

SYS = Path("/sys")
BOOT = Path("/proc/sys/kernel/random/boot_id")
IMAGES = ("squashfs", "iso9660", "erofs")
"""File systems that are always full."""


def rows(sys: Path = SYS) -> Iterator[Row]:
    """Of all but the CPU's times, which sometimes go backwards."""
    yield "boot", {"id": BOOT.read_text().strip()}, 1.0
    yield "boot_time", {}, psutil.boot_time()
    yield "cpu_count", {}, float(psutil.cpu_count() or 1)
    yield "load1", {}, psutil.getloadavg()[0]
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    yield "memory_total", {}, float(memory.total)
    yield "memory_available", {}, float(memory.available)
    yield "swap_total", {}, float(swap.total)
    yield "swap_used", {}, float(swap.used)
    yield from _filesystems()
    for device, disk in psutil.disk_io_counters(perdisk=True, nowrap=False).items():
        if (sys / "block" / device / "device").exists():  # neither a partition nor made of other disks
            yield "disk_read", {"device": device}, float(disk.read_bytes)
            yield "disk_written", {"device": device}, float(disk.write_bytes)
    interfaces = psutil.net_io_counters(pernic=True, nowrap=False)
    cards = {name for name in interfaces if (sys / "class" / "net" / name / "device").exists()}
    for name in cards or set(interfaces) - {"lo"}:  # in a container there are none
        yield "network_received", {"device": name}, float(interfaces[name].bytes_recv)
        yield "network_sent", {"device": name}, float(interfaces[name].bytes_sent)
    for chip, sensors in psutil.sensors_temperatures().items():
        for number, sensor in enumerate(sensors):
            yield "temperature", {"chip": chip, "sensor": sensor.label or f"temp{number + 1}"}, sensor.current


def _filesystems() -> Iterator[Row]:
    """Local ones, each once, wherever else it is mounted, too."""
    seen = set()
    for mounted in psutil.disk_partitions():
        if mounted.device in seen or mounted.fstype in IMAGES or not Path(mounted.mountpoint).is_dir():
            continue
        seen.add(mounted.device)
        with suppress(OSError):
            usage = psutil.disk_usage(mounted.mountpoint)
            yield "filesystem_size", {"mountpoint": mounted.mountpoint}, float(usage.total)
            yield "filesystem_avail", {"mountpoint": mounted.mountpoint}, float(usage.free)


def cpu_times() -> dict[str, float]:
    """Seconds by mode; `guest` is left out, which `user` holds as well."""
    return {mode: time for mode, time in psutil.cpu_times()._asdict().items() if not mode.startswith("guest")}

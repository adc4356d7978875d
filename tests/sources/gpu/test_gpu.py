"""The GPUs of this machine: the real pynvml in the real child process, against a driver that tests script."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from scripted import Driver

from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.core.poll import Watch
from exporter.core.state import Store
from exporter.core.types import Reading
from exporter.sources import gpu
from exporter.sources.gpu import Gpu, Gpus, child, process
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

HERE = Path(__file__).parents[2] / "captures" / "gpu"
WELL = dict.fromkeys(map(str, range(8)), 1.0)


class Read:
    """A watch on the GPUs, and what its reads show."""

    def __init__(self, watch: Watch, board: Board) -> None:
        self.watch = watch
        self._board = board

    @property
    def source(self) -> Gpu:
        source = self.watch._source
        assert isinstance(source, Gpu)
        return source

    @property
    def asker(self) -> process.Asker:
        return self.source._asker

    async def __call__(self) -> Reading:
        """A read, once a page has carried what the one before showed."""
        self._board.page(Format.TEXT)
        return await self.watch.read()

    async def values(self, family: str, *labels: str) -> dict[str, float]:
        return values(await self(), family, *labels)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what comes by itself, within a minute."""
    async with asyncio.timeout(60):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


def alive(pid: int | None) -> bool:
    with suppress(OSError):
        return Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def values(reading: Reading, family: str, *labels: str) -> dict[str, float]:
    """A family's values by these labels, by `gpu` where none is named."""
    return {
        ",".join(series.get(label) or "" for label in labels or ("gpu",)): value
        for series, value in reading.samples
        if series.family.name == family
    }


def of(reading: Reading, number: int) -> set[str]:
    """The families of one GPU."""
    return {series.family.name for series, _ in reading.samples if series.get("gpu") == str(number)}


@asynccontextmanager
async def watching(store: Store | None = None, **options: Any) -> AsyncIterator[Read]:
    """A watch as the exporter has it, with the child that lives on from read to read."""
    async with session() as client:
        board = Board()
        watch = assemble(Config(), Gpus(**options), client, board, store)
        following = asyncio.create_task(watch._follow(watch._source))  # type: ignore[arg-type]  # it follows
        await asyncio.sleep(0)
        try:
            yield Read(watch, board)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            watch.save()
            if store is not None:
                store.close()


# -- values --------------------------------------------------------------------------------------------------------

DIFFERENT = (
    "gpu.{n}.util_gpu = 1{n}", "gpu.{n}.util_mem = 2{n}", "gpu.{n}.enc = 3{n}", "gpu.{n}.dec = 4{n}",
    "gpu.{n}.temp = 5{n}", "gpu.{n}.temp_mem = 6{n}", "gpu.{n}.power_mw = 30{n}500", "gpu.{n}.mem_used = 10{n}",
    "gpu.{n}.clk_sm = 100{n}", "gpu.{n}.clk_graphics = 110{n}", "gpu.{n}.clk_mem = 120{n}",
    "gpu.{n}.clk_video = 130{n}", "gpu.{n}.fans = 2", "gpu.{n}.fan = 7{n}", "gpu.{n}.pstate = {n}",
    "gpu.{n}.ecc_vol_corr = 1{n}", "gpu.{n}.ecc_vol_unc = 2{n}", "gpu.{n}.remap_corr = 3{n}",
    "gpu.{n}.remap_unc = 4{n}", "gpu.{n}.pcie_replay = 5{n}", "gpu.{n}.viol_power_ns = {n}500000000",
    "gpu.{n}.recovery_action = {n}", "field.{n}.83 = {n}000", "field.{n}.138 = 1{n}", "field.{n}.139 = 2{n}",
    "field.{n}.197 = 3{n}", "field.{n}.198 = 4{n}",
)  # fmt: skip


async def test_each_value_of_eight_gpus_becomes_exactly_the_exposition_expected_of_it(
    driver: Driver, accept: bool
) -> None:
    driver.script.write_text(
        "\n".join(["gpus = 8", *(line.format(n=n) for n in range(8) for line in DIFFERENT)]) + "\n"
    )
    async with watching() as read:
        reading = await read()
    assert reading.ok, reading.error
    told = page([Sheet(reading.samples)], Format.TEXT)
    expected = HERE / "eight.prom"
    if accept:
        expected.write_bytes(told)
    assert told == expected.read_bytes()


async def test_pcie_counters_of_32_bits_begin_again_and_no_total_falls_or_leaps(driver: Driver, tmp_path: Path) -> None:
    still = "gpu.0.unset = ecc_vol_corr ecc_vol_unc pcie_replay viol_power_ns nvlinks"  # so that little else counts

    async def shown(read: Read, sent: int, received: int, joules: int, *more: str) -> list[float]:
        """Bytes sent and received by PCIe, and the energy, where the driver tells these."""
        told = {197: sent, 198: received, 83: joules * 1000, 138: 0, 139: 0}
        fields = (f"field.0.{field} = {value}" for field, value in told.items())
        driver.script.write_text("\n".join(("gpus = 1", still, *fields, *more)) + "\n")
        await asyncio.sleep(0.05)  # the double looks at its script every 20 ms
        reading = await read()
        assert reading.ok, reading.error
        pcie = values(reading, "llm_gpu_pcie_bytes_total", "direction")
        energy = values(reading, "llm_gpu_energy_joules_total").values()
        return [*(pcie[way] for way in ("transmit", "receive") if pcie), *energy]

    end = 2**32
    async with watching(Store(tmp_path)) as read:
        assert await shown(read, end - 600, end - 50, 7000) == [end - 600, end - 50, 7000]
        assert await shown(read, 400, 50, 7001) == [end + 400, end + 50, 7001]
        assert await shown(read, 500, 60, 7002) == [end + 500, end + 60, 7002]
        assert await shown(read, 500, 60, 7002, "gpu.0.err.* = GPU_IS_LOST") == []
        # it was reset meanwhile: what it has counted since is all that is known
        assert await shown(read, 30, 20, 1) == [end + 530, end + 80, 7003]
        assert await shown(read, end // 2, end // 2, 2) == [end + 500 + end // 2, end + 60 + end // 2, 7004]
    async with watching(Store(tmp_path)) as read:  # how often they began again while nobody looked is not known
        assert await shown(read, 30, 20, 3) == [end + 500 + end // 2, end + 60 + end // 2, 7005]
        assert await shown(read, 40, 20, 4) == [end + 510 + end // 2, end + 60 + end // 2, 7006]


async def test_what_the_driver_cannot_tell_of_a_card_is_absent(driver: Driver) -> None:
    missing = (
        "ecc_mode ecc_vol_corr ecc_vol_unc remap_corr remap_unc remap_pending remap_failure temp_mem nvlinks mig_mode"
    )
    await driver.say(f"gpu.*.unset = {missing}", *(f"gpu.*.err.field.{field} = NOT_SUPPORTED" for field in (138, 139)))
    async with watching() as read:
        reading = await read()
    assert values(reading, "llm_gpu_up") == WELL
    assert not {
        "llm_gpu_ecc_errors_total", "llm_gpu_remapped_rows", "llm_gpu_row_remap_pending", "llm_gpu_row_remap_failure",
        "llm_gpu_nvlink_bytes_total", "llm_gpu_mig_info", "llm_gpu_fan_speed_ratio",
    } & of(reading, 0)  # fmt: skip
    assert set(values(reading, "llm_gpu_temperature_celsius", "sensor")) == {"gpu"}
    assert set(values(reading, "llm_gpu_power_watts").values()) == {512.34}


@pytest.mark.parametrize("oldest", [False, True])
async def test_a_driver_older_than_the_library_costs_what_it_has_not_alone(driver: Driver, oldest: bool) -> None:
    new = ["nvmlDeviceGetCurrentClocksEventReasons"]
    new += [f"nvmlDeviceGet{what}RunningProcesses_v3" for what in ("Compute", "Graphics")]
    old = [f"nvmlDeviceGet{what}RunningProcesses_v2" for what in ("Compute", "Graphics")]
    there = "llm_gpu_throttle_active", "llm_gpu_processes", "llm_gpu_process_memory_bytes"
    async with watching() as read:
        reading = await read()
        known = {name: values(reading, name) for name in there}
    await driver.say(*(f"gpu.*.err.{call} = FUNCTION_NOT_FOUND" for call in (*new, *(old if oldest else ()))))
    async with watching() as read:
        reading = await read()
    assert values(reading, "llm_gpu_up") == WELL
    assert values(reading, there[0]) == known[there[0]] != {}
    for name in there[1:]:
        assert values(reading, name) == ({} if oldest else known[name])


async def test_parts_that_mig_made_are_told_with_their_memory(driver: Driver) -> None:
    await driver.say("gpu.0.mig_mode = 1", "gpu.0.mig = 1:0:19000000000:12000000000", "gpu.0.mig = 2:0:19000000000:3")
    async with watching() as read:
        reading = await read()
    info = values(reading, "llm_gpu_mig_info", "gpu", "gpu_instance", "compute_instance", "profile")
    assert info == {"0,1,0,1g.18gb": 1.0, "0,2,0,1g.18gb": 1.0}
    assert values(reading, "llm_gpu_mig_memory_used_bytes", "gpu_instance") == {"1": 12e9, "2": 3.0}
    assert values(reading, "llm_gpu_mig_memory_total_bytes", "gpu_instance") == {"1": 19e9, "2": 19e9}
    assert "0" not in values(reading, "llm_gpu_utilization_ratio")  # as the driver answers with MIG on
    assert values(reading, "llm_gpu_up") == WELL


NVITOP = """
import json, sys
from nvitop import Device
print(json.dumps([{
    "uuid": d.uuid(), "name": d.name(), "bus": d.bus_id(), "total": d.memory_total(), "used": d.memory_used(),
    "free": d.memory_free(), "util": d.gpu_utilization(), "mem": d.memory_utilization(), "enc": d.encoder_utilization(),
    "dec": d.decoder_utilization(), "temp": d.temperature(), "power": d.power_usage(), "limit": d.power_limit(),
    "fan": d.fan_speed(), "sm": d.sm_clock(), "memory": d.memory_clock(), "max_sm": d.max_sm_clock(),
    "state": d.performance_state(), "pids": sorted(d.processes()),
} for d in Device.all()]))
"""


async def test_nvitop_in_a_process_of_its_own_says_the_same(driver: Driver) -> None:
    lines = [line.format(n=n) for n in range(8) for line in DIFFERENT]
    await driver.say(*lines, f"gpu.4.proc = {os.getpid()}:1073741824")
    told = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", NVITOP], capture_output=True, text=True, check=True
    )
    theirs = {device["uuid"]: device for device in json.loads(told.stdout)}
    async with watching() as read:
        reading = await read()
    assert len(theirs) == 8
    for family, key, unit in (
        ("llm_gpu_memory_total_bytes", "total", 1),
        ("llm_gpu_memory_used_bytes", "used", 1),
        ("llm_gpu_memory_free_bytes", "free", 1),
        ("llm_gpu_utilization_ratio", "util", 100),
        ("llm_gpu_memory_busy_ratio", "mem", 100),
        ("llm_gpu_encoder_utilization_ratio", "enc", 100),
        ("llm_gpu_decoder_utilization_ratio", "dec", 100),
        ("llm_gpu_power_watts", "power", 1000),
        ("llm_gpu_power_limit_watts", "limit", 1000),
    ):
        assert values(reading, family, "uuid") == {uuid: said[key] / unit for uuid, said in theirs.items()}, family
    for family, label, key, unit in (
        ("llm_gpu_temperature_celsius", "gpu", "temp", 1),
        ("llm_gpu_fan_speed_ratio", "0", "fan", 100),
        ("llm_gpu_clock_hertz", "sm", "sm", 1e-6),
        ("llm_gpu_clock_hertz", "memory", "memory", 1e-6),
        ("llm_gpu_clock_max_hertz", "sm", "max_sm", 1e-6),
    ):
        by = {"llm_gpu_temperature_celsius": "sensor", "llm_gpu_fan_speed_ratio": "fan"}.get(family, "domain")
        ours = values(reading, family, "uuid", by)
        assert {uuid: ours[f"{uuid},{label}"] for uuid in theirs} == {
            uuid: pytest.approx(said[key] / unit) for uuid, said in theirs.items()
        }, (family, label)
    states = values(reading, "llm_gpu_performance_state", "uuid")
    assert {uuid: f"P{value:.0f}" for uuid, value in states.items()} == {u: d["state"] for u, d in theirs.items()}
    info = values(reading, "llm_gpu_info", "uuid", "name", "pci_bus_id")
    assert set(info) == {f"{uuid},{said['name']},{said['bus']}" for uuid, said in theirs.items()}
    processes = values(reading, "llm_gpu_processes", "uuid")
    assert processes == {uuid: float(len(said["pids"])) for uuid, said in theirs.items()}


# -- GPUs that are not well ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["GPU_IS_LOST", "RESET_REQUIRED"])
async def test_a_gpu_that_is_lost_or_wants_a_reset_costs_its_own_series_at_once_and_is_seen_to_return(
    driver: Driver, error: str
) -> None:
    async with watching() as read:
        assert await read.values("llm_gpu_up") == WELL
        before = await read()
        await driver.say(f"gpu.3.err.* = {error}")
        lost = await read()
        assert values(lost, "llm_gpu_up") == {**WELL, "3": 0.0}
        assert of(lost, 3) == {"llm_gpu_up"}
        assert all(of(lost, number) == of(before, number) for number in range(8) if number != 3)
        assert [advice.missing for advice in lost.advice] == [f"GPU 3: {error}"]
        assert set(values(lost, "llm_gpu_up", "gpu", "uuid")) == set(values(before, "llm_gpu_up", "gpu", "uuid"))
        await driver.say()
        back = await read()
        assert values(back, "llm_gpu_up") == WELL
        assert of(back, 3) == of(before, 3)


async def test_a_gpu_that_is_lost_in_one_call_of_many_shows_nothing_of_the_others(driver: Driver) -> None:
    await driver.say("gpu.3.err.nvmlDeviceGetDecoderUtilization = GPU_IS_LOST", "gpu.4.err.field.82 = GPU_IS_LOST")
    async with watching() as read:
        reading = await read()
    assert values(reading, "llm_gpu_up") == {**WELL, "3": 0.0, "4": 0.0}
    assert of(reading, 3) == of(reading, 4) == {"llm_gpu_up"}


async def test_a_gpu_that_is_lost_from_the_start_is_down_and_its_return_is_seen(driver: Driver) -> None:
    await driver.say("gpu.3.err.* = GPU_IS_LOST", "gpu.3.err.nvmlDeviceGetHandleByIndex_v2 = GPU_IS_LOST")
    async with watching() as read:
        assert await read.values("llm_gpu_up") == {**WELL, "3": 0.0}
        await driver.say()
        reading = await read()
    assert values(reading, "llm_gpu_up") == WELL
    assert len(values(reading, "llm_gpu_up", "uuid")) == 8


async def test_a_gpu_that_hangs_costs_its_own_series_and_delays_the_others_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE", 1.5)
    async with watching() as read:
        before = await read()
        await driver.say("gpu.5.hang.nvmlDeviceGetUtilizationRates = 6", "gpu.6.power_mw = 1000")
        asked = read.asker._asked
        hung = await read()
        assert values(hung, "llm_gpu_up") == {**WELL, "5": 0.0}
        assert of(hung, 5) == {"llm_gpu_up"}
        assert values(hung, "llm_gpu_power_watts")["6"] == 1.0
        assert all(of(hung, number) == of(before, number) for number in range(8) if number != 5)
        await driver.say("gpu.6.power_mw = 2000")
        answers = await read.asker.ask()  # the child says at once that it still hangs: nobody waits a second time
        assert answers[5] is not None
        assert answers[5]["error"] == child.HANGS
        assert values(await read(), "llm_gpu_power_watts")["6"] == 2.0
        assert read.asker._asked == asked + 3

        async def back() -> bool:
            return await read.values("llm_gpu_up") == WELL

        await until(back)
        reading = await read()
        assert of(reading, 5) == of(before, 5)
        assert read.watch.health.interval == 5.0  # others are read as often as before


async def test_a_gpu_that_hangs_from_the_start_is_down_and_the_others_are_found(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START", 3.0)
    await driver.say("gpu.5.hang.nvmlDeviceGetHandleByIndex_v2 = 30")
    async with watching() as read:
        assert await read.values("llm_gpu_up") == {**WELL, "5": 0.0}


async def test_when_every_gpu_hangs_each_is_down_and_the_target_answers(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE", 1.5)
    async with watching() as read:
        await read()
        pid = read.asker.pid
        await driver.say("gpu.*.hang.nvmlDeviceGetMemoryInfo_v2 = 30")
        await read()
        reading = await read()
        assert reading.ok
        assert values(reading, "llm_gpu_up") == dict.fromkeys(WELL, 0.0)
        assert read.asker.pid == pid  # a fresh child would hang as well


async def test_a_call_that_fails_for_no_known_reason_costs_its_own_series(driver: Driver) -> None:
    await driver.say("gpu.2.err.nvmlDeviceGetPowerUsage = UNKNOWN", "gpu.2.err.field.83 = UNKNOWN")
    async with watching() as read:
        reading = await read()
        assert of(reading, 1) - of(reading, 2) == {"llm_gpu_power_watts", "llm_gpu_energy_joules_total"}
        await driver.say()
        assert of(await read(), 2) == of(reading, 1)  # it was asked again at once


async def test_a_gpu_of_which_the_library_knows_no_more_is_down(driver: Driver) -> None:
    async with watching() as read:
        await read()
        await driver.say(gpus=7)
        os.kill(read.asker.pid or 0, signal.SIGKILL)
        read.asker._started = float("-inf")
        await asyncio.sleep(0.1)
        reading = await read()
        assert values(reading, "llm_gpu_up") == {**WELL, "7": 0.0}
        assert of(reading, 7) == {"llm_gpu_up"}
        assert [advice.missing for advice in reading.advice] == ["GPU 7: gone"]


TWICE = """
import os, sys, time, pynvml
from exporter.sources.gpu import child
pynvml.nvmlInit()
card = child.Nvidia(pynvml, 0, {}, child.Xids(pynvml))

def told():
    names = {name for name, labels, _ in card.read()[0] if labels.get("sensor") != "gpu"}
    print(*sorted(names & {"gpu_power_watts", "gpu_temperature_celsius"}))

told()
open(os.environ["FAKE_NVML_CONF"], "w").write("gpus = 1")
time.sleep(0.05)
told()
later = time.monotonic() + child.AGAIN
child.time.monotonic = lambda: later
told()
"""


async def test_what_a_card_does_not_support_is_asked_again_after_a_while(driver: Driver) -> None:
    await driver.say("gpu.0.unset = power_mw temp_mem")
    told = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", TWICE], capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == ["", "", "gpu_power_watts gpu_temperature_celsius"]


# -- XIDs ----------------------------------------------------------------------------------------------------------


async def heard(read: Read, xids: dict[str, float]) -> bool:
    return values(await read(), "llm_gpu_xid_errors_total", "gpu", "xid") == xids


async def test_xids_are_counted_also_of_a_gpu_that_is_lost(driver: Driver) -> None:
    async with watching() as read:
        await read()
        began = time.time()
        await driver.say("gpu.3.err.* = GPU_IS_LOST", "xid.1 = 3:79")
        await until(lambda: heard(read, {"3,79": 1.0}))
        reading = await read()
        assert values(reading, "llm_gpu_xid_errors_total", "gpu", "xid") == {"3,79": 1.0}
        assert of(reading, 3) == {"llm_gpu_up", "llm_gpu_xid_errors_total", "llm_gpu_xid_last_timestamp_seconds"}
        at = values(reading, "llm_gpu_xid_last_timestamp_seconds")["3"]
        assert began - 1 <= at <= time.time() + 1
        await driver.say("xid.2 = 3:79", "xid.3 = 3:48", "xid.4 = 0:48")
        await until(lambda: heard(read, {"3,79": 2.0, "3,48": 1.0, "0,48": 1.0}))


async def test_an_xid_is_shown_as_0_first_so_that_increase_sees_it(driver: Driver) -> None:
    async with watching() as read:
        await read()
        await driver.say("xid.1 = 3:79")
        shown: dict[str, float] = {}

        async def born() -> bool:
            shown.update(values(await read.watch.read(), "llm_gpu_xid_errors_total"))
            return bool(shown)

        await until(born)
        assert shown == {"3": 0.0}
        assert await read.values("llm_gpu_xid_errors_total") == {"3": 1.0}


async def test_counts_go_on_when_the_child_and_the_exporter_begin_anew(driver: Driver, tmp_path: Path) -> None:
    async with watching(Store(tmp_path)) as read:
        await read()
        await driver.say("xid.1 = 3:79", "field.3.83 = 5000")
        await until(lambda: heard(read, {"3,79": 1.0}))
        assert (await read.values("llm_gpu_energy_joules_total"))["3"] == 123456794.0  # it fell, so it began anew
    await driver.say("field.3.83 = 7000")
    async with watching(Store(tmp_path)) as read:
        assert await read.values("llm_gpu_xid_errors_total") == {"3": 1.0}
        await driver.say("xid.1 = 3:79", "field.3.83 = 8000")  # a new process of the driver's tells from its first on
        await until(lambda: heard(read, {"3,79": 2.0}))
        assert (await read.values("llm_gpu_energy_joules_total"))["3"] == 123456797.0


# -- processes -----------------------------------------------------------------------------------------------------


async def test_memory_is_told_by_workload_and_leaves_with_its_process(driver: Driver) -> None:
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        name = gpu.workload_of(sleeper.pid)
        assert name
        await driver.say(
            f"gpu.0.proc = {sleeper.pid}:1000:C", f"gpu.0.proc = {sleeper.pid}:1000:G", "gpu.0.proc = 4194303:50:C",
            "gpu.0.proc = 4194302:7:C", f"gpu.1.proc = {sleeper.pid}:300:C", "gpu.2.proc = 4194303:-:C",
        )  # fmt: skip
        async with watching() as read:
            reading = await read()
            shares = values(reading, "llm_gpu_process_memory_bytes", "gpu", "workload")
            assert shares == {f"0,{name}": 1000.0, "0,other": 57.0, f"1,{name}": 300.0}
            assert [values(reading, "llm_gpu_processes")[number] for number in "0123"] == [3.0, 1.0, 1.0, 0.0]
            await driver.say("gpu.0.proc = 4194303:50:C")
            reading = await read()
            assert values(reading, "llm_gpu_process_memory_bytes", "gpu", "workload") == {"0,other": 50.0}
    finally:
        sleeper.kill()
        await sleeper.wait()


# -- drivers and children that come and go -------------------------------------------------------------------------


@pytest.mark.usefixtures("without_driver")
async def test_without_a_driver_the_reading_says_so(tmp_path: Path) -> None:
    async with watching(sysfs=str(tmp_path)) as read:
        reading = await read()
    assert (reading.reason, len(reading.samples)) == ("connect", 0)
    assert "libnvidia-ml.so.1 cannot be loaded" in reading.error


async def test_a_driver_that_comes_later_is_found(driver: Driver) -> None:
    await driver.say("sys.err.nvmlInitWithFlags = DRIVER_NOT_LOADED", "sys.err.nvmlInit_v2 = DRIVER_NOT_LOADED")
    async with watching() as read:
        reading = await read()
        assert reading.reason == "connect"
        assert "Driver Not Loaded" in reading.error
        await driver.say()
        again = await read()  # not in a loop: it is too early for another child
        assert again.reason == "connect"
        assert "Driver Not Loaded" in again.error
        assert read.asker.pid is None
        now = read.asker._clock()
        read.asker._clock = lambda: now + process.WAIT[1]
        assert await read.values("llm_gpu_up") == WELL


async def test_children_that_die_are_started_again_with_growing_pauses_and_at_once_after_a_steady_one(
    driver: Driver,
) -> None:
    time_now = 0.0
    asker = process.Asker("/sys", lambda _: None, lambda: time_now)
    try:
        await driver.say("sys.err.nvmlInitWithFlags = UNKNOWN", "sys.err.nvmlInit_v2 = UNKNOWN")
        starts = []
        for second in range(200):
            time_now = float(second)
            before = asker._started
            with pytest.raises(ReadError):
                await asker.ask()
            if asker._started != before:
                starts.append(second)
        assert starts == [0, 5, 15, 35, 75, 135, 195]
        await driver.say()
        time_now = 255.0
        assert len(await asker.ask()) == 8
        time_now = 255.0 + process.STEADY + 1
        os.kill(asker.pid or 0, signal.SIGKILL)
        assert len(await asker.ask()) == 8  # within the same question
    finally:
        await asker.close()


async def test_a_driver_that_hangs_at_its_start_is_a_timeout(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", 0.5)
    await driver.say("sys.hang.nvmlInitWithFlags = 60", "sys.hang.nvmlInit_v2 = 60")
    async with watching() as read:
        reading = await read()
    assert reading.reason == "timeout"
    assert "it hangs" in reading.error


async def test_beside_a_child_that_cannot_be_ended_none_is_started(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held:
        pid = 4194303

        def poll(self) -> None:
            return None

    monkeypatch.setattr(process, "END", 0.1)
    async with watching() as read:
        read.asker._ending = Held()  # type: ignore[assignment]  # a process that the kernel holds cannot be had here
        reading = await read()
        assert reading.reason == "timeout"
        assert "4194303" in reading.error
        assert read.asker.pid is None
        read.asker._ending = None
        assert await read.values("llm_gpu_up") == WELL


async def test_a_driver_that_was_loaded_anew_is_asked_by_a_fresh_child(driver: Driver) -> None:
    async with watching() as read:
        await read()
        first = read.asker.pid
        await driver.say("gpu.2.err.nvmlDeviceGetPowerUsage = UNINITIALIZED")
        reading = await read()
        assert reading.reason == "connect"
        assert "the driver was unloaded or loaded anew" in reading.error
        await driver.say()
        now = read.asker._clock()
        read.asker._clock = lambda: now + process.WAIT[1]
        assert await read.values("llm_gpu_up") == WELL
        assert read.asker.pid not in (None, first)


async def test_a_gpu_that_stays_lost_is_looked_for_with_a_fresh_child(driver: Driver) -> None:
    await driver.say("gpu.3.err.* = GPU_IS_LOST")
    async with watching() as read:
        await read()
        first = read.asker.pid
        await read()
        assert read.asker.pid == first
        now = read.asker._clock()
        read.asker._clock = lambda: now + process.STEADY + 1
        await read()
        await read()
        assert read.asker.pid not in (None, first)


async def test_no_child_outlives_the_watch(driver: Driver) -> None:
    async with watching() as read:
        await read()
        pid = read.asker.pid
        assert alive(pid)
    assert not alive(pid)


async def test_a_single_read_leaves_no_child_behind(driver: Driver) -> None:
    async with session() as client:
        watch = assemble(Config(), Gpus(), client, Board(), None)
        assert (await watch.read()).ok
    assert isinstance(watch._source, Gpu)
    assert watch._source._asker.pid is None


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_the_exporter_finds_the_gpus_by_itself_and_its_child_ends_with_it(
    driver: Driver, tmp_path: Path, sign: signal.Signals
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    exporter = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "exporter", "--listen", f"127.0.0.1:{port}", "--state-directory", str(tmp_path / "state"),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as client:

            async def found() -> bool:
                with suppress(aiohttp.ClientError):
                    async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
                        return 'llm_gpu_up{source="gpu",target="gpu",gpu="7"' in await response.text()
                return False

            await until(found)
        (pid,) = children(exporter.pid)
        assert alive(pid)
        exporter.send_signal(sign)
        await exporter.wait()

        async def gone() -> bool:
            return not alive(pid)

        await until(gone)
    finally:
        if exporter.returncode is None:
            exporter.kill()
            await exporter.wait()


# -- AMD -----------------------------------------------------------------------------------------------------------


def amdgpu(sysfs: Path, card: int, **files: str) -> None:
    """A card as the driver amdgpu shows it."""
    device = sysfs / "devices" / f"0000:0{card}:00.0"
    for name, said in {"vendor": "0x1002", "device": "0x740f", **files}.items():
        file = device / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said + "\n")
    folder = sysfs / "class/drm" / f"card{card}"
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(device)


MI210 = {
    "unique_id": "18f68e602b8a790f", "product_name": "AMD Instinct MI210", "gpu_busy_percent": "97",
    "mem_busy_percent": "12", "mem_info_vram_total": "68702699520", "mem_info_vram_used": "10989568",
    "pcie_replay_count": "4", "hwmon__hwmon3__power1_average": "41000000", "hwmon__hwmon3__power1_cap": "300000000",
    "hwmon__hwmon3__temp1_input": "36000", "hwmon__hwmon3__temp1_label": "edge",
    "hwmon__hwmon3__temp2_input": "41000", "hwmon__hwmon3__temp2_label": "junction",
    "hwmon__hwmon3__temp3_input": "44000", "hwmon__hwmon3__temp3_label": "mem",
    "hwmon__hwmon3__freq1_input": "800000000", "hwmon__hwmon3__freq2_input": "1600000000",
}  # fmt: skip


@pytest.mark.usefixtures("without_driver")
async def test_cards_of_amd_are_read_below_any_root(tmp_path: Path, accept: bool) -> None:
    amdgpu(tmp_path, 1, **MI210)
    amdgpu(tmp_path, 2, gpu_busy_percent="5")
    amdgpu(tmp_path, 3, vendor="0x8086")
    (tmp_path / "class/drm/card1-DP-1").mkdir()
    async with watching(sysfs=str(tmp_path)) as read:
        reading = await read()
        assert reading.ok, reading.error
        (tmp_path / "devices/0000:02:00.0/gpu_busy_percent").unlink()
        assert await read.values("llm_gpu_up", "gpu", "uuid") == {"0,18f68e602b8a790f": 1.0, "1,0000:02:00.0": 0.0}
    told = page([Sheet(reading.samples)], Format.TEXT)
    expected = HERE / "amd.prom"
    if accept:
        expected.write_bytes(told)
    assert told == expected.read_bytes()


@pytest.mark.usefixtures("without_driver")
async def test_a_card_of_amd_that_hangs_costs_its_own_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", 3.0)
    amdgpu(tmp_path, 0, **MI210)
    amdgpu(tmp_path, 1, gpu_busy_percent="5")
    busy = tmp_path / "devices/0000:01:00.0/gpu_busy_percent"
    busy.unlink()
    os.mkfifo(busy)  # to open it blocks until somebody writes
    async with watching(sysfs=str(tmp_path)) as read:
        assert await read.values("llm_gpu_up") == {"0": 1.0, "1": 0.0}


# -- detection -----------------------------------------------------------------------------------------------------


async def recognised(target: Gpus) -> bool:
    async with session() as client:
        return await Gpu.recognise(Upstream(client, ""), target)


async def test_cards_are_found_and_left_to_a_dcgm_exporter_that_answers_here(
    tmp_path: Path, dcgm: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    amdgpu(tmp_path, 0, **MI210)
    monkeypatch.setattr(gpu, "USUAL", ("http://127.0.0.1:1",))
    (found,) = Gpu.candidates({})
    assert await recognised(found.model_copy(update={"sysfs": str(tmp_path)}))
    monkeypatch.setattr(gpu, "USUAL", tuple(dcgm))
    with pytest.raises(ReadError, match="left to the dcgm-exporter"):
        await recognised(found.model_copy(update={"sysfs": str(tmp_path)}))
    assert await recognised(Gpus(sysfs=str(tmp_path)))  # who writes them down has them


@pytest.mark.usefixtures("without_driver")
async def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no GPU here"):
        await recognised(Gpus(sysfs=str(tmp_path)))


async def test_gpus_that_were_found_step_back_for_a_dcgm_exporter_that_comes_later(
    driver: Driver, dcgm: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "USUAL", ())
    async with watching(step_back=True) as read:
        assert await read.values("llm_gpu_up") == WELL
        monkeypatch.setattr(gpu, "USUAL", tuple(dcgm))
        read.source._look_again = float("-inf")
        reading = await read()
        assert reading.ok
        assert not len(reading.samples)
        assert dcgm[0] in reading.advice[0].missing
        monkeypatch.setattr(gpu, "USUAL", ())
        read.source._look_again = float("-inf")
        assert await read.values("llm_gpu_up") == WELL


def test_the_address_of_a_gpu_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match="source: dcgm"):
        Gpus(url="http://127.0.0.1:9400")

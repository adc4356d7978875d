"""The child process that asks the GPUs: a call that hangs pins one thread of this process, never the exporter.

A program of its own that imports nothing of ours, so that it stays small: `python -P child.py SYSFS`. It says one line
of JSON with the number of GPUs. From then on each line that comes in is a question, a number. Each GPU answers from a
thread of its own with one line: `{"ask": 7, "gpu": 0, "uuid": …, "text": …, "processes": [[pid, bytes], …]}`, the text
being lines of an exposition under the names of map.yaml; or with an `error` in place of a text. A GPU that still works
on an older question is said to hang at once. In between come XIDs: `{"gpu": 0, "uuid": …, "xid": 79, "at": …}`. It ends
when its input does, and when only a fresh process can help.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from ctypes import c_void_p, cast
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

Row = tuple[str, dict[str, str], float]
"""A name in our unit, labels beside the GPU's own, a value."""

Said = tuple[list[Row], list[tuple[int, int | None]]]
"""Rows, and each process on the GPU with its bytes there."""

LIBRARY = "libnvidia-ml.so.1"
AGAIN = 600.0
"""Seconds until a reading that a GPU does not support is tried again."""
XID_WAIT = 2000
"""Milliseconds in one wait for XIDs."""

UP: Row = ("gpu_up", {}, 1.0)

HANGS = "hangs"
"""The error of a GPU that has not answered the question before."""

UTILIZATION, ENCODER, DECODER = (
    "gpu_utilization_ratio",
    "gpu_encoder_utilization_ratio",
    "gpu_decoder_utilization_ratio",
)

CLOCKS = ("graphics", "sm", "memory", "video")
"""In the order of NVML_CLOCK_*."""

REASONS = {
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
}
"""nvmlClocksEventReason*, without the one that says that a GPU is idle: nothing holds it back then."""

RECOVERIES = ("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset")
"""In the order of NVML_GPU_RECOVERY_ACTION_*."""

ALL_LINKS = 0xFFFFFFFF

FIELDS: dict[tuple[int, int], tuple[str, dict[str, str], float]] = {
    (3, 0): ("gpu_ecc_errors_total", {"severity": "corrected"}, 1.0),
    (4, 0): ("gpu_ecc_errors_total", {"severity": "uncorrected"}, 1.0),
    (74, 0): ("gpu_throttle_seconds_total", {"reason": "power_cap"}, 1e9),
    (76, 0): ("gpu_throttle_seconds_total", {"reason": "sync_boost"}, 1e9),
    (269, 0): ("gpu_throttle_seconds_total", {"reason": "sw_thermal"}, 1e9),
    (270, 0): ("gpu_throttle_seconds_total", {"reason": "hw_thermal"}, 1e9),
    (271, 0): ("gpu_throttle_seconds_total", {"reason": "hw_power_brake"}, 1e9),
    (82, 0): ("gpu_temperature_celsius", {"sensor": "memory"}, 1.0),
    (83, 0): ("gpu_energy_joules_total", {}, 1e3),
    (94, 0): ("gpu_pcie_replays_total", {}, 1.0),
    (138, ALL_LINKS): ("gpu_nvlink_bytes_total", {"direction": "transmit"}, 1 / 1024),
    (139, ALL_LINKS): ("gpu_nvlink_bytes_total", {"direction": "receive"}, 1 / 1024),
    (142, 0): ("gpu_remapped_rows", {"cause": "correctable"}, 1.0),
    (143, 0): ("gpu_remapped_rows", {"cause": "uncorrectable"}, 1.0),
    (144, 0): ("gpu_row_remap_pending", {}, 1.0),
    (145, 0): ("gpu_row_remap_failure", {}, 1.0),
    (197, 0): ("gpu_pcie_bytes_total", {"direction": "transmit"}, 1.0),
    (198, 0): ("gpu_pcie_bytes_total", {"direction": "receive"}, 1.0),
    (230, 0): ("gpu_recovery_action", {}, 1.0),
}
"""NVML's field values that are asked for in one call, by id and scope: what each is here, and NVML's units in ours.

ECC errors are those since the driver was loaded. nvmlDeviceGetPcieThroughput would block 20 ms for what 197 and 198
tell.
"""

VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal")
"""Where a field's value stands, by its type (NVML_VALUE_TYPE_*)."""


class Lost(Exception):  # noqa: N818 - a state, said by its name
    """The GPU answers nothing at all; the message is NVML's word for why."""


class Gpu(Protocol):
    """One GPU. Its calls may hang: they are made in its own thread alone."""

    uuid: str | None

    def read(self) -> Said:
        """What it says now. Raises Lost."""


class Nvidia:
    """One GPU of NVIDIA's, by its index. `nvml` is the module pynvml, initialised."""

    def __init__(self, nvml: Any, index: int, driver: dict[str, str], xids: Xids) -> None:
        self.uuid: str | None = None
        self._nvml = nvml
        self._index = index
        self._driver = driver
        self._xids = xids
        self._handle: Any = None
        self._info: dict[str, str] = {}
        self._again: dict[object, float] = {}  # monotonic seconds at which what is not supported is tried again
        self._lost = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
        self._unsupported = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def read(self) -> Said:
        rows: list[Row] = []
        failure = ""
        try:
            self._find()
        except self._nvml.NVMLError as error:
            raise Lost(self._word(error.value)) from None
        for reading in (
            self._memory, self._utilization, self._encoder, self._decoder, self._temperature, self._power,
            self._power_limit, self._state, self._reasons, self._fans, self._fields, self._clocks, self._mig,
        ):  # fmt: skip
            try:
                rows += self._try(reading.__name__, reading)
            except self._nvml.NVMLError as error:
                failure = self._word(error.value)
        if not rows:
            raise Lost(failure or "NOT_SUPPORTED")
        rows += [UP, ("gpu_info", self._info, 1.0)]
        try:
            processes = self._try("processes", self._processes)
        except self._nvml.NVMLError:
            processes = []
        else:
            rows += [("gpu_processes", {}, float(len(processes)))] * ("processes" not in self._again)
        return rows, processes

    def _try(self, what: object, call: Any) -> list[Any]:
        """What a call gives, nothing where it is not supported. Raises Lost, and NVMLError where it failed."""
        if what in self._again and time.monotonic() < self._again[what]:
            return []
        try:
            given = list(call())
        except self._nvml.NVMLError as error:
            self._note(error.value)
            if error.value not in self._unsupported:
                raise
            self._again[what] = time.monotonic() + AGAIN
            return []
        self._again.pop(what, None)
        return given

    def _note(self, code: int) -> None:
        """What an error says of more than the call. Raises Lost."""
        if code in self._lost:
            raise Lost(self._word(code))
        if code == self._nvml.NVML_ERROR_UNINITIALIZED:
            end("the driver was unloaded or loaded anew")

    def _word(self, code: int) -> str:
        names: dict[int, str] = {
            value: name for name, value in vars(self._nvml).items() if name.startswith("NVML_ERROR_")
        }
        return names.get(code, f"error {code}").removeprefix("NVML_ERROR_")

    def _first(self, *calls: str) -> Any:
        """What the first of these calls says that the driver has; the newest is the first. Raises NVMLError."""
        for call in calls[:-1]:
            try:
                return getattr(self._nvml, call)(self._handle)
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    raise
        return getattr(self._nvml, calls[-1])(self._handle)

    def _find(self) -> None:
        """The GPU's handle and identity, which do not change; XIDs are told of it from now on."""
        if self._handle is not None:
            return
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
        self.uuid = uuid = nvml.nvmlDeviceGetUUID(handle)
        self._info = {"name": nvml.nvmlDeviceGetName(handle), **self._driver}
        with suppress(nvml.NVMLError):
            self._info["pci_bus_id"] = text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        self._handle = handle
        self._xids.watch(handle, self._index, uuid)

    # -- readings: one call to the driver each, or few -------------------------------------------------------------

    def _memory(self) -> Iterator[Row]:
        # version 1 would count what the driver reserves as used
        said = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
        for what in ("total", "used", "free", "reserved"):
            yield f"gpu_memory_{what}_bytes", {}, float(getattr(said, what))

    def _utilization(self) -> Iterator[Row]:
        said = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        yield UTILIZATION, {}, said.gpu / 100
        yield "gpu_memory_busy_ratio", {}, said.memory / 100

    def _encoder(self) -> Iterator[Row]:
        yield ENCODER, {}, self._nvml.nvmlDeviceGetEncoderUtilization(self._handle)[0] / 100

    def _decoder(self) -> Iterator[Row]:
        yield DECODER, {}, self._nvml.nvmlDeviceGetDecoderUtilization(self._handle)[0] / 100

    def _temperature(self) -> Iterator[Row]:
        said = self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)
        yield "gpu_temperature_celsius", {"sensor": "gpu"}, float(said)

    def _power(self) -> Iterator[Row]:
        yield "gpu_power_watts", {}, self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000

    def _power_limit(self) -> Iterator[Row]:
        yield "gpu_power_limit_watts", {}, self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000

    def _state(self) -> Iterator[Row]:
        state = self._nvml.nvmlDeviceGetPerformanceState(self._handle)
        if state <= 15:  # 32 says that it is not known
            yield "gpu_performance_state", {}, float(state)

    def _reasons(self) -> Iterator[Row]:
        mask = self._first("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        for bit, reason in REASONS.items():
            yield "gpu_throttle_active", {"reason": reason}, float(bool(mask & bit))

    def _fans(self) -> Iterator[Row]:
        for fan in range(self._nvml.nvmlDeviceGetNumFans(self._handle)):
            said = self._nvml.nvmlDeviceGetFanSpeed_v2(self._handle, fan)
            yield "gpu_fan_speed_ratio", {"fan": str(fan)}, said / 100

    def _clocks(self) -> Iterator[Row]:
        for number, domain in enumerate(CLOCKS):
            for name, call in (
                ("gpu_clock_hertz", self._nvml.nvmlDeviceGetClockInfo),
                ("gpu_clock_max_hertz", self._nvml.nvmlDeviceGetMaxClockInfo),
            ):
                for megahertz in self._try(
                    (name, domain), lambda call=call, number=number: [call(self._handle, number)]
                ):
                    yield name, {"domain": domain}, megahertz * 1e6

    def _fields(self) -> Iterator[Row]:
        now = time.monotonic()
        asked = [field for field in FIELDS if self._again.get(field, 0.0) <= now]
        for field, said in zip(asked, self._nvml.nvmlDeviceGetFieldValues(self._handle, asked), strict=True):
            self._note(said.nvmlReturn)
            if said.nvmlReturn in self._unsupported:
                self._again[field] = now + AGAIN
            elif said.nvmlReturn == self._nvml.NVML_SUCCESS and said.valueType < len(VALUES):
                name, labels, unit = FIELDS[field]
                value = getattr(said.value, VALUES[said.valueType])
                if name == "gpu_recovery_action":
                    for number, action in enumerate(RECOVERIES):
                        yield name, {"action": action}, float(value == number)
                    yield name, {"action": "other"}, float(value >= len(RECOVERIES))
                else:
                    yield name, labels, value / unit

    def _mig(self) -> Iterator[Row]:
        nvml = self._nvml
        if not nvml.nvmlDeviceGetMigMode(self._handle)[0]:
            return
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, number)
                instance = str(nvml.nvmlDeviceGetGpuInstanceId(part))
                labels = {"gpu_instance": instance, "compute_instance": str(nvml.nvmlDeviceGetComputeInstanceId(part))}
                labels["mig_uuid"] = nvml.nvmlDeviceGetUUID(part)
                labels["profile"] = nvml.nvmlDeviceGetName(part).rpartition("MIG ")[2]
                memory = nvml.nvmlDeviceGetMemoryInfo(part, version=nvml.nvmlMemory_v2)
            except nvml.NVMLError as error:
                self._note(error.value)
                continue  # no instance of this number, or one that was just destroyed
            yield "gpu_mig_info", labels, 1.0
            yield "gpu_mig_memory_used_bytes", {"gpu_instance": instance}, float(memory.used)
            yield "gpu_mig_memory_total_bytes", {"gpu_instance": instance}, float(memory.total)

    def _processes(self) -> Iterator[tuple[int, int | None]]:
        """Each process on the GPU with its bytes there, None where the driver cannot tell."""
        found: dict[int, int | None] = {}
        for what in ("Compute", "Graphics"):
            # without a version these would raise what is no NVMLError where the driver is older than pynvml
            for process in self._first(*(f"nvmlDeviceGet{what}RunningProcesses_{version}" for version in ("v3", "v2"))):
                had = found.get(process.pid)
                told = [size for size in (had, process.usedGpuMemory) if size is not None]
                found[process.pid] = max(told) if told else None  # one that computes and draws is in both lists
        return iter(found.items())


class Xids:
    """Hears of XIDs: the driver tells them once, with the handle of the GPU, which may be lost by then."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._gpus: dict[int | None, tuple[int, str]] = {}  # number and UUID by the handle's address
        self._set = nvml.nvmlEventSetCreate()

    def watch(self, handle: Any, index: int, uuid: str) -> None:
        """Hear of this GPU, too; one that cannot tell XIDs has none."""
        self._gpus[cast(handle, c_void_p).value] = index, uuid
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, self._set)

    def listen(self) -> None:
        """Say each XID as it happens."""
        while True:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._set, XID_WAIT)
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_TIMEOUT:
                    time.sleep(XID_WAIT / 1000)  # as where a GPU is lost: others may have something to say
                continue
            gpu = self._gpus.get(cast(event.device, c_void_p).value)
            if gpu is not None:
                say({"gpu": gpu[0], "uuid": gpu[1], "xid": event.eventData, "at": time.time()})


class Amd:
    """One GPU of AMD's, by the folder that the driver amdgpu has for it in sysfs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        bus = os.path.basename(os.path.realpath(folder))  # noqa: PTH119 - the link's end is its name
        self.uuid: str | None = self._word("unique_id") or bus
        self._info = {"name": self._word("product_name") or f"AMD {self._word('device')}", "pci_bus_id": bus}

    def read(self) -> Said:
        rows = [*self._rows()]
        if not rows:
            raise Lost("GPU_IS_LOST")
        return [*rows, UP, ("gpu_info", self._info, 1.0)], []

    def _rows(self) -> Iterator[Row]:
        for file, name, unit in (
            ("gpu_busy_percent", UTILIZATION, 100),
            ("mem_busy_percent", "gpu_memory_busy_ratio", 100),
            ("mem_info_vram_total", "gpu_memory_total_bytes", 1),
            ("mem_info_vram_used", "gpu_memory_used_bytes", 1),
            ("pcie_replay_count", "gpu_pcie_replays_total", 1),
        ):
            yield from self._row(self._folder / file, name, {}, unit)
        total, used = (self._number(self._folder / f"mem_info_vram_{what}") for what in ("total", "used"))
        if total is not None and used is not None:
            yield "gpu_memory_free_bytes", {}, total - used
        for chip in sorted(self._folder.glob("hwmon/hwmon*")):
            for number in range(1, 4):
                label = read_file(chip / f"temp{number}_label") or "edge"
                sensor = {"edge": "gpu", "mem": "memory"}.get(label, label)
                yield from self._row(chip / f"temp{number}_input", "gpu_temperature_celsius", {"sensor": sensor}, 1000)
            power = [*self._row(chip / "power1_average", "gpu_power_watts", {}, 1e6)]
            yield from power or self._row(chip / "power1_input", "gpu_power_watts", {}, 1e6)
            yield from self._row(chip / "power1_cap", "gpu_power_limit_watts", {}, 1e6)
            yield from self._row(chip / "energy1_input", "gpu_energy_joules_total", {}, 1e6)
            yield from self._row(chip / "freq1_input", "gpu_clock_hertz", {"domain": "graphics"}, 1)
            yield from self._row(chip / "freq2_input", "gpu_clock_hertz", {"domain": "memory"}, 1)
            yield from self._row(chip / "pwm1", "gpu_fan_speed_ratio", {"fan": "0"}, 255)

    def _row(self, file: Path, name: str, labels: dict[str, str], unit: float) -> Iterator[Row]:
        number = self._number(file)
        if number is not None:
            yield name, labels, number / unit

    def _word(self, file: str) -> str:
        return read_file(self._folder / file)

    @staticmethod
    def _number(file: Path) -> float | None:
        try:
            return float(read_file(file))
        except ValueError:
            return None


def read_file(file: Path) -> str:
    """A file's text; nothing where there is none, or its device does not answer."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def text(given: bytes | str) -> str:
    """A string of NVML's: its structures hold bytes."""
    return given.decode() if isinstance(given, bytes) else given


_saying = Lock()


def say(what: dict[str, Any]) -> None:
    """Write a line for the exporter; without one to read it there is nothing left to do."""
    line = memoryview((json.dumps(what, separators=(",", ":")) + "\n").encode())
    try:
        with _saying:
            while line:
                line = line[os.write(1, line) :]
    except OSError:
        os._exit(0)


def end(why: str) -> None:
    """End at once, whatever hangs: the exporter starts a fresh process."""
    say({"ends": why})
    os._exit(0)


def nvidia() -> tuple[Sequence[Gpu], str]:
    """NVIDIA's GPUs, or why there are none."""
    try:
        import pynvml as nvml  # type: ignore[import-untyped]  # theirs has no types
    except ImportError:
        return (), "the module pynvml is missing (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return (), f"{LIBRARY} cannot be loaded: NVIDIA's driver is not installed"
        return (), f"NVIDIA's driver cannot be used: {error}"
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        driver = {
            "driver_version": nvml.nvmlSystemGetDriverVersion(),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}",
        }
        xids = Xids(nvml)
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return (), f"NVIDIA's driver cannot be used: {error}"
    Thread(target=xids.listen, daemon=True).start()
    return [Nvidia(nvml, index, driver, xids) for index in range(count)], "NVIDIA's driver knows of no GPU"


def amd(sysfs: Path) -> Sequence[Gpu]:
    """AMD's GPUs, in the order of their cards."""
    folders = [card / "device" for card in sysfs.glob("class/drm/card*") if card.name[4:].isdecimal()]
    folders.sort(key=lambda folder: int(folder.parent.name[4:]))
    return [Amd(folder) for folder in folders if read_file(folder / "vendor") == "0x1002"]


def writer(number: int) -> Callable[[str | None, Iterable[Row]], str]:
    """Writes the rows of a GPU. What stands before a value is made once."""
    heads: dict[tuple[str, ...], str] = {}

    def write(uuid: str | None, rows: Iterable[Row]) -> str:
        lines = []
        for name, labels, value in rows:
            key = (name, *labels.values())
            head = heads.get(key)
            if head is None:
                told = {"gpu": str(number), "uuid": uuid or "", **labels}
                text = ",".join(f'{label}="{escaped(said)}"' for label, said in told.items())
                head = heads[key] = f"{name}{{{text}}} "
            lines.append(f"{head}{value!r}\n")
        return "".join(lines)

    return write


def escaped(value: str) -> str:
    """A label's value as expositions have it between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def work(number: int, gpu: Gpu, questions: SimpleQueue[int], busy: list[int]) -> None:
    """Answer the questions to one GPU. `busy` holds the one that is being answered."""
    write = writer(number)
    while True:
        ask = questions.get()
        head = {"ask": ask, "gpu": number}
        answer: dict[str, Any]
        try:
            rows, processes = gpu.read()
            answer = {"text": write(gpu.uuid, rows), "processes": processes}
        except Lost as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one GPU is no matter of the others
            answer = {"error": f"{type(error).__name__}: {error}"}
        busy.clear()
        say({**head, "uuid": gpu.uuid, **answer})


def main(sysfs: str, lines: Iterable[str]) -> None:
    """Answer each line until there are no more."""
    found, problem = nvidia()
    gpus = [*found, *amd(Path(sysfs))]
    say({"gpus": len(gpus), "problem": problem})
    workers: list[tuple[SimpleQueue[int], list[int]]] = []
    for number, gpu in enumerate(gpus):
        workers.append((SimpleQueue(), []))
        Thread(target=work, args=(number, gpu, *workers[-1]), daemon=True).start()
    for line in lines:
        ask = int(line)
        for number, (questions, busy) in enumerate(workers):
            if busy:
                say({"ask": ask, "gpu": number, "uuid": gpus[number].uuid, "error": HANGS})
            else:
                busy.append(ask)
                questions.put(ask)
    os._exit(0)  # also where a thread hangs


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin)

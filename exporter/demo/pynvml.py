"""What the process that asks the GPUs finds in the demo in place of NVIDIA's library: calls answer what is in a file.

A copy of this lies beside the file, which `machine.py` writes anew twice a second: for each function its answer, for
the whole machine and for each GPU. An answer that is a list is one for each kind that the call names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FILE = Path(__file__).with_name("gpus.json")

NVML_SUCCESS, NVML_ERROR_UNINITIALIZED, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_TIMEOUT = 0, 1, 3, 10
NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND = 12, 13
NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED = 15, 16
nvmlMemory_v2 = NVML_TEMPERATURE_GPU = nvmlEventTypeXidCriticalError = 0  # noqa: N816 - theirs
_DOUBLE = 0
"""NVML_VALUE_TYPE_DOUBLE."""


class NVMLError(Exception):
    """Theirs, with its number."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


def _said() -> Any:
    return _written(FILE.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _written(_: int) -> Any:
    return json.loads(FILE.read_text(), object_hook=lambda named: SimpleNamespace(**named))


def __getattr__(name: str) -> Callable[..., Any]:
    if not name.startswith("nvml"):
        raise AttributeError(name)

    def call(gpu: int | None = None, which: int | None = None, *_: object, **__: object) -> Any:
        said = _said()
        answer = getattr(said if gpu is None else said.gpus[gpu], name)
        return answer[which] if isinstance(answer, list) and which is not None else answer

    return call


def nvmlInit() -> None:  # noqa: N802 - theirs
    """Nothing is to be done."""


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802 - theirs
    """A GPU is its number."""
    return index


def nvmlDeviceRegisterEvents(*_: object) -> None:  # noqa: N802 - theirs
    """All are told of."""


def nvmlDeviceGetFieldValues(gpu: int, fields: Sequence[tuple[int, int]]) -> list[SimpleNamespace]:  # noqa: N802
    """Theirs by their number, each as a double."""
    told = vars(_said().gpus[gpu].fields)
    return [
        SimpleNamespace(
            nvmlReturn=NVML_SUCCESS if str(field) in told else NVML_ERROR_NOT_SUPPORTED,
            valueType=_DOUBLE,
            value=SimpleNamespace(dVal=told.get(str(field))),
        )
        for field, _ in fields
    ]


_heard: int | None = None
"""How many XIDs were there when this process began to listen, or have been told since."""


def nvmlEventSetWait_v2(_: object, milliseconds: int) -> SimpleNamespace:  # noqa: N802 - theirs
    """The next XID."""
    global _heard
    until = time.monotonic() + milliseconds / 1000
    while time.monotonic() < until:
        xids = _said().xids
        if _heard is None:
            _heard = len(xids)
        elif len(xids) > _heard:
            gpu, xid = xids[_heard]
            _heard += 1
            return SimpleNamespace(device=gpu, eventData=xid)
        time.sleep(0.5)
    raise NVMLError(NVML_ERROR_TIMEOUT)

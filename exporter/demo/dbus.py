"""systemd's manager of the simulated units, on a D-Bus of its own on which nobody else is."""

from __future__ import annotations

import io
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from fnmatch import fnmatchcase
from typing import Any

from dbus_fast import Message, Variant
from dbus_fast._private.unmarshaller import Unmarshaller  # it has no door for who answers

from exporter.demo.units import Unit, Units
from exporter.demo.world import World
from exporter.sources.systemd.bus import PROPERTIES, UNIT_INTERFACE, interface_of, path_of, unit_of

OWNER = ":1.0"
"""The manager's own name on the bus."""


class Manager:
    """Says how the units are, and signals each change."""

    def __init__(self, world: World, units: Units) -> None:
        self._world, self._units = world, units
        self._listeners: set[StreamWriter] = set()
        self._serial = 0
        units.changed.append(self._signal)

    async def talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection: who it is does not matter."""
        try:
            while not (line := await reader.readline()).startswith(b"BEGIN"):
                if not line:
                    return
                writer.write(b"OK 00\r\n" if b"AUTH" in line else b"ERROR\r\n")
            while True:
                head = await reader.readexactly(16)
                body, fields = struct.unpack("<4xI4xI", head)
                rest = await reader.readexactly((fields + 7) // 8 * 8 + body)
                stream: Any = io.BytesIO(head + rest)
                asked = Unmarshaller(stream).unmarshall()
                assert asked is not None  # noqa: S101 - it is whole
                self._send(writer, self._answer(asked, writer))
        except (ConnectionError, IncompleteReadError):
            pass
        finally:
            self._listeners.discard(writer)
            writer.close()

    def _send(self, writer: StreamWriter, message: Message) -> None:
        self._serial += 1
        message.serial, message.sender = self._serial, OWNER
        writer.write(message._marshall(False))  # noqa: SLF001 - the same

    def _answer(self, asked: Message, writer: StreamWriter) -> Message:
        def said(signature: str = "", *body: object) -> Message:
            return Message.new_method_return(asked, signature, list(body))

        match asked.member:
            case "Hello":
                return said("s", ":1.1")
            case "AddMatch":
                return said()
            case "Subscribe":
                self._listeners.add(writer)
                return said()
            case "ListUnitsByNames":
                return said("a(ssssssouso)", [self._listed(name) for name in asked.body[0]])
            case "ListUnitsByPatterns":
                found = (name for name in self._units.all if any(fnmatchcase(name, each) for each in asked.body[1]))
                return said("a(ssssssouso)", [self._listed(name) for name in found])
            case "Get" if asked.body[1] == "Version":
                return said("v", Variant("s", "257 (simulated)"))
            case "Get":
                return said("v", Variant("t", self._wall(-86400.0)))
            case "GetAll" if (unit := self._units.all.get(unit_of(asked.path or ""))) is not None:
                return said("a{sv}", self._about(unit, asked.body[0]))
        return Message.new_error(asked, "org.freedesktop.DBus.Error.UnknownMethod", "not simulated")

    def _wall(self, at: float) -> int:
        """Microseconds of Unix time."""
        return int((self._world.began + at) * 1e6)

    def _listed(self, name: str) -> list[object]:
        unit = self._units.all.get(name)
        state = ["not-found", "inactive"] if unit is None else ["loaded", unit.state]
        return [name, name, *state, "", "", path_of(name), 0, "", "/"]

    def _about(self, unit: Unit, interface: str) -> dict[str, Variant]:
        if interface == UNIT_INTERFACE:
            return {
                "LoadState": Variant("s", "loaded"),
                "ActiveState": Variant("s", unit.state),
                "ActiveEnterTimestamp": Variant("t", self._wall(unit.began)),
                "InvocationID": Variant("ay", unit.invocation),
            }
        told = {
            "NRestarts": Variant("u", unit.restarts),
            "Result": Variant("s", unit.result),
            "ExecMainCode": Variant("i", unit.code),
            "ExecMainStatus": Variant("i", unit.status),
        }
        if unit.is_active():
            told["CPUUsageNSec"] = Variant("t", int(unit.cpu * 1e9))
            told["MemoryCurrent"] = Variant("t", int(unit.held))
            told["TasksCurrent"] = Variant("t", unit.tasks)
        return told

    def _signal(self, unit: Unit) -> None:
        """Tell of a change, as systemd does: what the type has first."""
        for interface in (interface_of(unit.name), UNIT_INTERFACE):
            for writer in self._listeners:
                told = [interface, self._about(unit, interface), []]
                path = path_of(unit.name)
                self._send(writer, Message.new_signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", told))

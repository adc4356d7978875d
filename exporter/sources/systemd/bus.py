"""systemd's manager over D-Bus: which units there are, what they say, and what it signals of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from exporter.core.errors import ReadError
from exporter.sources.systemd.unit import TYPE, UNIT

SYSTEMD = "org.freedesktop.systemd1"
PLACE = "/org/freedesktop/systemd1"
UNIT_INTERFACE = f"{SYSTEMD}.Unit"
PROPERTIES = "org.freedesktop.DBus.Properties"
MATCHES = 400
"""Rules for signals that one connection has: dbus-daemon allows 512. With more units all units' signals are taken."""

Listed = tuple[str, str, str, str]
"""Of a unit: name, LoadState, ActiveState, D-Bus path."""
Heard = Callable[[str, Mapping[str, Any]], None]
"""To be told what a signal says: the unit's name, and its properties that have changed."""


def address(scope: str, environ: Mapping[str, str]) -> str:
    """Where the bus of the system, or of the user that the exporter runs as, listens."""
    if scope == "system":
        return environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus"


def path_of(unit: str) -> str:
    """A unit's D-Bus path: what is no letter or digit, and a digit in front, is written `_` and its code."""
    escaped = [
        chr(byte) if chr(byte).isalnum() and byte < 128 and not (place == 0 and chr(byte).isdigit()) else f"_{byte:02x}"
        for place, byte in enumerate(unit.encode())
    ]
    return f"{PLACE}/unit/{''.join(escaped)}"


def unit_of(path: str) -> str:
    """The unit's name in its D-Bus path."""
    first, *rest = path.rpartition("/")[2].split("_")
    with suppress(ValueError):
        return (first.encode() + b"".join(bytes([int(part[:2], 16)]) + part[2:].encode() for part in rest)).decode()
    return ""


def interface_of(unit: str) -> str:
    """The D-Bus interface of a unit's type: its suffix tells."""
    return f"{SYSTEMD}.{unit.rpartition('.')[2].capitalize()}"


class Manager:
    """A connection to a manager. All methods raise ReadError."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._owner: str | None = None  # the manager's own name on the bus: nobody else's signals are taken

    async def _call(self, member: str, signature: str = "", *body: Any, **where: str) -> Sequence[Any]:
        message = Message(
            destination=where.get("destination", SYSTEMD),
            path=where.get("path", PLACE),
            interface=where.get("interface", f"{SYSTEMD}.Manager"),
            member=member,
            signature=signature,
            body=list(body),
        )
        try:
            reply = await self._bus.call(message)
        except (DBusFastError, OSError, EOFError) as error:
            raise ReadError("connect", f"the connection to D-Bus broke: {error!r}") from None
        if reply is None or reply.message_type is MessageType.ERROR:
            name = "no reply" if reply is None else reply.error_name
            raise ReadError("content", f"systemd refuses {member} over D-Bus: {name}")
        if "destination" not in where:
            self._owner = reply.sender
        return reply.body

    async def units(self, names: Sequence[str], patterns: Sequence[str]) -> list[Listed]:
        """The units of these names, those included that are not there; and those that match and are loaded."""
        found = list((await self._call("ListUnitsByNames", "as", list(names)))[0]) if names else []
        if patterns:
            found += (await self._call("ListUnitsByPatterns", "asas", [], list(patterns)))[0]
        return [(unit[0], unit[2], unit[3], unit[6]) for unit in found]

    async def about(self) -> tuple[float, str]:
        """When the manager began, in Unix seconds, and its version."""
        said = [
            (await self._call("Get", "ss", f"{SYSTEMD}.Manager", name, interface=PROPERTIES))[0].value
            for name in ("UserspaceTimestamp", "Version")
        ]
        return said[0] / 1e6, str(said[1])[:64]

    async def properties(self, path: str, interface: str, names: Iterable[str]) -> dict[str, Any]:
        """These properties of a unit; nothing where it has just gone."""
        try:
            told = (await self._call("GetAll", "s", interface, path=path, interface=PROPERTIES))[0]
        except ReadError as error:
            if error.reason == "content":
                return {}
            raise
        return _plain(told, names)

    async def listen(self, units: Sequence[str] | None, heard: Heard) -> None:
        """Hear of each change of what is read of these units, or of all."""

        def hear(message: Message) -> None:
            if message.member != "PropertiesChanged" or message.sender != self._owner or message.path is None:
                return
            if told := _plain(message.body[1], (*UNIT, *TYPE)):
                heard(unit_of(message.path), told)

        self._bus.add_message_handler(hear)
        common = f"type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged'"
        rules = [f"{common},path_namespace='{PLACE}/unit'"]
        if units is not None and len(units) <= MATCHES:
            rules = [f"{common},path='{path_of(unit)}'" for unit in units]
        daemon = {"destination": "org.freedesktop.DBus", "path": "/org/freedesktop/DBus"}
        for rule in rules:
            await self._call("AddMatch", "s", rule, interface="org.freedesktop.DBus", **daemon)
        await self.subscribe()

    async def subscribe(self) -> None:
        """Let the manager signal at all: it does where somebody has subscribed."""
        try:
            await self._call("Subscribe")
        except ReadError as error:
            if error.reason == "connect":  # what it refuses is a second subscription
                raise

    @property
    def owner(self) -> str | None:
        """The manager's own name on the bus: another one after it has executed itself anew."""
        return self._owner

    async def lost(self) -> None:
        """Returns when the connection is no more."""
        with suppress(Exception):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]  # theirs


def _plain(told: Mapping[str, Variant], names: Iterable[str]) -> dict[str, Any]:
    """The values of these properties, where they are told; an id as hexadecimal text."""
    values = {name: told[name].value for name in names if name in told}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}


@asynccontextmanager
async def connected(
    scope: str, place: str | None = None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Manager]:
    """A connection to the manager of the system, or of the user that the exporter runs as. Raises ReadError.

    `place` is where the bus listens, where that is not this machine's own.
    """
    place = place or address(scope, environ)
    bus: MessageBus | None = None
    try:
        bus = MessageBus(bus_address=place)
        await bus.connect()
    except (DBusFastError, OSError, EOFError) as error:
        if bus is not None and bus.connected:
            bus.disconnect()
        why = "its socket is not there" if isinstance(error, FileNotFoundError) else error
        raise ReadError("connect", f"no D-Bus of the {scope}: {why}") from None
    manager = Manager(bus)
    try:
        yield manager
    finally:
        bus.disconnect()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await manager.lost()

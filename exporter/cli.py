"""The command line: serve (the default), check, read, bundle, demo."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

import structlog
from pydantic import ValidationError

from exporter import __version__
from exporter.app import App
from exporter.config.load import ConfigError, load
from exporter.config.model import Config, TargetConfig
from exporter.config.secret import SecretError, WithKey
from exporter.config.values import shown
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.source import source_map
from exporter.core.state import Store, default_directory
from exporter.core.types import Reading
from exporter.recognition import recognised
from exporter.sources import sources
from exporter.text.negotiate import Format
from exporter.text.parse import family_of
from exporter.text.render import Sheet, page
from exporter.web.server import AddressTaken
from exporter.wiring import assemble

DESCRIPTION = """\
Reads model servers, LiteLLM, NVIDIA Dynamo, etcd and NATS, and says what it finds in one vocabulary on :9400/metrics.
Without arguments it finds what runs on this machine. With --config it reads what the file says.
"""

SHOWN_HELP = 100
"""Characters of a HELP that are shown."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-exporter", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"llm-exporter {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    serve = commands.add_parser("serve", help="serve :9400/metrics (what happens without a command, too)")
    # what stands behind `serve` counts, and what stands before it is not forgotten
    for known, absent in ((parser, None), (serve, argparse.SUPPRESS)):
        known.argument_default = absent
        known.add_argument("--config", type=Path, metavar="FILE", help="YAML file; without it, what runs here is found")
        known.add_argument("--listen", metavar="[HOST]:PORT", help="address to serve on (default :9400, all addresses)")
        known.add_argument("--interval", metavar="TIME", help="time between reads of a target (default 5s)")
        known.add_argument("--metrics-url", metavar="URL", help="a Dynamo frontend to read, too")
        known.add_argument("--metrics-interval", metavar="TIME", help="time between reads of Dynamo (default 3s)")
        known.add_argument("--nats-interval", metavar="TIME", help="time between reads of NATS (default 2s)")
        known.add_argument("--state-directory", type=Path, metavar="DIR", help="where totals are kept over restarts")
        known.add_argument("--enable-reload", action="store_true", default=absent, help="allow POST /-/reload")
        known.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
        known.add_argument("--log-format", choices=("text", "json"), help="default text")

    check = commands.add_parser(
        "check", help="check a configuration file, then read each of its targets once; 1 where one is down"
    )
    check.add_argument("file", type=Path)
    check.add_argument("--offline", action="store_true", help="only check the file")

    read = commands.add_parser("read", help="read one upstream once; print what would be shown, and what not and why")
    read.add_argument("source", choices=sorted(sources()))
    read.add_argument("url", nargs="?", default="", help="where it answers; not for this machine itself")
    read.add_argument("--api-key-file", metavar="FILE", help="file with the key (else as the source's README says)")

    bundle = commands.add_parser("bundle", help="write dashboards, rules, alerts, compose.yaml and a configuration")
    bundle.add_argument("directory", type=Path, metavar="DIR")
    bundle.add_argument(
        "--kubernetes", action="store_true", help="ConfigMaps, ServiceMonitor and PrometheusRule instead"
    )

    demo = commands.add_parser("demo", help="serve a simulated stack: every dashboard alive, with nothing installed")
    demo.argument_default = argparse.SUPPRESS
    demo.add_argument("--listen", metavar="[HOST]:PORT", help="address to serve on (default :9400, all addresses)")
    demo.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
    demo.add_argument("--speed", type=_speed, default=24.0, metavar="N", help="how fast its day passes (default 24)")
    demo.add_argument("--hour", type=_hour, default=8.0, metavar="N", help="the hour at which it begins (default 8)")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="another day for another number (default 1)")
    return parser


def _speed(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 3600.0:
        raise argparse.ArgumentTypeError(f"not between 0 and 3600: {text} (24: a day passes in an hour)")
    return value


def _hour(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 24.0:
        raise argparse.ArgumentTypeError(f"no hour of a day: {text} (16.5: half past four in the afternoon)")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for something that failed, 2 for something written wrong."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            return asyncio.run(_check(options.file, offline=options.offline))
        if options.command == "read":
            return asyncio.run(_read(options.source, options.url, options.api_key_file))
        if options.command == "bundle":
            return _bundle(options.directory, for_kubernetes=options.kubernetes)
        if options.command == "demo":
            return _demo(options)
        return _serve(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (AddressTaken, SecretError) as error:
        print(f"llm-exporter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(options: argparse.Namespace) -> int:
    flags = _flags(options)
    intervals: Mapping[str, float] = flags.pop("intervals", {})  # type: ignore[assignment]  # as the model has it

    def configured() -> Config:
        config = load(options.config) if options.config is not None else Config(detect=True)
        for kind, source in sources().items() if config.detect else ():
            try:
                source.candidates(os.environ)
            except ValidationError as error:
                raise _refused(error, f"environment, {kind.upper()}_…: ") from None
        more = {"targets": (*config.targets, *_frontend(options)), "intervals": {**config.intervals, **intervals}}
        return config.model_copy(update={**flags, **more})

    config = configured()
    _log_to(config.log_format, config.log_level)
    directory = Path(config.state_directory) if config.state_directory else default_directory(os.environ)
    asyncio.run(App(config, configured, Store(directory)).run())
    return 0


def _bundle(directory: Path, *, for_kubernetes: bool) -> int:
    from exporter import bundle

    _log_to("text", "error")
    try:
        for file in bundle.write(directory, for_kubernetes=for_kubernetes):
            print(file)
    except bundle.BundleError as error:
        print(f"llm-exporter: {error}", file=sys.stderr)
        return 1
    return 0


def _demo(options: argparse.Namespace) -> int:
    from exporter import demo

    _log_to("text", options.log_level or "info")
    demo.serve(_flags(options), options.seed, options.speed, options.hour)
    return 0


def _refused(error: ValidationError, before: str) -> ConfigError:
    """What is written wrong on the command line or in the environment, as mistakes in a file are told."""
    return ConfigError(
        tuple(
            f"{before}{str(mistake['loc'][0]).replace('_', '-')}: {mistake['msg'].removeprefix('Value error, ')}"
            for mistake in error.errors()
        )
    )


def _flags(options: argparse.Namespace) -> dict[str, object]:
    """What flags say, as checked as the file's own keys. Raises ConfigError."""
    given: dict[str, object] = {
        "listen": options.listen,
        "interval": options.interval,
        "state_directory": str(options.state_directory.absolute()) if options.state_directory else None,
        "reload": options.enable_reload,
        "log_level": options.log_level,
        "log_format": options.log_format,
        "intervals": {
            kind: _duration(value)
            for kind, value in (("dynamo", options.metrics_interval), ("nats", options.nats_interval))
            if value is not None
        }
        or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        checked = Config(**given)  # type: ignore[arg-type]  # argparse knows strings; the model checks them
    except ValidationError as error:
        raise _refused(error, "--") from None
    return {name: getattr(checked, name) for name in given}


def _duration(text: str) -> str:
    """A time as people write it who had seconds in their fingers: `3` is `3s`."""
    return f"{text}s" if text.isdecimal() else text


def _frontend(options: argparse.Namespace) -> Sequence[TargetConfig]:
    """The frontend that a flag names. Raises ConfigError."""
    if options.metrics_url is None:
        return ()
    try:
        return sources()["dynamo"].at(options.metrics_url, os.environ).parts()
    except ValidationError as error:
        raise _refused(error, "--metrics-url: ") from None


class _StandardError:
    """Where logs go. What cannot be written is lost: a full disk or a closed pipe is no reason to stop."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            if sys.stderr is not None:  # as it is where it was closed from the start
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            if sys.stderr is not None:
                sys.stderr.flush()


def _log_to(form: str, level: str) -> None:
    """Log to standard error, as text for people or one JSON object a line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty(), pad_event_to=0)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _StandardError())),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


async def _once(config: Config, target: TargetConfig, *, everything: bool = False) -> tuple[Reading, Watch]:
    """Read a target once, as the exporter would, without its memory."""
    async with session() as client:
        watch = assemble(config, target, client, Board(), None, everything=everything)
        return await watch.read(), watch


async def _check(file: Path, *, offline: bool) -> int:
    config = load(file)
    _log_to("text", "error")
    count = len(config.targets)
    print(f"{file}: fine, {count} target{'s'[: count != 1]}, detection {'on' if config.detect else 'off'}")
    if not count and not config.detect:
        print("  nothing would be read (write targets, or detect: true)")
    if offline:
        return 0
    down = 0
    async with asyncio.TaskGroup() as group:
        reads = [(target, group.create_task(_first(config, target))) for target in config.targets]
        for target, read in reads:
            source, reading = await read
            if reading.ok:
                what = f"up, {source}" if target.source == "auto" else "up"
                what += " (experimental)" * source_map(source).experimental
                print(f"  {target.target_name}: {what}, {len(reading.samples)} series in {reading.seconds:.2f} s")
            else:
                down += 1
                print(f"  {target.target_name}: down ({reading.reason}): {reading.error}")
            _print_advice(reading, sys.stdout)
    return 1 if down else 0


async def _first(config: Config, target: TargetConfig) -> tuple[str, Reading]:
    """What a target is, and its first read."""
    if target.source == "auto":
        async with session() as client:
            found = await recognised(client, target)
        if not isinstance(found, TargetConfig):
            return target.source, Reading(target.target_name, time.time(), 0.0, reason="content", error=found)
        target = found
    reading, _ = await _once(config, target)
    return target.source, reading


def _print_advice(reading: Reading, to: TextIO) -> None:
    for advice in reading.advice:
        print(f"    missing: {advice.missing}; switch it on with:", file=to)
        for line in advice.remedy.splitlines():
            print(f"      {line}", file=to)


async def _read(kind: str, url: str, key_file: str | None, environ: Mapping[str, str] = os.environ) -> int:
    _log_to("text", "error")
    try:
        target = sources()[kind].at(url, environ)
    except ValidationError as error:
        raise _refused(error, f"{shown(url) if url else kind}: ") from None  # a login may stand in it
    if key_file is not None:
        if not isinstance(target, WithKey):
            raise ConfigError((f"--api-key-file: {kind} takes no key (write what it wants into a file for --config)",))
        target = target.model_copy(update={"api_key": None, "api_key_env": None, "api_key_file": key_file})
    reading, watch = await _once(Config(), target, everything=True)
    if not reading.ok:
        print(f"{target.place or kind}: {reading.reason}: {reading.error}", file=sys.stderr)
        return 1
    sys.stdout.write(page([Sheet(reading.samples)], Format.TEXT).decode())
    _print_left_out(reading, watch)
    return 0


def _plain(text: str) -> str:
    """An upstream's words as a terminal may have them: one line, not too long."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= SHOWN_HELP else text[: SHOWN_HELP - 1] + "…"


def _print_left_out(reading: Reading, watch: Watch) -> None:
    """What the upstream said and the page does not, by reason and family, on standard error."""
    left: dict[str, Counter[tuple[str, str]]] = {}
    told = {(comment.name, comment.keyword): comment.text for comment in watch.reader.comments()}
    types = {name: text for (name, keyword), text in told.items() if keyword == "TYPE"}
    for identity, known in watch.reader.lines():
        reason = watch.totals.why_left_out(known, identity)
        if reason is not None:
            name = identity.partition(b"{")[0].decode(errors="replace")
            family, kind = family_of(name, types) or (name, "")
            # as a map has them: of histograms the name of all, of counters the line's own, which may end in _total
            left.setdefault(reason, Counter())[(family if kind in ("histogram", "summary") else name, family)] += 1
    err = sys.stderr
    print(
        f"\nread in {reading.seconds:.2f} s: {watch.reader.samples} samples → {len(reading.samples)} series", file=err
    )
    for reason, names in sorted(left.items()):
        print(f"left out, {reason}:", file=err)
        for (name, family), count in sorted(names.items()):
            what = ": ".join(text for keyword in ("TYPE", "HELP") if (text := _plain(told.get((family, keyword), ""))))
            print(", ".join(filter(None, (f"  {name} ({count})", what))), file=err)
    if watch.totals.map.experimental:
        print(f"{watch.health.source} is experimental: made from its documentation, not yet seen running", file=err)
    print("left out, because it takes two reads: what is made of differences (TPOT, scores, savings)", file=err)
    _print_advice(reading, err)

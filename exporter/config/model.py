"""What a user may write, key by key. Loader, JSON Schema and docs/configuration.md are made from here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from exporter.catalogue import families
from exporter.config.values import (
    URL_SCHEMA,
    AbsolutePath,
    Address,
    BaseUrl,
    Duration,
    LabelName,
    PlacedError,
    Size,
    Text,
    UpstreamLabelName,
    address,
    nearest,
    shown,
)

if TYPE_CHECKING:
    from ssl import SSLContext


class Section(BaseModel):
    """What every part of the configuration has in common: fixed once made, strict, nothing unknown, no input shown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"listed twice: {shown(value)} (write it once)")
    return values


def excludable() -> list[str]:
    """The families of the catalogue that a target can have, and so can do without."""
    return [family.name for family in families().values() if "target" in family.labels]


class _Excludable:
    """Marks the name of a family: for editors, all names that may stand there."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "title": "family", "enum": excludable()}


def _family(value: str) -> str:
    known = excludable()
    if value not in known:
        raise ValueError(f"no family of ours: {shown(value)} ({nearest(value, known, 'see docs/metrics.md')})")
    return value


FamilyName = Annotated[str, AfterValidator(_family), _Excludable()]


def _source(value: str, info: ValidationInfo) -> str:
    """The kind of a source; of a file that is loaded, of one that there is."""
    if info.context is not None and value not in info.context["kinds"]:
        raise ValueError(f"unknown source: {shown(value)} ({nearest(value, info.context['kinds'])})")
    return value


SourceName = Annotated[str, AfterValidator(_source)]


_ONE_OR_MORE_URLS = {"anyOf": [URL_SCHEMA, {"type": "array", "minItems": 1, "items": URL_SCHEMA}]}
"""The loader takes both, and makes a target of each URL."""


def _from_here(value: str, info: ValidationInfo) -> str:
    """A path that begins where the configuration's file lies; a file that is loaded must be there."""
    if info.context is None:
        return value
    path = Path(info.context["directory"]) / value
    if not path.is_file():
        raise ValueError(f"no such file: {shown(value)} (write the path of a PEM file)")
    return str(path)


PemFile = Annotated[str, AfterValidator(_from_here)]
"""A file of certificates or of a key; a path that does not begin with / starts at the configuration's folder."""


class Tls(Section):
    """What is trusted over TLS, and who the exporter is there. Files that change are read again with the next read."""

    ca_file: PemFile | None = Field(default=None, description="Certificates to trust, instead of this machine's own.")
    cert_file: PemFile | None = Field(default=None, description="The exporter's own certificate, where one is wanted.")
    key_file: PemFile | None = Field(
        default=None, description="The key of `cert_file`, where it is not in the same file."
    )

    @field_validator("key_file")
    @classmethod
    def _of_a_certificate(cls, key_file: str | None, info: ValidationInfo) -> str | None:
        if key_file is not None and info.data.get("cert_file", "?") is None:
            raise ValueError("a key without a certificate (write cert_file, too)")
        return key_file

    @model_validator(mode="after")
    def _to_be_used(self, info: ValidationInfo) -> Self:
        if info.context is not None:  # a file that is loaded: what it names must be of use now
            import ssl

            try:
                self.context()
            except ssl.SSLError:
                what = "not certificates, or not the key of cert_file"
                raise ValueError(f"{what} (write PEM files, the key without a passphrase)") from None
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror} (let the exporter's user read it)") from None
        return self

    @property
    def files(self) -> Sequence[str]:
        """The files that are named."""
        return [file for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]

    def context(self) -> SSLContext:
        """Raises OSError where a file cannot be read or is no certificate."""
        import ssl

        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file, password="")  # or the terminal would be asked
        return context


class TargetConfig(Section):
    """A target that is recognised by what it answers. Each source's own target adds its keys."""

    usual_interval: ClassVar[float | None] = None
    """Seconds between two reads where nothing else is written; None for what is usual for all."""

    source: str = Field(default="auto", description="What kind of thing it is. `auto`: recognised by what it answers.")
    url: Annotated[BaseUrl, WithJsonSchema(_ONE_OR_MORE_URLS)] = Field(
        description="Where it answers. A list of URLs makes one target of each, alike in all else."
    )
    name: Text | None = Field(
        default=None, description="The label `target`. Left out: host and port of the URL. Not with a list of URLs."
    )
    interval: Duration | None = Field(
        default=None, description="Time between two reads. Left out: the `interval` of all."
    )
    timeout: Duration | None = Field(
        default=None, description="Time that a read may take. Left out: the `timeout` of all."
    )
    stalled_after: Duration | None = Field(
        default=None, description="Time that its requests may stand still. Left out: the `stalled_after` of all."
    )
    compression: bool = Field(
        default=False,
        description="Ask for gzip: spares the network, costs the upstream time. Never asked of this machine.",
    )
    tls: Tls | None = Field(default=None, description="What is trusted over TLS. Left out: what this machine trusts.")
    labels: dict[LabelName, Text] = Field(
        default={},
        description="Labels to add to every series of the target.",
        json_schema_extra={"additionalProperties": False},
    )
    keep: Annotated[tuple[UpstreamLabelName, ...], AfterValidator(_once)] = Field(
        default=(),
        description="Upstream labels to keep, such as `team_alias`: the 20 largest values, the rest as `other`.",
    )
    exclude: Annotated[tuple[FamilyName, ...], AfterValidator(_once)] = Field(
        default=(), description="Families that are not wanted of this target."
    )

    @field_validator("keep")
    @classmethod
    def _not_added_too(cls, keep: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for label in keep:
            if label in info.data.get("labels", {}):
                raise ValueError(f"a label that `labels` adds: {shown(label)} (write it in one of the two)")
        return keep

    @model_validator(mode="after")
    def _over_tls(self) -> Self:
        if self.tls is None or self.speaks_tls:
            return self
        plain = next((place for place in self._written() if place.startswith(("http://", "redis://"))), None)
        if plain is None:
            raise PlacedError("nothing is read over TLS here (leave tls out)", "tls")
        secure = plain.partition(":")[0] + "s"
        raise PlacedError(f"not over TLS: {shown(plain)} (write {secure}://, or leave tls out)", "tls")

    @property
    def target_name(self) -> str:
        """The label `target`: the name, else host:port of the URL, else the source's name."""
        return self.name or (host_and_port(self.url) if self.url else self.source)

    @property
    def place(self) -> str:
        """Where it is read: what tells two targets of one source apart, whatever their names."""
        return self.url

    @property
    def speaks_tls(self) -> bool:
        """Whether anything of it is read over TLS, so that `tls` is of use."""
        return any(place.startswith(("https://", "rediss://")) for place in self._written())

    def _written(self) -> Iterator[str]:
        """The texts that its keys hold, the places where it is read among them."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            yield from (text for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str))

    def parts(self) -> Sequence[Self]:
        """The targets that this entry of a configuration makes."""
        return (self,)


def host_and_port(url: str) -> str:
    """`host:port` of a URL, with the port that its scheme stands for."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


class Thresholds(Section):
    """Limits that alerts hold against what is seen, exposed as `llm_threshold_*`; the exporter itself does nothing."""

    restart_failures: int = Field(default=5, ge=1, description="Restarts and failures that are too many.")
    cpu_max: float = Field(default=90.0, ge=1, le=100, description="Percent of the CPU that is too much.")
    mem_max: float = Field(default=90.0, ge=1, le=100, description="Percent of the memory that is too much.")

    def exposed(self) -> dict[str, float]:
        """What is shown, by family: percent as ratios."""
        return {
            "llm_threshold_restart_failures": float(self.restart_failures),
            "llm_threshold_cpu_ratio": self.cpu_max / 100,
            "llm_threshold_memory_ratio": self.mem_max / 100,
        }


class WithThresholds(TargetConfig):
    """A target that has something to hold against thresholds."""

    thresholds: Thresholds | None = Field(
        default=None, description="The target's own thresholds; one that is left out is as `thresholds` of all has it."
    )


class Limits(Section):
    """What one target may cost at most. Beyond it, its reads fail or series are left out, and it alone suffers."""

    body: Size = Field(default=256 * 2**20, description="Largest answer that is read, after decompression.")
    series: int = Field(default=100_000, ge=1, description="Most series shown of one target.")


class Score(Section):
    """What the score of a provider, `llm_provider_score`, is computed with."""

    window: Duration = Field(default=900.0, description="Time that the score looks back.")
    minimum_requests: int = Field(default=10, ge=1, description="Requests in the window under which there is no score.")
    latency: Duration = Field(default=30.0, description="Objective of the p95 of the time to the whole answer.")
    ttft: Duration = Field(default=2.0, description="Objective of the p95 of the time to the first token.")


class Config(Section):
    """The whole configuration. Everything is optional."""

    listen: Address = Field(
        default=":9400", description="Address to serve on: `:9400` (all addresses), `127.0.0.1:9400`, `[::1]:9400`."
    )
    interval: Duration = Field(default=5.0, description="Time between two reads of a target.")
    intervals: dict[SourceName, Duration] = Field(
        default={},
        description="The same for all targets of a source, by its kind: `{nats: 1s}`. Left out, and with `interval` "
        "left out: 3s for dynamo, 2s for nats.",
    )
    timeout: Duration = Field(default=10.0, description="Time that one read of a target may take in all.")
    stalled_after: Duration = Field(
        default=120.0,
        description="Time after which a target where requests run or wait, and nothing moves, is `llm_target_stalled`. "
        "Longer than the longest prefill of an upstream that shows nothing while it prefills.",
    )
    targets: tuple[SerializeAsAny[TargetConfig], ...] = Field(
        default=(), description="What is read. A plain URL is a target that is recognised by what it answers."
    )
    detect: bool = Field(
        default=False,
        description="Also find what runs on this machine. A file switches it off unless it says `detect: true`.",
    )
    state_directory: AbsolutePath | None = Field(
        default=None,
        description="Folder in which totals are kept over restarts. Left out: systemd's `$STATE_DIRECTORY`, else "
        "`llm-exporter` in the user's state folder.",
    )
    reload: bool = Field(default=False, description="Let `POST /-/reload` read this file anew. SIGHUP always does.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="`text` for people, `json` for collectors of logs."
    )
    limits: Limits = Field(default=Limits(), description="What one target may cost at most.")
    score: Score = Field(default=Score(), description="What the score of a provider is computed with.")
    thresholds: Thresholds = Field(
        default=Thresholds(), description="Limits for alerts, in percent; exposed as `llm_threshold_*`."
    )

    def interval_of(self, target: TargetConfig) -> float:
        """Seconds between two reads of a target: what is written nearest to it, else what is usual."""
        usual = None if "interval" in self.model_fields_set else target.usual_interval
        return target.interval or self.intervals.get(target.source) or usual or self.interval

    def thresholds_of(self, target: TargetConfig) -> dict[str, float]:
        """The thresholds in force for a target, by family; none for one that has nothing to hold against them."""
        if not isinstance(target, WithThresholds):
            return {}
        own = target.thresholds.model_dump(exclude_unset=True) if target.thresholds is not None else {}
        return self.thresholds.model_copy(update=own).exposed()

    @property
    def address(self) -> tuple[str | None, int]:
        """Host and port to listen on; the host is None for all addresses."""
        return address(self.listen)

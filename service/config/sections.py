"""All settings, in sections: what can be set, its range, its default; reads only certificates that an address names."""

import datetime as dt
import ipaddress
import re
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    StringConstraints,
    field_serializer,
    field_validator,
)

from service.config.keys import checked_key, fits_a_header, keys_by_name
from service.config.store_address import checked_store_address
from service.config.webhook_secret import secret_bytes


class Section(BaseModel):
    """A part of the settings. An unknown name is an error, since it is most often a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)


class Profile(StrEnum):
    """What the defaults are for."""

    DEVELOPMENT = "development"
    """A newcomer's machine: embedded model and store, no authentication on loopback."""
    PRODUCTION = "production"
    """Nothing is assumed: providers, models and keys are named, authentication is on."""


def split_list(value: Any) -> Any:
    """Take a list from the environment, where it is a text with commas; leave anything else to the validation."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(("[", "{")):
        raise ValueError("a list: valid JSON, or texts with commas between them")
    return [item.strip() for item in value.split(",") if item.strip()]


_ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:\d{1,5})?")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
"""RFC 1123 §2.1, and the underscore that names of containers have."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]
ModelPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._:/@*-]{0,127}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(gt=0)]
LimitCount = Annotated[int, Field(gt=0, le=100_000_000_000)]
"""What the store computes with limits is exact up to here; see service/admission/base.py."""
Texts = Annotated[tuple[str, ...], BeforeValidator(split_list, json_schema_input_type=list[str] | str)]


class ServerSettings(Section):
    """Where and how the API listens."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address to bind. Outside loopback, authentication is needed."""
    port: int = Field(8000, ge=0, le=65_535)
    """Port of the API; 0 takes a free one."""
    metrics_port: int = Field(9090, ge=0, le=65_535)
    """``/metrics`` is served here and nowhere else; 0 takes a free one."""
    metrics_host: str | None = Field(None, min_length=1)
    """Address of the metrics; the same as ``host`` when left out."""
    workers: int = Field(1, ge=1, le=64)
    """Processes. More than one runs under gunicorn."""
    max_body_bytes: int = Field(1_048_576, ge=1_024)
    """A longer body is refused with 413, before it is read whole (1 MiB)."""
    max_message_bytes: int = Field(262_144, ge=1_024)
    """The same for one WebSocket message; a longer one closes the socket with 1009."""
    generations_per_socket: int = Field(16, ge=1)
    """Generations that may run at once on one WebSocket."""
    playground: bool | None = None
    """Whether ``/`` serves the playground; by default in development only."""

    @field_validator("host", "metrics_host")
    @classmethod
    def _can_be_an_address(cls, host: str | None) -> str | None:
        if host is None:
            return None
        try:
            ipaddress.ip_address(host)
        except ValueError:
            # Of digits and dots only, it was meant as an address.
            if not _HOST_NAME.fullmatch(host) or not host.strip("0123456789."):
                raise ValueError("an IP address, or the name of a host, of this machine") from None
        return host


class CorsSettings(Section):
    """Which other origins' pages may call us from a browser."""

    origins: Texts = ()
    """Exact origins (``https://app.example``), or ``*`` alone."""
    credentials: bool = False
    """Whether those pages may send cookies and credentials; refused together with ``*``."""

    @field_validator("origins")
    @classmethod
    def _are_exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if origins != ("*",) and not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("origins such as https://app.example, without a path, in small letters; or * alone")
        return origins


class RedisSettings(Section):
    """The shared store: Redis 6.2 or newer, or Valkey."""

    url: SecretStr | None = None
    """``redis://``, ``rediss://`` or ``unix://``; without it development starts its own, or keeps all in memory. Its
    query may set ``client_name``, ``db``, ``socket_keepalive``, and with ``rediss://`` the library's ``ssl_…``."""
    timeout_s: Seconds = 0.05
    """For each command; what takes longer is treated as an outage. A new connection may take 5 times as long."""

    @field_validator("url")
    @classmethod
    def _can_be_used(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None else SecretStr(checked_store_address(url.get_secret_value()))


class RateSettings(Section):
    """Rates, and how much at once; what is left out is unlimited."""

    requests_per_minute: LimitCount | None = None
    """Requests that may start in a minute, on the average."""
    request_burst: LimitCount | None = None
    """Requests that may start at once after a pause; the same as a minute's worth when left out."""
    tokens_per_minute: LimitCount | None = None
    """Input and output tokens in a minute, on the average."""
    token_burst: LimitCount | None = None
    """Tokens at once after a pause; the same as a minute's worth when left out."""
    concurrency: LimitCount | None = None
    """Requests that may run at the same time."""


class LimitSettings(RateSettings):
    """Rates and quotas; what is left out is unlimited."""

    # Headers tell it in nano-dollars, and a number in them has at most 15 digits (RFC 9651 section 3.3.1).
    usd_per_day: Decimal | None = Field(None, gt=0, lt=1_000_000)
    """US dollars in a day (UTC); takes a price for each model."""


class TimeoutSettings(Section):
    """How long to wait for a provider, in seconds."""

    connect: Seconds = 5.0
    """Until the connection stands, TLS included."""
    first_token: Seconds = 30.0
    """From the request to the first piece of a stream. A plain call is bounded by ``total`` alone, since a provider
    sends nothing of a plain answer before all of it is there."""
    between_tokens: Seconds = 30.0
    """Between two pieces of a stream."""
    total: Seconds = 600.0
    """From the request to the end of the answer. That of a model's first provider bounds the request with all its
    retries and other routes."""


class RetrySettings(Section):
    """How often a provider is asked again for one request, as long as nothing of an answer was handed on."""

    max_attempts: int = Field(3, ge=1, le=10)
    """Attempts at one route of a model, the first included; 1 switches retries off. Going on with another key is no
    retry."""
    base_s: Seconds = 0.1
    """Before a retry, any time up to this (full jitter); the bound doubles with each."""
    cap_s: Seconds = 5.0
    """The greatest bound. What the provider's ``Retry-After`` demands comes on top."""
    budget_ratio: float = Field(0.1, ge=0, le=1)
    """Retries of all requests to this provider, as a part of the requests."""
    budget_per_s: float = Field(1.0, ge=0)
    """Retries in a second that are always allowed, where requests are few."""


class BreakerSettings(Section):
    """When a provider that fails is left alone. Each of its models with each of its keys has a breaker of its own."""

    enabled: bool = True
    """Whether to leave alone what fails, and keys that are refused or limited."""
    failures_in_a_row: Count = 5
    """So many open it. A 429 never does."""
    window_s: Seconds = 10.0
    """Time in which a rate of failures is looked at."""
    failure_ratio: float = Field(0.5, gt=0, le=1)
    """Part of the calls in it that opens it by failing."""
    calls_at_least: Count = 20
    """Fewer calls in it are no rate."""
    open_s: Seconds = 2.0
    """How long it stays open at first; then single calls find out whether the provider works again."""
    open_max_s: Seconds = 8.0
    """The same after failures of such calls, each of which doubles it; a repair goes unnoticed for so long at most."""
    refused_s: Seconds = 60.0
    """How long a model is left alone that the provider does not have or does not let us use."""
    refused_max_s: Seconds = 600.0
    """The same after further refusals, each of which doubles it."""


class ProviderKind(StrEnum):
    """Which dialect a provider speaks, and what starts it."""

    OPENAI = "openai"
    """OpenAI, or any server with its API."""
    ANTHROPIC = "anthropic"
    """Anthropic, or any server with its API."""
    LOCAL = "local"
    """The embedded model: started by us, reached like an OpenAI-compatible server."""
    SIMULATOR = "simulator"
    """``llm-api simulate``: at ``base_url``, or started by us when that is left out."""


class ProviderSettings(Section):
    """One provider."""

    kind: ProviderKind
    """Which dialect it speaks: ``openai`` (or any server with OpenAI's API), ``anthropic``, ``local`` (the embedded
    model) or ``simulator``."""
    base_url: HttpUrl | None = None
    """With the version in its path (``https://api.openai.com/v1``); by default the vendor's own."""
    keys: Annotated[
        tuple[SecretStr, ...], BeforeValidator(split_list, json_schema_input_type=list[SecretStr] | SecretStr)
    ] = ()
    """The provider's keys, used in turn."""
    key_files: Annotated[tuple[Path, ...], BeforeValidator(split_list, json_schema_input_type=list[Path] | str)] = ()
    """Files with one key each; read again when they change."""
    timeouts_s: TimeoutSettings = TimeoutSettings()
    """How long to wait for it, in seconds."""
    limits: RateSettings = RateSettings()
    """What all processes together may ask of it: the vendor's own limits. Requests beyond wait in a queue. A burst that
    is left out is 95 % of a minute's worth, so that calls that bunch up on their way do not exceed the vendor's."""
    retries: RetrySettings = RetrySettings()
    """How often it is asked again."""
    breaker: BreakerSettings = BreakerSettings()
    """When it is left alone."""
    propagate_trace: bool = False
    """Whether it is told, in ``traceparent`` and ``tracestate``, where a call stands in our trace: for a server of your
    own that traces too. A vendor could tell which calls belong together, and callers' ``tracestate`` may say more."""

    @field_validator("base_url")
    @classmethod
    def _has_no_secret(cls, url: HttpUrl | None) -> HttpUrl | None:
        # The address is shown in logs and by `check`: a password in it would be shown too.
        if url is not None and (url.username or url.password or url.query or url.fragment):
            raise ValueError("an address without user name, password, query and fragment; secrets belong in keys")
        return url

    @field_validator("keys")
    @classmethod
    def _are_sendable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(fits_a_header(key.get_secret_value()) for key in keys):
            raise ValueError("keys of visible ASCII characters")
        return keys


class RouteSettings(Section):
    """One way to answer for a model."""

    provider: Name
    """The name of the provider."""
    model: str | None = Field(None, min_length=1, max_length=256)
    """The provider's name for it; the caller's name goes upstream as it is when left out."""


class PriceSettings(Section):
    """What a model costs, in US dollars for a million tokens."""

    input: Decimal = Field(ge=0)
    """For input tokens."""
    output: Decimal = Field(ge=0)
    """For output tokens."""
    cached_input: Decimal | None = Field(None, ge=0)
    """For input tokens that the provider read from its cache; the same as ``input`` when left out."""
    cache_write: Decimal | None = Field(None, ge=0)
    """For input tokens that the provider wrote to its cache; the same as ``input`` when left out."""
    as_of: str
    """The day on which the price was read, ``2026-11-01``."""
    source: str = Field(min_length=1)
    """Where it was read."""

    @field_validator("as_of", mode="before")
    @classmethod
    def _is_a_day(cls, value: Any) -> Any:
        if isinstance(value, dt.date):
            # YAML makes a date of an unquoted day.
            return value.isoformat()[:10]
        if isinstance(value, str):
            try:
                return dt.date.fromisoformat(value).isoformat()
            except ValueError:
                raise ValueError("a day such as 2026-11-01") from None
        return value


class ModelSettings(Section):
    """One public model, or a pattern of them."""

    routes: tuple[RouteSettings, ...] = Field(min_length=1)
    """In order of preference."""
    limits: LimitSettings = LimitSettings()
    """For all callers together."""
    price_usd_per_million_tokens: PriceSettings | None = None
    """What it costs; without it the cost is unknown, not zero."""
    modes: Annotated[
        frozenset[Literal["chat", "embeddings"]],
        BeforeValidator(split_list, json_schema_input_type=list[Literal["chat", "embeddings"]] | str),
    ] = frozenset({"chat", "embeddings"})
    """What it can do."""

    @field_serializer("modes")
    def _in_order(self, modes: frozenset[str]) -> list[str]:
        return sorted(modes)


class KeySettings(Section):
    """One API key of a caller."""

    key: SecretStr
    """The key itself (16 characters or more), or ``sha256:`` and the hex digest of it."""
    models: Annotated[
        tuple[ModelPattern, ...], BeforeValidator(split_list, json_schema_input_type=list[ModelPattern] | str)
    ] = ("*",)
    """Models, or patterns of them, that it may use."""
    priority: Literal["interactive", "batch"] = "interactive"
    """Where requests wait for a provider, ``batch`` goes after all that is ``interactive``."""
    weight: float = Field(1.0, gt=0, le=1_000)
    """Its share, against others' of the same priority, where requests wait for a provider."""
    limits: LimitSettings = LimitSettings()
    """This key's own; what is left out is taken from ``auth.default_limits``."""
    usage: Literal["own", "all"] = "own"
    """Whose usage it may ask for: its own, or everybody's."""
    log_content: bool = False
    """Whether the log has the texts of its prompts and answers, up to 16,384 characters each."""

    @field_validator("key")
    @classmethod
    def _is_strong(cls, key: SecretStr) -> SecretStr:
        return SecretStr(checked_key(key.get_secret_value()))


class AuthSettings(Section):
    """Who may call."""

    enabled: bool | None = None
    """On in production, and by default on every address but loopback and wherever keys are configured."""
    keys: Annotated[
        dict[Name, KeySettings],
        BeforeValidator(keys_by_name, json_schema_input_type=dict[Name, KeySettings | SecretStr] | SecretStr),
    ] = {}
    """By name. As text (environment): ``name:key,name:sha256:…``."""
    keys_file: Path | None = None
    """A file of such lines; read again when it changes. A name may stand in several lines while its key is replaced,
    and takes models, priority and limits from the entry of that name in ``auth.keys``."""
    ticket_ttl_s: Seconds = 30.0
    """How long a browser's single-use ticket can be used."""
    default_limits: LimitSettings = LimitSettings()
    """For each key: what its own limits leave out."""
    user_limits: LimitSettings = LimitSettings()
    """For each ``user_id`` below a key."""


class AdmissionSettings(Section):
    """How work is let in."""

    shadow: bool = False
    """Count and log what would be refused, and refuse nothing."""
    queue_max: Count = 1_000
    """Requests of a process that may wait for one provider. One more takes the place of the last of whoever has the
    most there, or is refused with 503."""
    queue_wait_s: Seconds = 10.0
    """How long a request may wait for its turn. One that would wait longer is refused at once, with 503."""
    adaptive_concurrency: bool = True
    """Whether to ask less of a provider at a time while it shows that it has too much to do."""
    replicas: Count = 1
    """Processes that share the store: while it is away, each keeps limits at this part of them. Pods times workers;
    too small, the limits are as many times too wide during an outage."""
    money_without_store: Literal["closed", "open"] = "closed"
    """``closed``: while the store is away, who has a money budget is refused with 503. ``open``: budgets are not looked
    at until it is back, and what is spent meanwhile is not counted."""


class HedgingSettings(Section):
    """A second attempt at a stream whose first content is late; the later of the two is cancelled."""

    enabled: bool = False
    """Off by default: the input of the one that loses is paid for too."""
    delay_s: Seconds | None = None
    """How late; the 95th percentile of the model's latest first contents when left out."""
    budget_ratio: float = Field(0.05, gt=0, le=1)
    """Second attempts, as a part of the streams."""


class ResilienceSettings(Section):
    """What one request may cost at all providers together."""

    attempts_max: int = Field(6, ge=1, le=100)
    """Attempts, retries and other routes and keys included."""
    hedging: HedgingSettings = HedgingSettings()
    """A second attempt at a stream whose first content is late."""


class ReadinessSettings(Section):
    """When ``/ready`` says yes."""

    mode: Literal["key", "strict", "passive", "off"] = "key"
    """``key``: a provider key that is refused from the start keeps us unready, an outage leaves us ready and degraded.
    ``strict``: an outage makes us unready too. ``passive``: only real traffic is looked at, and its failures leave us
    ready and degraded. ``off``: always ready once started."""
    interval_s: Seconds = 60.0
    """Between two minimal calls to a provider, of the whole fleet; real traffic in the interval saves the call."""
    startup_grace_s: float = Field(20.0, ge=0, le=3_600)
    """How long a process that just started waits for a first success, before an outage makes it ready and degraded."""
    model: ModelName | None = None
    """Which model to ask its providers for. A provider that does not answer for it, and each when this is left out, is
    asked for the first configured model that it answers for."""


class StreamSettings(Section):
    """How streams are sent and kept."""

    headers_after_s: Seconds = 0.5
    """The status is sent with the first content, or after this time with a comment. A failure until then is a status of
    its own, later one an ``error`` event."""
    keepalive_s: Seconds = 15.0
    """After so much silence a comment is sent, so that no proxy takes the connection for dead (many wait 60 s)."""
    kept_s: Seconds = 300.0
    """How long a resumable stream can be continued after its end."""
    orphan_s: Seconds = 60.0
    """How long a resumable stream goes on with no client listening; then it is cancelled."""
    lease_s: Seconds = 5.0
    """A process that did not renew its lease for so long is taken for dead, and its resumable streams for
    interrupted."""
    events_max: Count = 20_000
    """Events that are kept of a resumable stream; of a longer one, the newest."""


class DrainSettings(Section):
    """What a stop (SIGTERM) does to what runs. A pod's grace period is both, ``jobs.drain_s`` and 30 s."""

    delay_s: float | None = Field(None, ge=0, le=3_600)
    """New work is still taken for so long, while endpoints and load balancers notice; in production 10, in development
    0 when left out."""
    timeout_s: Seconds = 180.0
    """Then what runs has so long to finish; what does not gets an error that says so."""
    readiness: Literal["immediate", "after_delay", "never"] = "immediate"
    """When ``/ready`` turns to 503: with the signal, when new work is refused, or not at all."""


class JobSettings(Section):
    """Background jobs."""

    worker: bool = True
    """Whether ``serve`` works on jobs beside its requests; ``llm-api worker`` does so in any case."""
    concurrency: Count = 8
    """Jobs that run at once in this process."""
    queue_max: Count = 100_000
    """Jobs that may wait; one more is refused with 503."""
    batch_file_bytes_max: int = Field(104_857_600, ge=1_024)
    """Bytes of the file of a batch; it is kept in the store, and read in pieces."""
    result_ttl_s: Seconds = 86_400.0
    """How long a finished job, or the results of a batch, can be asked for."""
    attempts_max: Count = 5
    """How often a job is begun before it fails: each time but the last, the process that worked on it died."""
    lease_s: float = Field(15.0, ge=5, le=600, allow_inf_nan=False)
    """A job is begun again when nothing was heard for so long of the process that works on it."""
    drain_s: Seconds = 30.0
    """How long a stop waits for the jobs that run; what runs longer goes back into the queue."""


class WebhookSettings(Section):
    """Telling callers' servers how their jobs ended."""

    secrets: Annotated[
        tuple[SecretStr, ...], BeforeValidator(split_list, json_schema_input_type=list[SecretStr] | SecretStr)
    ] = ()
    """Secrets with which messages are signed, ``whsec_…``: all of them sign each message, so that receivers can change
    theirs in between. Without any, jobs with a webhook are refused."""
    secret_files: Annotated[tuple[Path, ...], BeforeValidator(split_list, json_schema_input_type=list[Path] | str)] = ()
    """Files with such a secret each; read again when they change."""
    allow_http: bool | None = None
    """Whether addresses may be ``http://``; in development yes, in production no when left out."""
    allow_networks: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] | None,
        BeforeValidator(split_list, json_schema_input_type=list[str] | str | None),
    ] = None
    """Networks that are not of the public internet and may be told all the same; in development this machine's
    loopback, in production none when left out."""
    timeout_s: Seconds = 15.0
    """How long a receiver may take to answer."""

    @field_validator("secrets")
    @classmethod
    def _are_strong(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in secrets:
            secret_bytes(secret.get_secret_value())
        return secrets


class UsageSettings(Section):
    """The ledger: one record for each generation."""

    dir: Path | None = None
    """Where records wait while the shared store is away, and are kept where there is none: a folder that outlives a
    process. When left out, a part of the user's cache folder in development, of that for temporary files in production.
    """
    kept_s: float = Field(3_024_000.0, ge=3_600, allow_inf_nan=False)
    """How long records are kept in the store; 35 days, so that a month can be asked for."""
    records_max: Count = 2_000_000
    """Records that are kept there, about 1 KiB each; of more, the newest."""
    lease_s: float = Field(15.0, ge=1, le=600, allow_inf_nan=False)
    """A process that was silent for so long is taken for dead, and what it left is written as ``crashed``."""
    postgres_url: SecretStr | None = None
    """Where records go for good: ``postgresql://user:password@host/database``; takes the extra ``postgres``."""
    export_dir: Path | None = None
    """A folder to which one process writes all records, one JSON object a line, a file for each day."""


class EmbeddedSettings(Section):
    """What development starts by itself."""

    cache_dir: Path | None = None
    """Where the embedded model and store keep their files; the user's cache folder when left out."""
    store: bool = True
    """Whether to start the embedded Valkey when no ``redis.url`` is given and the extra ``local`` is installed."""
    threads: int | None = Field(None, ge=1)
    """Threads of the embedded model; half as many as there are cores, 1 to 4, when left out."""


class Settings(Section):
    """Everything that can be set."""

    profile: Profile = Profile.DEVELOPMENT
    """What the defaults are for: ``development`` or ``production``."""
    server: ServerSettings = ServerSettings()
    """Where and how the API listens."""
    cors: CorsSettings = CorsSettings()
    """Which other origins' pages may call us from a browser."""
    redis: RedisSettings = RedisSettings()
    """The shared store: Redis 6.2 or newer, or Valkey."""
    providers: dict[Name, ProviderSettings] = {}
    """The providers, by a name of your choice."""
    models: dict[ModelPattern, ModelSettings] = {}
    """The public models, by the name that callers use; ``team-a/*`` is a pattern."""
    auth: AuthSettings = AuthSettings()
    """Who may call."""
    admission: AdmissionSettings = AdmissionSettings()
    """How work is let in."""
    resilience: ResilienceSettings = ResilienceSettings()
    """What one request may cost at all providers together."""
    readiness: ReadinessSettings = ReadinessSettings()
    """When ``/ready`` says yes."""
    streams: StreamSettings = StreamSettings()
    """How streams are sent and kept."""
    drain: DrainSettings = DrainSettings()
    """What a stop does to what runs."""
    jobs: JobSettings = JobSettings()
    """Background jobs."""
    webhooks: WebhookSettings = WebhookSettings()
    """Telling callers' servers how their jobs ended."""
    usage: UsageSettings = UsageSettings()
    """The ledger: one record for each generation."""
    embedded: EmbeddedSettings = EmbeddedSettings()
    """What development starts by itself."""

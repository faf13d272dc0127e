"""Every metric that the service keeps, in one place. Labels come from closed sets; nothing here names a user."""

import os
import platform
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Gauge

from service import __version__
from service.domain.generation import Usage
from service.domain.job import JobStatus, QueueDepth
from service.domain.limits import NANO
from service.domain.principal import Priority
from service.errors import Fault, InternalError, InvalidRequest, UpstreamError, error_classes
from service.telemetry.labelled import Counter, Histogram

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds. Streams outlive the usual 10 s, and each objective we may set has to be a boundary."""
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 30, 60)
"""Seconds to the first token."""
RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 8, 16)
QUEUE_POSITIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
LIMITER_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Seconds; ``redis.timeout_s`` is 0.05 unless set otherwise."""

REDIS_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
"""Seconds. What works in the background is more patient than requests are."""
GAP_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
"""Seconds between two pieces of a stream; one that lasts for more than 1 is seen as a stall."""
OVERHEAD_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Seconds of our own; the objective is 0.05."""
UPSTREAM_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds. Fewer than of requests, since there are as many for each model of each provider."""
TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
"""Seconds for each token."""
JOB_BUCKETS_S = (0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 21_600, 86_400)
"""Seconds; the objective for a job's wait is 300."""
LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Seconds."""
FAMILIES = (
    "generate",
    "chat",
    "stream",
    "openai",
    "anthropic",
    "embeddings",
    "jobs",
    "batches",
    "polls",
    "ws",
    "other",
)
"""Of routes, as ``service.api.outcome`` tells them apart."""
REDIS_COMMANDS = ("script", "pipeline", "read", "write", "stream", "other")
"""Families of them."""
SCOPES = ("key", "user", "model", "provider")
RESOURCES = ("requests", "tokens", "concurrency", "usd")
"""Whose limits there are, and of what."""
PLACES = ("config", "http", "job", "ledger", "limiter", "queue", "readiness", "stream", "stream_log", "websocket")
"""Where defects are caught."""
TOKEN_TYPES = ("input", "output", "cached_input", "cache_write", "reasoning")
OUTCOMES = ("ok", "cancelled", InvalidRequest.code, InternalError.code, *(e.code for e in error_classes(UpstreamError)))
"""What a call to a provider can come to."""

Component = Literal["api", "worker"]
"""What a process is for: answering callers, or background jobs alone."""
KeyFiles = Literal["client_keys", "provider_keys"]
"""Whose keys stand in a file."""


class Metrics:
    """The collectors of one registry; made once per process, and anew for each test."""

    def __init__(self, registry: CollectorRegistry, *, component: Component = "api") -> None:
        self.registry = registry
        self._component = component
        self._requests(registry)
        self._resumable_streams(registry)
        self._money(registry)
        self._upstream(registry)
        self._limits(registry)
        self._queues(registry)
        self._jobs(registry)
        self._ledger(registry)
        self._readiness(registry)
        self._process(registry)
        self._show_zeros()
        self._bad_key_files: dict[KeyFiles, set[str]] = {"client_keys": set(), "provider_keys": set()}
        for what in self._bad_key_files:
            self.key_file_ok.labels(what).set(1)

    def note_key_file(self, what: KeyFiles, whose: str, is_good: bool) -> None:  # noqa: FBT001 - serves as a callback
        """Take note whether the files of one owner are in use as they stand; the gauge tells of all of them."""
        bad = self._bad_key_files[what]
        if is_good:
            bad.discard(whose)
        else:
            bad.add(whose)
        self.key_file_ok.labels(what).set(0 if bad else 1)

    def forget_provider(self, provider: str) -> None:
        """Take back what gauges say of a provider that was taken out of the configuration.

        Where processes share files of metrics, no label can be taken back: what is said there is that all is well.
        """
        well = ((self.provider_keys_dead, 0), (self.provider_remaining_ratio, 1), (self.probe_age, 0))
        for gauge, value in well:
            labels = [sample.labels for family in gauge.collect() for sample in family.samples]
            for found in labels:
                if found["provider"] != provider:
                    continue
                if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
                    gauge.labels(**found).set(value)
                else:
                    gauge.remove(*found.values())

    def note_left(self, provider: str, resource: str, ratio: float | None) -> None:
        """Show which part of a limit the provider says is left; None when that is over, and nothing is known.

        Where processes share files of metrics all is said to be left then, as no label can be taken back.
        """
        if ratio is not None or "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.provider_remaining_ratio.labels(provider, resource).set(1 if ratio is None else ratio)
        else:
            self.provider_remaining_ratio.remove(provider, resource)

    def note_first_token(
        self, transport: Literal["sse", "ws"], since_request_s: float, others_s: float, *, trace_id: str | None = None
    ) -> None:
        """Take note that a stream's first content was handed on, and of how much of the time was not our own."""
        self.observe(self.time_to_first_token.labels(transport), since_request_s, trace_id)
        if others_s:
            self.observe(self.overhead.labels(transport), max(0.0, since_request_s - others_s), trace_id)

    def observe(self, histogram: Histogram, value: float, trace_id: str | None = None) -> None:
        """Put a value into a histogram, with the trace it was seen in where exemplars can be kept.

        They cannot where processes share files of metrics.
        """
        if trace_id is None or "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            histogram.observe(value)
        else:
            histogram.observe(value, {"trace_id": trace_id})

    def note_usage(self, provider: str, model: str, usage: Usage, nano_usd: int | None) -> None:
        """Count what one call took; None is a price that nobody knows."""
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
        )
        for kind, count in zip(TOKEN_TYPES, counts, strict=True):
            if count:
                self.tokens.labels(provider, model, kind).inc(count)
        if nano_usd is None:
            self.unpriced_requests.labels(model).inc()
        else:
            self.cost.labels(provider, model).inc(nano_usd / NANO)

    def show_models(self, providers: Mapping[str, Sequence[str]]) -> None:
        """Let what is counted for each of these models, at each of its providers, begin at 0."""
        for model, names in providers.items():
            self.unpriced_requests.labels(model)
            for provider in names:
                self.retry_budget_exhausted.labels(provider)
                for priority in get_args(Priority):
                    self.queue_refusals.labels(provider, priority)
                self.cost.labels(provider, model)
                for kind in TOKEN_TYPES:
                    self.tokens.labels(provider, model, kind)
                for outcome in OUTCOMES:
                    self.upstream_requests.labels(provider, model, outcome)

    def note_queue(self, depth: QueueDepth) -> None:
        """Show how much there is to do in the background."""
        for priority, waiting in depth.waiting.items():
            self.jobs_waiting.labels(priority).set(waiting)
        self.jobs_running.set(depth.running)
        self.jobs_deferred.set(depth.deferred)
        self.jobs_oldest_wait.set(depth.oldest_wait_s)

    def _requests(self, registry: CollectorRegistry) -> None:
        """What comes in and goes out."""
        self.http_requests = Counter(
            "llm_api_http_requests_total",
            "HTTP requests answered.",
            ["route", "method", "code"],
            registry=registry,
        )
        self.http_duration = Histogram(
            "llm_api_http_request_duration_seconds",
            "From the request's first byte to the response's last.",
            ["route", "method"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = Gauge(
            "llm_api_http_requests_in_flight",
            "HTTP requests being answered, streams included, by family of routes.",
            ["family"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.streams_active = Gauge(
            "llm_api_streams_active",
            "Streams open to clients.",
            ["transport"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.stream_ends = Counter(
            "llm_api_stream_ends_total",
            "Streams ended, by how: complete, client_disconnect, slow_client, error, cancelled or draining.",
            ["transport", "reason"],
            registry=registry,
        )
        self.stream_longest_gap = Histogram(
            "llm_api_stream_longest_gap_seconds",
            "Of event streams that came to their end: the longest time between two pieces of content, or the last one "
            "and the end, handed to the socket.",
            buckets=GAP_BUCKETS_S,
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "llm_api_time_to_first_token_seconds",
            "From the request fully received to the first content handed to the socket.",
            ["transport"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )

        self.requests_ended = Counter(
            "llm_api_requests_ended_total",
            "Requests and generations on sockets that ended, without probes, by whose fault it is if not well: none, "
            "caller (also one that left, or is over its limit), us, provider or capacity. A 200 whose stream died is "
            "not none.",
            ["family", "fault"],
            registry=registry,
        )
        self.overhead = Histogram(
            "llm_api_overhead_seconds",
            "Our own time in a request that succeeds: without waits for limits, a turn and the provider; of streams "
            "until the first content.",
            ["transport"],
            buckets=OVERHEAD_BUCKETS_S,
            registry=registry,
        )

    def _resumable_streams(self, registry: CollectorRegistry) -> None:
        """Streams that outlive a connection."""
        self.resumable_streams_active = Gauge(
            "llm_api_resumable_streams_active",
            "Resumable streams that this process generates, whether a client listens or not.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.resumable_stream_ends = Counter(
            "llm_api_resumable_stream_ends_total",
            "Resumable streams whose generation ended, by how: complete, error, cancelled, orphaned or draining.",
            ["reason"],
            registry=registry,
        )
        self.stream_resumes = Counter(
            "llm_api_stream_resumes_total",
            "Requests to continue a resumable stream, by result: continued, over or not_found.",
            ["result"],
            registry=registry,
        )

    def _upstream(self, registry: CollectorRegistry) -> None:
        """Calls to providers, and what they took."""
        self.upstream_requests = Counter(
            "llm_api_upstream_requests_total",
            "Calls to providers, by outcome: ok, cancelled, or the error's code.",
            ["provider", "model", "outcome"],
            registry=registry,
        )
        self.upstream_attempts = Counter(
            "llm_api_upstream_attempts_total",
            "Attempts at providers until a first content came, by kind (first, retry, fallback, hedge) and outcome.",
            ["provider", "kind", "outcome"],
            registry=registry,
        )
        self.upstream_duration = Histogram(
            "llm_api_upstream_duration_seconds",
            "Calls to providers that succeeded, until the first_content of a stream or the end of a whole answer.",
            ["provider", "model", "until"],
            buckets=UPSTREAM_BUCKETS_S,
            registry=registry,
        )
        self.time_per_output_token = Histogram(
            "llm_api_time_per_output_token_seconds",
            "Of streams that came to their end: from first content to last, divided by the tokens after the first.",
            ["provider", "model"],
            buckets=TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.upstream_breakers_open = Gauge(
            "llm_api_upstream_breakers_open",
            "Circuit breakers, one for each model and key of a provider, that are open or half-open.",
            ["provider", "model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.retry_budget_exhausted = Counter(
            "llm_api_retry_budget_exhausted_total",
            "Retries not made because the provider's budget of them was spent.",
            ["provider"],
            registry=registry,
        )
        self.provider_keys_dead = Gauge(
            "llm_api_provider_keys_dead",
            "Keys that the provider refuses, or whose account has no money left.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.key_file_ok = Gauge(
            "llm_api_key_file_ok",
            "1 when every file of keys (client_keys or provider_keys) is in use as it stands.",
            ["what"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.provider_remaining_ratio = Gauge(
            "llm_api_provider_remaining_ratio",
            "What part of its limit the provider last said is left, for the key and the model that have the least; "
            "nothing once its window is over.",
            ["provider", "resource"],
            registry=registry,
            multiprocess_mode="livemin",
        )

    def _money(self, registry: CollectorRegistry) -> None:
        """What generations took, and what that costs."""
        self.tokens = Counter(
            "llm_api_tokens_total",
            "Tokens of generations, by the provider's count; of streams left or failed before it came, an estimate. "
            "cached_input and cache_write are part of input, reasoning of output.",
            ["provider", "model", "type"],
            registry=registry,
        )
        self.cost = Counter(
            "llm_api_cost_usd_total",
            "What generations cost by the configured prices, in US dollars; the ledger is exact, this is for graphs.",
            ["provider", "model"],
            registry=registry,
        )
        self.unpriced_requests = Counter(
            "llm_api_unpriced_requests_total",
            "Generations of models that have no price, so that their cost is nowhere.",
            ["model"],
            registry=registry,
        )

    def _limits(self, registry: CollectorRegistry) -> None:
        """Limits, and how they are kept."""
        self.rate_limit_decisions = Counter(
            "llm_api_rate_limit_decisions_total",
            "What each limit said that was asked: admitted, refused, or would_refuse where all are only watched.",
            ["scope", "resource", "decision"],
            registry=registry,
        )
        self.reservation_ratio = Histogram(
            "llm_api_token_reservation_ratio",
            "Tokens that were reserved for a request, divided by those that it took.",
            buckets=RATIO_BUCKETS,
            registry=registry,
        )
        self.limiter_duration = Histogram(
            "llm_api_rate_limiter_duration_seconds",
            "How long a request waited for the word on its limits.",
            buckets=LIMITER_BUCKETS_S,
            registry=registry,
        )
        self.limiter_store_failures = Counter(
            "llm_api_rate_limiter_store_failures_total",
            "Requests for which the store did not say in time whether they pass.",
            registry=registry,
        )
        self.limits_without_store = Counter(
            "llm_api_rate_limiter_fallbacks_total",
            "Requests on whose limits this process decided by itself, since the store was away.",
            registry=registry,
        )
        self.limits_local = Gauge(
            "llm_api_rate_limiter_local",
            "Processes that keep limits by themselves, since the store is away.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def _queues(self, registry: CollectorRegistry) -> None:
        """Turns at providers."""
        self.queue_waiting = Gauge(
            "llm_api_queue_waiting",
            "Requests that wait for their turn at a provider.",
            ["provider", "priority"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_position = Histogram(
            "llm_api_queue_position",
            "At which place requests begin to wait; 1 is next.",
            ["provider"],
            buckets=QUEUE_POSITIONS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "llm_api_queue_wait_seconds",
            "How long requests waited for their turn, by how that ended: served, refused or left.",
            ["provider", "priority", "outcome"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.queue_refusals = Counter(
            "llm_api_queue_refusals_total",
            "Requests whose turn could not come in time, or for which there was no place to wait.",
            ["provider", "priority"],
            registry=registry,
        )
        self.provider_running = Gauge(
            "llm_api_provider_calls_running",
            "Calls that run at a provider, streams until their end.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.provider_concurrency_limit = Gauge(
            "llm_api_provider_concurrency_limit",
            "How many calls a process makes at once to one of its models, as the answers suggest; the lowest of them.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livemin",
        )

    def _jobs(self, registry: CollectorRegistry) -> None:
        """What is done in the background."""
        self.jobs_enqueued = Counter(
            "llm_api_jobs_enqueued_total", "Background jobs accepted.", ["priority"], registry=registry
        )
        self.job_wait = Histogram(
            "llm_api_job_wait_seconds",
            "From a background job's acceptance to its first begin.",
            ["priority"],
            buckets=JOB_BUCKETS_S,
            registry=registry,
        )
        self.job_run = Histogram(
            "llm_api_job_run_seconds",
            "How long the attempt took that ended a background job.",
            buckets=JOB_BUCKETS_S,
            registry=registry,
        )
        self.jobs_redelivered = Counter(
            "llm_api_job_redeliveries_total",
            "Background jobs begun again since whoever worked on them died, or was not heard of.",
            registry=registry,
        )
        self.jobs_put_back = Counter(
            "llm_api_jobs_put_back_total",
            "Background jobs put back: to wait for what passes, after a setback at a provider, or since we stop.",
            ["reason"],
            registry=registry,
        )
        self.jobs_finished = Counter(
            "llm_api_jobs_finished_total", "Background jobs ended.", ["status"], registry=registry
        )
        self.jobs_taken_away = Counter(
            "llm_api_jobs_taken_away_total",
            "Attempts at background jobs that ended without effect: cancelled, or given to another process.",
            registry=registry,
        )
        self.webhooks = Counter(
            "llm_api_webhooks_total",
            "Attempts to tell a server how a job ended, by what became of them: delivered, failed or refused.",
            ["outcome"],
            registry=registry,
        )
        self.jobs_waiting = Gauge(
            "llm_api_jobs_waiting",
            "Background jobs that wait, of all processes together.",
            ["priority"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.jobs_running = Gauge(
            "llm_api_jobs_running",
            "Background jobs that run, of all processes together.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.jobs_deferred = Gauge(
            "llm_api_jobs_deferred",
            "Background jobs that wait for a time, such as that of a limit, of all processes together.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.jobs_oldest_wait = Gauge(
            "llm_api_jobs_oldest_wait_seconds",
            "How long the oldest of the background jobs that could be begun has waited.",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def _ledger(self, registry: CollectorRegistry) -> None:
        """The ledger of usage."""
        self.ledger_local = Gauge(
            "llm_api_ledger_local",
            "Processes that keep the ledger in a file, since the store is away.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.usage_drain_ok = Gauge(
            "llm_api_usage_drain_ok",
            "1 when records of usage could be taken to where they are kept for good (postgres or files).",
            ["sink"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.usage_set_aside = Counter(
            "llm_api_usage_set_aside_total",
            "Records of usage that a sink (postgres or files) could not keep with the others, and keeps apart.",
            ["sink"],
            registry=registry,
        )
        self.usage_forced_out = Counter(
            "llm_api_usage_forced_out_total",
            "Records of usage that usage.records_max forced out of the store before a sink had them; without a sink, "
            "before usage.kept_s.",
            registry=registry,
        )
        self.ledger_adopted = Counter(
            "llm_api_ledger_adopted_total",
            "Records that were written for processes that died.",
            registry=registry,
        )

    def _readiness(self, registry: CollectorRegistry) -> None:
        """Whether traffic should come, and the calls that tell."""
        self.ready = Gauge(
            "llm_api_ready",
            "1 when the service would answer /ready with 200.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.probes = Counter(
            "llm_api_provider_probes_total",
            "Checks of providers that this process made, by what came of them.",
            ["provider", "outcome"],
            registry=registry,
        )
        self.probe_tokens = Counter(
            "llm_api_probe_tokens_total",
            "Tokens, input and output, that checks of providers took; no caller is charged for them.",
            ["provider"],
            registry=registry,
        )
        self.probe_cost = Counter(
            "llm_api_probe_cost_usd_total",
            "What checks of providers cost by the prices of their models, in US dollars; no caller is charged for it.",
            ["provider"],
            registry=registry,
        )
        self.probe_age = Gauge(
            "llm_api_provider_probe_age_seconds",
            "Since the fleet last knew how a provider is, by a check or by real traffic.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def _process(self, registry: CollectorRegistry) -> None:
        """What this process has to do with itself."""
        self.build_info = Gauge(
            "llm_api_build_info",
            "1, for the version that runs and what it runs as: api, or worker of background jobs.",
            ["version", "python", "component"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.build_info.labels(__version__, platform.python_version(), self._component).set(1)
        self.event_loop_lag = Histogram(
            "llm_api_event_loop_lag_seconds",
            "How much later than asked for the event loop woke a task.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.redis_commands = Histogram(
            "llm_api_redis_command_seconds",
            "How long commands to Redis took from being sent, failed ones included, by family: script, pipeline, read, "
            "write, stream (but for waits for what is not there yet) or other.",
            ["family"],
            buckets=REDIS_BUCKETS_S,
            registry=registry,
        )
        self.config_reload_failures = Counter(
            "llm_api_config_reload_failures_total",
            "Changes of the configuration file that could not be used, and were passed over.",
            registry=registry,
        )
        self.config_reload_ok = Gauge(
            "llm_api_config_last_reload_successful",
            "1 when the configuration file as it stands is the one that is in use.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_reload_ok.set(1)
        self.unhandled_errors = Counter(
            "llm_api_unhandled_errors_total",
            "Defects: exceptions that no code expected, by where they were caught.",
            ["place"],
            registry=registry,
        )
        self.trace_spans = Counter(
            "llm_api_trace_spans_total",
            "Spans that ended, by what became of them: exported, or dropped since the collector did not take them.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("exported", "queue_full", "export_failed", "shutdown"):
            self.trace_spans.labels(outcome)

    def _show_zeros(self) -> None:
        """Let what has closed label sets begin at 0, so that a rate has a beginning."""
        streams = ("sse", "ws")
        ends = ("complete", "error", "cancelled", "draining")
        closed: tuple[tuple[Counter | Gauge | Histogram, tuple[Sequence[str], ...]], ...] = (
            (self.in_flight, (FAMILIES,)),
            (self.redis_commands, (REDIS_COMMANDS,)),
            (self.streams_active, (streams,)),
            (self.time_to_first_token, (streams,)),
            (self.overhead, ((*streams, "http"),)),
            (self.stream_ends, (streams, (*ends, "client_disconnect", "slow_client"))),
            (self.resumable_stream_ends, ((*ends, "orphaned"),)),
            (self.stream_resumes, (("continued", "over", "not_found"),)),
            (self.requests_ended, (FAMILIES, get_args(Fault))),
            (self.rate_limit_decisions, (SCOPES, RESOURCES, ("admitted", "refused", "would_refuse"))),
            (self.jobs_enqueued, (get_args(Priority),)),
            (self.job_wait, (get_args(Priority),)),
            (self.jobs_waiting, (get_args(Priority),)),
            (self.jobs_put_back, (("wait", "setback", "stop"),)),
            (self.jobs_finished, (tuple(status.value for status in JobStatus if status.final),)),
            (self.webhooks, (("delivered", "failed", "refused"),)),
            (self.unhandled_errors, (PLACES,)),
        )
        for collector, values in closed:
            for labels in product(*values):
                collector.labels(*labels)

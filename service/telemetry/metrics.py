"""Every metric that the service keeps, in one place. Labels come from closed sets; nothing here names a user."""

import os
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.domain.job import QueueDepth

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds. Streams outlive the usual 10 s, and each objective we may set has to be a boundary."""
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 30, 60)
"""Seconds to the first token."""
RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 8, 16)
QUEUE_POSITIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
LIMITER_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Seconds; ``redis.timeout_s`` is 0.05 unless set otherwise."""

KeyFiles = Literal["client_keys", "provider_keys"]
"""Whose keys stand in a file."""


class Metrics:
    """The collectors of one registry; made once per process, and anew for each test."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests(registry)
        self._resumable_streams(registry)
        self._upstream(registry)
        self._limits(registry)
        self._queues(registry)
        self._jobs(registry)
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
            "HTTP requests being answered.",
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
        self.time_to_first_token = Histogram(
            "llm_api_time_to_first_token_seconds",
            "From the request fully received to the first content handed to the socket.",
            ["transport"],
            buckets=FIRST_TOKEN_BUCKETS_S,
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
            "What part of its limit the provider last said is left, for the key and the model that have the least.",
            ["provider", "resource"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.tokens = Counter(
            "llm_api_tokens_total",
            "Tokens of generations, by the provider's count; of streams left or failed before it came, an estimate.",
            ["provider", "model", "type"],
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
        self.unhandled_errors = Counter(
            "llm_api_unhandled_errors_total",
            "Defects: exceptions that no code expected, by where they were caught.",
            ["place"],
            registry=registry,
        )

    def _show_zeros(self) -> None:
        """Let what has closed label sets begin at 0, so that a rate has a beginning."""
        for transport in ("sse", "ws"):
            self.streams_active.labels(transport)
            self.time_to_first_token.labels(transport)
            for reason in ("complete", "client_disconnect", "slow_client", "error", "cancelled", "draining"):
                self.stream_ends.labels(transport, reason)
        for reason in ("complete", "error", "cancelled", "orphaned", "draining"):
            self.resumable_stream_ends.labels(reason)
        for result in ("continued", "over", "not_found"):
            self.stream_resumes.labels(result)
        for scope in ("key", "user", "model", "provider"):
            for resource in ("requests", "tokens", "concurrency", "usd"):
                for decision in ("admitted", "refused", "would_refuse"):
                    self.rate_limit_decisions.labels(scope, resource, decision)
        for place in ("config", "http", "job", "limiter", "queue", "readiness", "stream", "stream_log", "websocket"):
            self.unhandled_errors.labels(place)

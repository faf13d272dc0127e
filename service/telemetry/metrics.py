"""Every metric that the service keeps, in one place. Labels come from closed sets; nothing here names a user."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds. Streams outlive the usual 10 s, and each objective we may set has to be a boundary."""
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 30, 60)
"""Seconds to the first token."""


class Metrics:
    """The collectors of one registry; made once per process, and anew for each test."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
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
        self.upstream_requests = Counter(
            "llm_api_upstream_requests_total",
            "Calls to providers, by outcome: ok, cancelled, or the error's code.",
            ["provider", "model", "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "llm_api_tokens_total",
            "Tokens of generations, by the provider's count; of streams left or failed before it came, an estimate.",
            ["provider", "model", "type"],
            registry=registry,
        )
        self.jobs_finished = Counter(
            "llm_api_jobs_finished_total", "Background jobs ended.", ["status"], registry=registry
        )
        self.ready = Gauge(
            "llm_api_ready",
            "1 when the service would answer /ready with 200.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.unhandled_errors = Counter(
            "llm_api_unhandled_errors_total",
            "Defects: exceptions that no code expected, by where they were caught.",
            ["place"],
            registry=registry,
        )
        for transport in ("sse", "ws"):
            self.streams_active.labels(transport)
            self.time_to_first_token.labels(transport)
            for reason in ("complete", "client_disconnect", "slow_client", "error", "cancelled", "draining"):
                self.stream_ends.labels(transport, reason)
        for reason in ("complete", "error", "cancelled", "orphaned", "draining"):
            self.resumable_stream_ends.labels(reason)
        for result in ("continued", "over", "not_found"):
            self.stream_resumes.labels(result)
        for place in ("http", "job", "readiness", "stream", "stream_log", "websocket"):
            self.unhandled_errors.labels(place)

"""Every name that a span, an event or an attribute of ours can have, and where it comes from; nothing is emitted here.

Sources, read on 2026-11-29: HTTP, messaging and general attributes from OpenTelemetry's semantic conventions 1.44.0
(``docs/http/http-spans.md``, ``docs/messaging/messaging-spans.md``); ``gen_ai.*`` from its GenAI conventions
(``open-telemetry/semantic-conventions-genai``, ``docs/gen-ai/client-inference.md``), all of which is in development.
What no convention knows begins with ``llm_api.``.
"""

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"
"""Of the GenAI conventions, which stand on the core's 1.44.0 (their ``model/manifest.yaml``)."""
SCOPE: Final = "llm-api"

# Requests (HTTP server spans)
REQUEST_METHOD: Final = "http.request.method"
OTHER_METHOD: Final = "_OTHER"
"""Of a method that RFC 9110 and RFC 5789 do not know."""
RESPONSE_STATUS: Final = "http.response.status_code"
ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
PROTOCOL_VERSION: Final = "network.protocol.version"
ERROR_TYPE: Final = "error.type"
REQUEST_ID: Final = "llm_api.request.id"
OUTCOME: Final = "llm_api.outcome"
"""How it ended, in the words of the access log: ``client_disconnect`` is no error."""

# Attempts (HTTP client spans)
RESEND_COUNT: Final = "http.request.resend_count"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
URL_FULL: Final = "url.full"
ATTEMPT_KIND: Final = "llm_api.attempt.kind"
PROVIDER: Final = "llm_api.provider"
"""The provider's name in the configuration."""
QUEUE_WAIT: Final = "llm_api.queue.wait"
"""Seconds for which a turn at the provider was waited for."""

# Calls to models (GenAI client spans)
OPERATION: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_CHOICES: Final = "gen_ai.request.choice.count"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
USAGE_ESTIMATED: Final = "llm_api.usage.estimated"

# Jobs (messaging spans)
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"
JOB_RUN: Final = "llm_api.job.run"
"""How often the job was begun, this time included."""
SYSTEM: Final = "llm_api"
"""Of messaging: the queue is our own, whatever keeps it."""
JOBS: Final = "jobs"
BATCHES: Final = "batches"

# Events
FIRST_TOKEN: Final = "llm_api.first_token"  # noqa: S105 - a name
LIMITS: Final = "llm_api.limits"
"""The limits were asked, which took ``llm_api.limits.wait`` seconds."""
LIMITS_WAIT: Final = "llm_api.limits.wait"
LIMITS_DECISION: Final = "llm_api.limits.decision"

ATTRIBUTES: Final = frozenset(
    {
        REQUEST_METHOD,
        RESPONSE_STATUS,
        ROUTE,
        URL_PATH,
        URL_SCHEME,
        PROTOCOL_VERSION,
        ERROR_TYPE,
        REQUEST_ID,
        OUTCOME,
        RESEND_COUNT,
        SERVER_ADDRESS,
        SERVER_PORT,
        URL_FULL,
        ATTEMPT_KIND,
        PROVIDER,
        QUEUE_WAIT,
        OPERATION,
        PROVIDER_NAME,
        REQUEST_MODEL,
        REQUEST_STREAM,
        REQUEST_MAX_TOKENS,
        REQUEST_TEMPERATURE,
        REQUEST_TOP_P,
        REQUEST_CHOICES,
        RESPONSE_ID,
        RESPONSE_MODEL,
        FINISH_REASONS,
        FIRST_CHUNK,
        INPUT_TOKENS,
        OUTPUT_TOKENS,
        CACHE_READ_TOKENS,
        CACHE_WRITE_TOKENS,
        REASONING_TOKENS,
        USAGE_ESTIMATED,
        MESSAGING_SYSTEM,
        MESSAGING_OPERATION,
        MESSAGING_OPERATION_TYPE,
        MESSAGING_DESTINATION,
        MESSAGE_ID,
        JOB_RUN,
        LIMITS_WAIT,
        LIMITS_DECISION,
    }
)
EVENTS: Final = frozenset({FIRST_TOKEN, LIMITS})
ATTEMPT: Final = "POST"
"""The name of each attempt's span: HTTP client spans are named by their method alone."""
SPAN_NAMES: Final = (
    r"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS|HTTP)( /.*)?",
    r"WS /.*",
    r"(chat|embeddings) .+",
    r"(send|process) (jobs|batches)",
)
"""Regular expressions, one of which each span's name matches as a whole."""

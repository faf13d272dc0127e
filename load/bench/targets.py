"""What is measured: how each target is started, and how it is called. A target that is not there says why."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load.bench import peers
from load.bench.peers import MissingError
from load.bench.processes import running
from service.storage.embedded import server_binary

START_TIMEOUT_S = 90
CALLER_KEY = "sk-bench-0123456789abcdef"
UPSTREAM_KEY = "sk-upstream-0123456789"
MANY = 100_000_000
"""A limit that is looked at and never reached."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target is started."""

    upstream: str
    """Host and port of the simulated provider."""
    folder: Path
    """For its files; empty."""
    cores: set[int] | None
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Live:
    """A target that runs."""

    pid: int
    address: str
    headers: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, int] = field(default_factory=dict)
    """Other processes that work for it, such as a store: their CPU time is told beside."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target."""

    name: str
    label: str
    start: Callable[[Place], AbstractContextManager[Live]]
    paced_at_once: int = 48
    """Paced streams at once: as many as it can bear on one core, at most 48."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def await_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until something accepts connections there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket() as attempt:
            attempt.settimeout(1)
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-600:]
            raise MissingError(f"it did not start: {tail}")
        time.sleep(0.01)


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without what would be a setting of a target, and with what is given."""
    prefixes = (
        "LLM_API_",
        "OPENAI_",
        "ANTHROPIC_",
        "REDIS_",
        "OTEL_",
        "LITELLM_",
        "PROMETHEUS_",
        "HTTP_PROXY",
        "http_",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | dict(more)


@contextmanager
def _listening(
    place: Place,
    command: list[str],
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Live]:
    log = place.folder / "log"
    with running(command, log=log, cores=place.cores, environment=clean_environment(environment or {})) as process:
        await_listening(process, port, log)
        yield Live(process.pid, f"127.0.0.1:{port}", headers or {})


@contextmanager
def direct(place: Place) -> Iterator[Live]:
    """Nothing between clients and upstream: the rig's floor."""
    yield Live(0, place.upstream)


NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 10000000;
    upstream provider {{ server {upstream}; keepalive 512; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(place: Place) -> Iterator[Live]:
    """A proxy in C that looks at nothing: the floor of any proxy."""
    program = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    if program is None:
        raise MissingError("no nginx: apt-get install nginx")
    port = free_port()
    (place.folder / "nginx.conf").write_text(NGINX_CONFIG.format(upstream=place.upstream, port=port))
    with _listening(place, [program, "-p", str(place.folder), "-c", "nginx.conf", "-e", "stderr"], port) as live:
        yield live


def own_settings(place: Place, port: int, redis_url: str | None = None) -> dict[str, object]:
    """Return the configuration of the service that is measured: production, with everything on."""
    limits = {"requests_per_minute": MANY, "tokens_per_minute": MANY * 100, "concurrency": 1_000_000}
    price = {"input": 0.15, "output": 0.60, "as_of": "2026-11-01", "source": "the benchmark"}
    return {
        "profile": "production",
        "server": {"port": port, "metrics_port": free_port(), "workers": place.workers},
        "redis": {"url": redis_url} if redis_url else {},
        "embedded": {"store": False},
        "providers": {"openai": {"kind": "openai", "base_url": f"http://{place.upstream}/v1", "keys": [UPSTREAM_KEY]}},
        "models": {"gpt-4o-mini": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": price}},
        "auth": {"keys": {"bench": {"key": CALLER_KEY, "limits": limits}}},
        "drain": {"delay_s": 0, "timeout_s": 1},
        "usage": {"dir": str(place.folder / "usage")},
    }


@contextmanager
def llm_api(place: Place, redis_url: str | None = None) -> Iterator[Live]:
    """This service: keys, limits, request log, metrics, ledger, and traces of which none is sampled."""
    port = free_port()
    config = place.folder / "llm-api.yaml"
    config.write_text(json.dumps(own_settings(place, port, redis_url)))  # JSON is YAML
    environment = {
        "LLM_API_CONFIG": str(config),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
    }
    command = [sys.executable, "-m", "service", "serve"]
    headers = {"authorization": f"Bearer {CALLER_KEY}"}
    with _listening(place, command, port, environment=environment, headers=headers) as live:
        yield live


@contextmanager
def llm_api_redis(place: Place) -> Iterator[Live]:
    """The same, with limits and ledger in a store of its own."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server") or server_binary()
    if binary is None:
        raise MissingError("no Redis: install redis-server, or the extra `local`")
    port = free_port()
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with ExitStack() as stack:
        log = place.folder / "redis.log"
        store = stack.enter_context(running([*command, "--dir", str(place.folder)], log=log))
        await_listening(store, port, log)
        live = stack.enter_context(llm_api(place, f"redis://127.0.0.1:{port}/0"))
        yield Live(live.pid, live.address, live.headers, {"redis": store.pid})


@contextmanager
def litellm(place: Place) -> Iterator[Live]:
    """LiteLLM's proxy: one worker, a master key, no database, no callbacks."""
    program = peers.LITELLM.program()
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": "gpt-4o-mini",
                "litellm_params": {
                    "model": "openai/gpt-4o-mini",
                    "api_base": f"http://{place.upstream}/v1",
                    "api_key": UPSTREAM_KEY,
                },
            }
        ],
        "general_settings": {"master_key": CALLER_KEY},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    path = place.folder / "litellm.yaml"
    path.write_text(json.dumps(config))
    command = [str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        # By default 500 connections to a provider, with 0 it is 100: the other idle streams would wait for ever.
        "AIOHTTP_CONNECTOR_LIMIT": "100000",
        "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "100000",
    }
    headers = {"authorization": f"Bearer {CALLER_KEY}"}
    with _listening(place, command, port, environment=environment, headers=headers) as live:
        yield live


@contextmanager
def portkey(place: Place) -> Iterator[Live]:
    """Portkey's gateway; it has no keys of its own, and passes the caller's on."""
    script = peers.PORTKEY.program()
    node = shutil.which("node")
    if node is None:
        raise MissingError("no Node.js: install it")
    port = free_port()
    headers = {
        "authorization": f"Bearer {UPSTREAM_KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://{place.upstream}/v1",
    }
    environment = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    headers_fix = Path(__file__).parent / "portkey_headers.mjs"
    command = [node, "--import", str(headers_fix), str(script), f"--port={port}", "--headless"]
    with _listening(place, command, port, environment=environment, headers=headers) as live:
        yield live


@contextmanager
def sglang_router(place: Place) -> Iterator[Live]:
    """The router of SGLang, in Rust, with a key."""
    program = peers.SGLANG_ROUTER.program()
    port = free_port()
    command = [str(program), "launch", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://{place.upstream}", "--api-key", CALLER_KEY, "--log-level", "warn"]
    command += ["--prometheus-port", str(free_port()), "--prometheus-host", "127.0.0.1"]
    headers = {"authorization": f"Bearer {CALLER_KEY}"}
    with _listening(place, command, port, headers=headers) as live:
        yield live


TARGETS = (
    Target("direct", "direct (the rig)", direct),
    Target("nginx", "nginx (floor)", nginx),
    Target("llm-api", "llm-api", llm_api),
    Target("llm-api-redis", "llm-api, Redis", llm_api_redis),
    Target("sglang-router", f"sglang-router {peers.SGLANG_ROUTER.version} (Rust)", sglang_router),
    Target("portkey", f"Portkey {peers.PORTKEY.version} (Node)", portkey),
    Target("litellm", f"LiteLLM {peers.LITELLM.version} (Python)", litellm, paced_at_once=16),
)
BY_NAME: Mapping[str, Target] = {target.name: target for target in TARGETS}
OWN = "llm-api"

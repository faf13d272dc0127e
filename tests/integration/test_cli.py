"""The command as people and Kubernetes run it."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.auth.keys import has_valid_checksum, hash_key
from tests.support.command import free_port, is_freed, is_served, run, running

KEY = "alice-key-0123456789"
SIMULATED = {"LLM_API_PROVIDERS__SIM__KIND": "simulator", "LLM_API_EMBEDDED__STORE": "false"}


@pytest.fixture
def ports() -> tuple[str, str]:
    return str(free_port()), str(free_port())


def test_serve_says_where_everything_is_and_what_development_leaves_out(ports: tuple[str, str]) -> None:
    api, metrics = ports
    with running("serve", "--port", api, "--metrics-port", metrics, settings=SIMULATED) as service:
        assert service.address("API") == f"http://127.0.0.1:{api}"
        assert service.address("docs") == f"http://127.0.0.1:{api}/docs"
        assert service.address("playground") == f"http://127.0.0.1:{api}/"
        command = service.address("try")
        assert re.fullmatch(rf"curl -s http://127\.0\.0\.1:{api}/generate .*gpt-4o-mini.*", command)
        answer = httpx.post(
            f"http://127.0.0.1:{api}/generate", json={"prompt": "Hello", "model": "gpt-4o-mini", "max_tokens": 3}
        )
        assert answer.status_code == 200
        assert answer.json()["completion_tokens"] == 3
        assert "llm_api_http_requests_total" in httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
        status, notes = service.stop(signal.SIGTERM)
        assert status == 0
        assert "authentication is off" in notes
        assert "in memory" in notes
    assert is_freed(int(api))
    assert is_freed(int(metrics))


def test_ctrl_c_stops_in_order(ports: tuple[str, str]) -> None:
    with running("serve", "--port", ports[0], "--metrics-port", ports[1], settings=SIMULATED) as service:
        service.address("API")
        assert service.stop(signal.SIGINT)[0] == 130


def test_serve_with_keys_asks_for_them(ports: tuple[str, str]) -> None:
    settings = {**SIMULATED, "LLM_API_AUTH__KEYS": f"alice:{hash_key(KEY)}"}
    with running("serve", "--port", ports[0], "--metrics-port", ports[1], settings=settings) as service:
        address = service.address("API")
        assert "Authorization: Bearer YOUR_KEY" in service.address("try")
        assert httpx.get(f"{address}/v1/models").status_code == 401
        models = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        assert models.status_code == 200


def test_wrong_setting_ends_serve_at_once_and_nothing_listens(ports: tuple[str, str]) -> None:
    result = run("serve", "--port", ports[0], settings={"LLM_API_JOBS__CONCURRENCY": "many"})
    assert result.returncode == 2
    assert result.stderr == "jobs.concurrency (LLM_API_JOBS__CONCURRENCY): got 'many'; takes a valid integer\n"
    assert not is_served(int(ports[0]))


@pytest.mark.parametrize(
    ("option", "setting", "variable"),
    [
        ("--port", "server.port", "LLM_API_SERVER__PORT"),
        ("--metrics-port", "server.metrics_port", "LLM_API_SERVER__METRICS_PORT"),
    ],
)
def test_port_in_use_is_one_line_with_the_remedy(
    option: str, setting: str, variable: str, ports: tuple[str, str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--port", ports[0], "--metrics-port", ports[1], option, port, settings=SIMULATED)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{setting} ({variable}): got {port}, which is in use on 127.0.0.1; takes a free port, or 0 for any"
    ]


def test_address_of_another_machine_is_named() -> None:
    settings = {**SIMULATED, "LLM_API_AUTH__KEYS": f"alice:{KEY}"}
    result = run("serve", "--host", "192.0.2.1", "--port", "0", "--metrics-port", "0", settings=settings)
    assert result.returncode == 2
    assert "192.0.2.1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_several_workers_share_port_store_and_metrics(ports: tuple[str, str], redis_url: str) -> None:
    settings = {**SIMULATED, "REDIS_URL": redis_url, "LLM_API_REDIS__TIMEOUT_S": "5"}
    arguments = ("serve", "--workers", "2", "--port", ports[0], "--metrics-port", ports[1])
    with running(*arguments, settings=settings) as service:
        address = service.address("API")
        for _ in range(20):
            # A connection for each, so that both workers get some.
            ticket = httpx.post(f"{address}/tickets").json()["ticket"]
            query = {"prompt": "Hello", "model": "gpt-4o-mini", "max_tokens": "2", "ticket": ticket}
            assert httpx.get(f"{address}/stream", params=query).status_code == 200
        text = httpx.get(f"http://127.0.0.1:{ports[1]}/metrics").text
        for series in (
            'llm_api_http_requests_total{.*"/tickets".*}',
            'llm_api_requests_ended_total{family="stream",fault="none"}',
            'llm_api_overhead_seconds_count{transport="sse"}',
            'llm_api_upstream_duration_seconds_count{.*until="first_content"}',
            "llm_api_time_per_output_token_seconds_count{.*}",
            "llm_api_build_info{.*}",
        ):
            counted = re.findall(rf"^{series.replace('{', '[{]')} (\S+)$", text, re.MULTILINE)
            assert sum(map(float, counted)) == (1 if "build" in series else 20), series
        assert service.stop(signal.SIGTERM)[0] == 0
    assert is_freed(int(ports[0]))
    assert is_freed(int(ports[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a worker that its parent was killed")
def test_workers_end_with_a_parent_that_is_killed(ports: tuple[str, str], redis_url: str) -> None:
    settings = {**SIMULATED, "REDIS_URL": redis_url}
    with running(
        "serve", "--workers", "2", "--port", ports[0], "--metrics-port", ports[1], settings=settings
    ) as service:
        service.address("API")
        service.process.kill()
        service.process.wait()
        assert is_freed(int(ports[0]))
        assert is_freed(int(ports[1]))


def test_simulate_is_the_simulator() -> None:
    with running("simulate", "--port", "0", "--ttft-ms", "0", "--gap-ms", "0") as simulator:
        assert simulator.process.stdout is not None
        address = simulator.process.stdout.readline().split()[-1]
        assert httpx.get(f"{address}/v1/models").status_code == 200
        assert simulator.stop(signal.SIGTERM)[0] == 0


def test_new_key_comes_with_the_line_that_makes_it_known(tmp_path: Path) -> None:
    result = run("keys", "new", "alice")
    words = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert has_valid_checksum(words["key"])
    assert words["line"] == f"alice:{hash_key(words['key'])}"
    (tmp_path / "keys").write_text(words["line"])
    checked = run("check", settings={**SIMULATED, "LLM_API_AUTH__KEYS_FILE": str(tmp_path / "keys")})
    assert checked.returncode == 0


@pytest.mark.parametrize("name", ["", "a b", "a:b", "sk-0123456789", "x" * 41])
def test_name_of_a_key_is_checked(name: str) -> None:
    result = run("keys", "new", name)
    assert result.returncode == 2
    assert "takes up to 40 letters" in result.stderr


def test_key_is_hashed_from_the_standard_input() -> None:
    result = run("keys", "hash", stdin=f"{KEY}\n")
    assert result.stdout.strip() == hash_key(KEY)
    assert run("keys", "hash", stdin="short\n").returncode == 2


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--nonsense"], ["keys"]])
def test_command_line_that_makes_no_sense_is_refused_with_the_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: llm-api" in result.stderr


@pytest.mark.parametrize(
    "command", [[], ["serve"], ["simulate"], ["check"], ["keys"], ["keys", "new"], ["keys", "hash"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: llm-api")


def test_sigterm_is_heard_before_anything_that_takes_time_to_import() -> None:
    # As the first process of a container we would not be ended by it until then.
    code = "import sys, service.__main__; print({'pydantic', 'service.cli', 'service.config'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert seen.stdout.strip() == "set()"

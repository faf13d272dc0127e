"""Taking a port, and saying why it cannot be taken."""

import socket
from contextlib import closing

import pytest

from service.config import ConfigError, ServerSettings
from service.serving.sockets import address_of, bind, listen


def test_port_zero_takes_a_free_one_and_its_address_is_known() -> None:
    with bind("127.0.0.1", 0, setting="server.port") as bound:
        assert address_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_address_of_all_interfaces_is_one_that_can_be_opened() -> None:
    with bind("0.0.0.0", 0, setting="server.port") as bound:  # noqa: S104 - what this is about
        assert address_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_metrics_port_is_free_again_for_whoever_serves_them() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    with listen(ServerSettings(port=0, metrics_port=port)), socket.create_server(("127.0.0.1", port)) as metrics:
        assert metrics.getsockname()[1] == port


def test_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        bind("192.0.2.1", 0, setting="server.metrics_port")
    assert caught.value.problems[0].setting == "server.metrics_host"


def test_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0, setting="server.port") as taken, pytest.raises(ConfigError) as caught:
        bind("127.0.0.1", taken.getsockname()[1], setting="server.port")
    assert caught.value.problems[0].setting == "server.port"
    assert "in use" in caught.value.problems[0].got

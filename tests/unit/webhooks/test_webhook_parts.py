"""Signatures that others verify, and addresses to which nothing may be sent."""

import base64
import json
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.config.webhook_secret import secret_bytes
from service.webhooks.address import Forbidden, check_address, check_url
from service.webhooks.signature import signed_headers

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.mark.parametrize("receivers", [SECRET, OLD])
def test_the_public_package_verifies_what_is_signed_with_any_of_the_secrets(receivers: str) -> None:
    body = json.dumps({"type": "job.complete"}).encode()
    now = int(datetime.now(UTC).timestamp())
    headers = signed_headers([secret_bytes(SECRET), secret_bytes(OLD)], message_id="msg_1", timestamp=now, body=body)
    assert Webhook(receivers).verify(body, headers) == {"type": "job.complete"}
    with pytest.raises(WebhookVerificationError):
        Webhook(receivers).verify(body + b" ", headers)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "c" * 40, "whsec_!!!", "whsec_" + "QUFB" * 30])
def test_what_is_no_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and 24 to 64 bytes in base64") as refused:
        secret_bytes(secret)
    assert not secret or secret == "whsec_" or secret not in str(refused.value)


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:808:808::",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",
    "fec0::1",
    "3fff::1",
    "5f00::1",
    "64:ff9b:1::808:808",
    "64:ff9b::c058:6301",
    "2001:20::1",
    "192.88.99.1",
    "192.0.0.9",
    "168.63.129.16",
    "::ffff:168.63.129.16",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_forbidden_however_they_are_written(address: str) -> None:
    with pytest.raises(Forbidden, match="public internet"):
        check_address(ip_address(address), ())
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Forbidden):
        check_url(f"https://{host}/hook", allow_http=False, allow_networks=())


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    check_address(ip_address(address), ())


def test_a_network_can_be_allowed() -> None:
    check_address(ip_address("127.0.0.1"), LOOPBACK)
    check_address(ip_address("168.63.129.16"), (ip_network("168.63.129.16/32"),))
    check_url("https://localhost:8443/hook", allow_http=False, allow_networks=LOOPBACK)
    with pytest.raises(Forbidden):
        check_address(ip_address("10.0.0.1"), LOOPBACK)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/hook", "https"),
        ("ftp://example.com/hook", "https"),
        ("example.com/hook", "https"),
        ("https://", "host"),
        ("https:///hook", "host"),
        ("https://user:password@example.com", "password"),
        ("https://example.com/#here", "fragment"),
        ("https://example.com:99999/", "no URL"),
        ("https://[::1/", "no URL"),
        ("https://a..b/", "no name"),
        ("https://" + "a" * 64 + ".org/", "no name"),
        ("https://exa mple.org/", "no name"),
        ("https://host\0.org/", "no name"),
        ("https://" + "a." * 150 + "org/", "no name"),
        ("https://1.1.1.1\\@127.0.0.1/", "no URL"),
        ("https://127。0。0。1/", "public internet"),
        ("https://localhost/", "public internet"),
        ("https://api.localhost/", "public internet"),
        ("https://example.com/" + "x" * 2_048, "characters"),
    ],
)
def test_wrong_addresses_are_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(Forbidden, match=why):
        check_url(url, allow_http=False, allow_networks=())


def test_http_can_be_allowed() -> None:
    check_url("http://example.com/hook", allow_http=True, allow_networks=())

"""Which addresses of a store are taken."""

from pathlib import Path

import pytest

from service.config.store_address import checked_store_address


@pytest.mark.parametrize(
    "url",
    [
        "redis://store",
        "redis://store:6379/0",
        "redis://store/",
        "redis://[::1]:1/15",
        "redis://user:p%40ss@store:65535/0?client_name=me&socket_keepalive=no",
        "redis://store?db=3",
        "rediss://:secret@store/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///run/store.sock",
        "unix://user:secret@/run/store.sock?db=1",
        "unix:///a%20b/store.sock",
    ],
)
def test_usable_address_is_taken_as_it_is(url: str) -> None:
    assert checked_store_address(url) == url


BROKEN = {
    "http://store": "starts with redis://",
    "redis://": "has a host",
    "redis:///0": "has a host",
    "redis://store:notaport": "a port from 1 to 65535",
    "redis://store:70000": "a port from 1 to 65535",
    "redis://store:0": "a port from 1 to 65535",
    "redis://store:-1": "a port from 1 to 65535",
    "redis://[::1": "has a host",
    "redis://:secret/of@store": "has a host",
    "redis://store/0#secret": "has no #",
    "redis://store/zero": "a number for its database",
    "redis://store/-1": "a number for its database",
    "redis://store?db=-1": "a number from 0",
    "redis://store?db=one": "values that they take",
    "redis://store?db=": "each with a value",
    "redis://store/0?foo=bar": "has no options but",
    "redis://store/0?socket_timeout=60": "has no options but",
    "redis://store/0?protocol=3": "has no options but",
    "redis://store/0?ssl_cert_reqs=none": "go with its scheme",
    "rediss://store/0?ssl_cert_reqs=perhaps": "values that they take",
    "rediss://store/0?ssl_nonsense=1": "go with its scheme",
    "rediss://store/0?ssl_ca_certs=/absent": "certificates and keys that can be read",
    "unix://": "the path of a socket",
    "unix://run/store.sock": "the path of a socket",
    "unix:///run/store.sock?socket_keepalive=1": "go with its scheme",
}


@pytest.mark.parametrize(("url", "takes"), BROKEN.items(), ids=BROKEN)
def test_unusable_address_is_refused_and_not_shown(url: str, takes: str) -> None:
    with pytest.raises(ValueError, match=r"redis\.url or REDIS_URL") as caught:
        checked_store_address(url)
    assert takes in str(caught.value)
    assert "secret" not in str(caught.value)


def test_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="certificates and keys that can be read"):
        checked_store_address(f"rediss://store/0?ssl_ca_certs={path}")

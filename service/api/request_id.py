"""The id of a request: the caller's own if it is harmless, else a new one."""

import re
import secrets

_HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def request_id_from(header: bytes | None) -> str:
    """Return the caller's id if it cannot forge a log line or a header, else a new one of 26 characters."""
    if header is not None and _HARMLESS.fullmatch(header):
        return header.decode("ascii")
    return "req_" + secrets.token_hex(11)

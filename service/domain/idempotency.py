"""What tells a request that comes again from another one."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from service.errors import FieldError, IdempotencyConflict, IdempotencyMismatch

HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key, for one route, and the body that came with it; neither is kept in clear."""

    digest: str
    """Of the principal, the route and the key."""
    fingerprint: str
    """Of the body."""

    @classmethod
    def of(cls, principal: str, route: str, key: str, body: bytes) -> Self:
        """Make it of a request."""
        return cls(sha256(f"{principal}\0{route}\0{key}".encode()).hexdigest(), sha256(body).hexdigest())


def in_flight() -> IdempotencyConflict:
    """Make what a request gets whose key is being worked on."""
    return IdempotencyConflict(
        f"a request with this {HEADER} is being answered: come again with it, and get that answer", retry_after_s=1.0
    )


def other_body() -> IdempotencyMismatch:
    """Make what a request gets whose key came with another body."""
    message = "was used for another body: take a new key for a new request"
    return IdempotencyMismatch(f"{HEADER}: {message}", fields=(FieldError(HEADER, message, "idempotency_mismatch"),))

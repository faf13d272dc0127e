"""Everything that can go wrong, as one tree; knows neither FastAPI nor any vendor.

::

    ServiceError
    ├── InvalidRequest            422   the caller's mistake; names the field
    │   ├── ModelNotFound         422   the model is not configured; lists those that are
    │   ├── BeyondLimit           422   larger than a limit can ever let through
    │   └── IdempotencyMismatch   422   the same key came with another body
    ├── Unauthenticated           401   credential missing or wrong
    ├── PermissionDenied          403   credential right, not allowed
    ├── NotFound                  404   no such path
    │   ├── JobNotFound           404   no such job of this caller's
    │   └── StreamNotFound        404   no such stream of this caller's, or it is not kept any more
    ├── JobGone                   410   the job is over, and its result is not kept any more
    ├── MethodNotAllowed          405   the path has other methods
    ├── RequestTimeout            408   the body does not come
    ├── RequestTooLarge           413   body over the limit
    ├── IdempotencyConflict       409   the same key is being worked on
    ├── Cancelled                 499   the caller asked for the end of it
    ├── RateLimited               429   this principal's budget is spent
    ├── Overloaded                503   our own queue is full
    │   └── SocketFull            503   one socket's own limit of generations is reached
    ├── CircuitOpen               503   every way to the model failed a moment ago, and is given a rest
    ├── Draining                  503   this process is stopping
    ├── StreamInterrupted         503   the process that generated a resumable stream is gone
    ├── StoreUnavailable          503   Redis did not answer: our fault, never the caller's 401
    ├── InternalError             500   a defect of ours
    └── UpstreamError
        ├── UpstreamRejected      400   context too long, content filtered: the upstream's reason is kept
        ├── UpstreamThrottled     503   the upstream's 429: never shown as the caller's 429
        ├── UpstreamOverloaded    503   the upstream's 529: too much for it, whoever asks
        ├── UpstreamUnavailable   502   connection failure or 5xx
        ├── UpstreamInvalid       502   an answer that breaks the schema, or breaks off
        ├── UpstreamMisconfigured 502   our key, quota or address is refused: page someone
        └── UpstreamTimeout       504   a deadline passed while waiting for the upstream
            └── DeadlinePassed    504   the caller's own, which it gave with the request

The class decides: ``code``, ``status`` and ``retryable`` are class attributes; ``service.api.errors`` alone renders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

Fault = Literal["none", "caller", "us", "provider", "capacity"]
"""Whose it is that a request did not end well. ``capacity``: more was asked than we, or what we have bought, can do.
What is ``us``, ``provider`` or ``capacity`` counts against the objectives; what is the caller's does not."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with the input."""

    field: str
    """Where, as a dotted path from the body's or the query's root: ``messages.0.content``."""
    message: str
    """What is wrong and what would be right."""
    type: str = "invalid"
    """A stable word for programs, such as ``missing`` or ``string_too_long``."""


class ServiceError(Exception):
    """A failure with a meaning for the caller. ``str(error)`` is shown to the caller: nothing secret belongs in it."""

    code: ClassVar[str] = "internal_error"
    """A stable word for programs, unique to the class."""
    status: ClassVar[int] = 500
    """HTTP status, where the response has not started yet."""
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later without a change."""
    title: ClassVar[str] = "Internal error"
    """The class of failure in a few words, the same for every occurrence (RFC 9457 section 3.1.3)."""
    fault: ClassVar[Fault] = "us"
    """Whose fault it is."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        fields: tuple[FieldError, ...] = (),
        resume: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.fields = fields
        self.resume = resume
        """The path at which what was begun can be continued, if it can."""


class InternalError(ServiceError):
    """A defect of ours; its details go to the log, not to the caller."""


UNSUPPORTED = "unsupported"
"""The type of a field error where one provider cannot do what another may."""


class InvalidRequest(ServiceError):  # noqa: N818 - the tree reads as HTTP reasons, without a suffix
    """The caller's mistake."""

    code = "invalid_request"
    status = 422
    title = "The request is not valid"
    fault = "caller"

    @classmethod
    def at(cls, field: str, message: str, *, kind: str = "invalid") -> Self:
        """Make the error for a single field."""
        return cls(f"{field}: {message}", fields=(FieldError(field, message, kind),))


class ModelNotFound(InvalidRequest):
    """The model is not one of those configured, or not one of this principal's."""

    code = "model_not_found"
    title = "No such model"


class BeyondLimit(InvalidRequest):
    """The request would take more than its limit can ever hold: waiting does not help."""

    code = "beyond_limit"
    title = "The request is larger than its limit allows"


class IdempotencyMismatch(InvalidRequest):
    """The same idempotency key came with another body."""

    code = "idempotency_mismatch"
    title = "The idempotency key was used for another request"


class Unauthenticated(ServiceError):  # noqa: N818
    """The credential is missing or wrong."""

    code = "unauthenticated"
    status = 401
    title = "Authentication is needed"
    fault = "caller"


class PermissionDenied(ServiceError):  # noqa: N818
    """The credential is right, but it does not allow this."""

    code = "permission_denied"
    status = 403
    title = "Not allowed"
    fault = "caller"


class NotFound(ServiceError):  # noqa: N818
    """There is nothing at this path."""

    code = "not_found"
    status = 404
    title = "Not found"
    fault = "caller"


class MethodNotAllowed(ServiceError):  # noqa: N818
    """The path is right, the method is not."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"
    fault = "caller"


class JobNotFound(NotFound):
    """No such job, or someone else's: the two look alike on purpose."""

    code = "job_not_found"
    title = "No such job"


class JobGone(ServiceError):  # noqa: N818
    """The job is over, and its result is not kept any more."""

    code = "job_gone"
    status = 410
    title = "The job's result is gone"
    fault = "caller"


class StreamNotFound(NotFound):
    """No such stream, one that is not kept any more, or someone else's: they look alike on purpose."""

    code = "stream_not_found"
    title = "No such stream"


class RequestTimeout(ServiceError):  # noqa: N818
    """The rest of the body did not come in time."""

    code = "request_timeout"
    status = 408
    retryable = True
    title = "The request did not come in time"
    fault = "caller"


class RequestTooLarge(ServiceError):  # noqa: N818
    """The body is over the limit."""

    code = "request_too_large"
    status = 413
    title = "The request is too large"
    fault = "caller"


class IdempotencyConflict(ServiceError):  # noqa: N818
    """A request with the same idempotency key is being worked on."""

    code = "idempotency_conflict"
    status = 409
    retryable = True
    title = "The same request is being answered"
    fault = "caller"


class Cancelled(ServiceError):  # noqa: N818
    """The caller ended it, on the WebSocket or by ``DELETE /streams/{stream_id}``; elsewhere nobody is left to tell."""

    code = "cancelled"
    status = 499
    title = "Cancelled"
    fault = "caller"


class RateLimited(ServiceError):  # noqa: N818
    """This principal's budget is spent."""

    code = "rate_limited"
    status = 429
    retryable = True
    title = "Rate limit reached"
    fault = "caller"


class Overloaded(ServiceError):  # noqa: N818
    """We cannot take this now."""

    code = "overloaded"
    status = 503
    retryable = True
    title = "The service is overloaded"
    fault: ClassVar[Fault] = "capacity"


class SocketFull(Overloaded):
    """A socket has as many generations as it may: whoever opened it waits for one of them, or opens another."""

    code = "socket_full"
    title = "The socket has as many generations as it may"
    fault = "caller"


class CircuitOpen(ServiceError):  # noqa: N818
    """All that answer for the model failed a moment ago: none is asked before it had a rest."""

    code = "circuit_open"
    status = 503
    retryable = True
    title = "The providers are being given a rest"
    fault = "provider"


class Draining(ServiceError):  # noqa: N818
    """This process is stopping; another takes the same request."""

    code = "draining"
    status = 503
    retryable = True
    title = "The process is stopping"


class StreamInterrupted(ServiceError):  # noqa: N818
    """The process that generated a resumable stream died; what it had written is there, the rest is not."""

    code = "stream_interrupted"
    status = 503
    retryable = True
    title = "The stream was interrupted"


class StoreUnavailable(ServiceError):  # noqa: N818
    """The shared store did not answer in time."""

    code = "store_unavailable"
    status = 503
    retryable = True
    title = "The shared store is unavailable"


Refused = Literal["key", "funds", "model", "provider"]
"""How far a refusal goes. ``key``, ``funds``: this key is wrong, or its account is out of money, whatever the model.
``model``: there is none of that name, or not for this key. ``provider``: nothing works there as it is configured."""


class UpstreamError(ServiceError):
    """The provider's trouble. ``provider`` names it as configured, never its address or key."""

    code = "upstream_error"
    status = 502
    title = "The provider failed"
    fault: ClassVar[Fault] = "provider"
    fallback: ClassVar[bool] = True
    """Whether another route to the same model may do better, as long as nothing was handed on."""

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        upstream_status: int | None = None,
        upstream_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.provider = provider
        self.upstream_status = upstream_status
        self.upstream_code = upstream_code


class UpstreamRejected(UpstreamError):  # noqa: N818
    """The provider refuses this very request, and would again."""

    code = "upstream_rejected"
    status = 400
    title = "The provider rejected the request"
    fault = "caller"
    fallback = False


class UpstreamThrottled(UpstreamError):  # noqa: N818
    """The provider's rate limit for our key: ours to absorb, not the caller's 429."""

    code = "upstream_throttled"
    status = 503
    retryable = True
    title = "The provider is limiting us"
    fault = "capacity"


class UpstreamOverloaded(UpstreamError):  # noqa: N818
    """The provider has more to do than it can, for all its customers; another provider is the better remedy."""

    code = "upstream_overloaded"
    status = 503
    retryable = True
    title = "The provider is overloaded"


class UpstreamUnavailable(UpstreamError):  # noqa: N818
    """No connection, a reset before the head of an answer, or a 5xx."""

    code = "upstream_unavailable"
    retryable = True
    title = "The provider is unavailable"


class UpstreamInvalid(UpstreamError):  # noqa: N818
    """An answer that breaks the provider's own schema, or breaks off: the provider may have to be paid for it."""

    code = "upstream_invalid_response"
    retryable = True
    title = "The provider's answer is not valid"


class UpstreamMisconfigured(UpstreamError):  # noqa: N818
    """The provider refuses our key, our account or our address: an operator must act."""

    code = "upstream_misconfigured"
    title = "The provider refuses our credentials"
    fault = "us"

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        upstream_status: int | None = None,
        upstream_code: str | None = None,
        refused: Refused = "provider",
    ) -> None:
        super().__init__(message, provider=provider, upstream_status=upstream_status, upstream_code=upstream_code)
        self.refused = refused

    @property
    def refuses_key(self) -> bool:
        """Whether another key may do better, whatever the model."""
        return self.refused in ("key", "funds")


def mildest(refusals: Sequence[UpstreamMisconfigured]) -> UpstreamMisconfigured:
    """Return the refusal that leaves most hope: an account without funds has a key that is taken."""
    return next((refusal for refusal in refusals if refusal.refused == "funds"), refusals[0])


class UpstreamTimeout(UpstreamError):  # noqa: N818
    """A deadline passed while waiting for the provider."""

    code = "upstream_timeout"
    status = 504
    retryable = True
    title = "The provider did not answer in time"


class DeadlinePassed(UpstreamTimeout):
    """The time was over that the caller gave: the provider may need more, and is not ill for that."""

    code = "deadline_passed"
    title = "The time that the request gave was over"
    fault = "caller"


def fault_of_code(code: str) -> Fault:
    """Return whose fault errors with this code are; one that is not ours is the upstream's, about this very request."""
    return next((kind.fault for kind in error_classes() if kind.code == code), UpstreamRejected.fault)


def error_classes(root: type[ServiceError] = ServiceError) -> tuple[type[ServiceError], ...]:
    """List the classes of the tree below ``root``, and itself."""
    return (root, *(kind for child in root.__subclasses__() for kind in error_classes(child)))

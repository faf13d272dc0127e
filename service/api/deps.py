"""What routes ask for by name: the process's resources, and who is calling."""

from dataclasses import replace
from hmac import compare_digest
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import HTTPConnection

from service.api.request_span import SPAN
from service.api.request_timeout import request_timeout_s
from service.config import Settings, is_loopback
from service.domain.principal import Principal, RequestContext
from service.domain.request_line import RequestLine
from service.domain.ticket import digest_of
from service.engine.batches import BatchService
from service.engine.generation import GenerationService
from service.engine.jobs import JobService
from service.engine.readiness import ReadinessCheck
from service.errors import PermissionDenied, Unauthenticated
from service.resources import Resources

CONTEXT: Final = "llm_api.context"
"""Where the scope has the context, once it is known who calls: for the headers of the answer."""
KEY_PARAMETERS = frozenset(
    {
        "accesstoken",
        "apikey",
        "apitoken",
        "auth",
        "authorization",
        "authtoken",
        "bearer",
        "key",
        "password",
        "secret",
        "subscriptionkey",
        "token",
        "xapikey",
    }
)
"""Query parameters in which people put keys, in lower case and without dashes. Query strings end up in logs, so a key
found there is burnt."""


async def get_resources(connection: HTTPConnection) -> Resources:
    """Return what the lifespan opened. Serves HTTP and WebSocket alike."""
    resources: Resources = connection.state.resources
    return resources


async def get_generation(resources: Annotated[Resources, Depends(get_resources)]) -> GenerationService:
    """Return the generation service; a test puts one over other providers in its place."""
    return resources.generation


async def get_jobs(resources: Annotated[Resources, Depends(get_resources)]) -> JobService:
    """Return the job service."""
    return resources.jobs


async def get_batches(resources: Annotated[Resources, Depends(get_resources)]) -> BatchService:
    """Return the batch service."""
    return resources.batches


async def get_readiness(resources: Annotated[Resources, Depends(get_resources)]) -> ReadinessCheck:
    """Return the readiness check."""
    return resources.readiness


async def get_context(
    connection: HTTPConnection, resources: Annotated[Resources, Depends(get_resources)]
) -> RequestContext:
    """Authenticate by header; raise ``Unauthenticated``, or ``PermissionDenied`` for a foreign page."""
    refuse_key_in_query(connection)
    if resources.settings.auth.enabled is False:
        return _open_context(connection, resources)
    principal = resources.authenticator.authenticate(header_credential(connection))
    return _context(connection, principal=principal)


async def get_timed_context(
    connection: HTTPConnection, resources: Annotated[Resources, Depends(get_resources)]
) -> RequestContext:
    """Authenticate as :func:`get_context`, for routes that generate: they may be told until when."""
    return _timed(connection, await get_context(connection, resources))


async def get_browser_context(
    connection: HTTPConnection, resources: Annotated[Resources, Depends(get_resources)]
) -> RequestContext:
    """Authenticate by header, or by a single-use ticket in the query, for callers that can set no header."""
    refuse_key_in_query(connection)
    if resources.settings.auth.enabled is False:
        return _open_context(connection, resources)
    credential = header_credential(connection)
    ticket = connection.query_params.get("ticket")
    if ticket is not None and credential is None:
        # The key behind the ticket may have been taken back, or may do less, since it was issued.
        principal = resources.authenticator.renew(await resources.tickets.redeem(ticket))
    else:
        principal = resources.authenticator.authenticate(credential)
    return _context(connection, principal=principal)


def header_credential(connection: HTTPConnection) -> str | None:
    """Return the bearer key, or the one in ``x-api-key`` as Anthropic's clients send it."""
    authorization = connection.headers.get("authorization")
    if authorization is None:
        return connection.headers.get("x-api-key")
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise Unauthenticated("the Authorization header must be 'Bearer KEY'")
    return credential.strip()


def refuse_key_in_query(connection: HTTPConnection) -> None:
    """Raise ``Unauthenticated`` where a key may stand in the query string."""
    for name in connection.query_params:
        if name.lower().replace("-", "").replace("_", "") in KEY_PARAMETERS:
            raise Unauthenticated(
                f"a key in the query string ({name!r}) is refused, since addresses are logged: send it as "
                "'Authorization: Bearer KEY', or get a single-use ticket from POST /tickets"
            )


def refuse_foreign_page(connection: HTTPConnection, settings: Settings) -> None:
    """Raise ``PermissionDenied`` for a page of an origin that is neither ours nor listed.

    CORS alone keeps such a page from reading an answer, not from asking, and does not cover WebSockets at all. An image
    or a script that such a page includes comes without an origin; browsers tell of it in ``Sec-Fetch-Site``.
    """
    origin = connection.headers.get("origin")
    if origin is None:
        foreign = connection.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    else:
        foreign = (
            origin not in settings.cors.origins
            and "*" not in settings.cors.origins
            and origin.partition("://")[2] != connection.headers.get("host")
        )
    if foreign:
        page = "another site" if origin is None else f"the origin {origin!r}"
        raise PermissionDenied(f"a page of {page} may not call this service: add its origin to cors.origins")


def refuse_foreign_name(connection: HTTPConnection, settings: Settings) -> None:
    """Raise ``PermissionDenied`` where this machine is called by a name that is not its own.

    A name of an attacker's that resolves to the loopback address makes a page of theirs look like one of ours
    (DNS rebinding).
    """
    try:
        name = (urlsplit(f"//{connection.headers.get('host', '')}").hostname or "").lower()
    except ValueError:
        name = "?"
    if name in ("", "localhost", settings.server.host) or name.endswith(".localhost") or is_loopback(name):
        return
    raise PermissionDenied(f"the name {name!r} is not this machine's own: call it as localhost, or set auth.keys")


def _open_context(connection: HTTPConnection, resources: Resources) -> RequestContext:
    """Let everybody in where authentication is off, but for other sites' pages in the browser of whoever runs this."""
    refuse_foreign_name(connection, resources.settings)
    refuse_foreign_page(connection, resources.settings)
    return _context(connection, principal=resources.authenticator.authenticate(None))


def _context(connection: HTTPConnection, *, principal: Principal) -> RequestContext:
    context = RequestContext(
        request_id=connection.scope["request_id"],
        principal=principal,
        received_at=connection.scope["received_at"],
        line=RequestLine() if connection.scope["type"] == "http" else None,
        span=connection.scope.get(SPAN),
    )
    connection.scope[CONTEXT] = context
    return context


async def get_stream_context(
    connection: HTTPConnection, resources: Annotated[Resources, Depends(get_resources)]
) -> RequestContext:
    """Authenticate as :func:`get_browser_context`, for routes that continue a stream too.

    There the ticket that began a stream is good again, for that stream alone: browsers reconnect to the same address.
    """
    try:
        return await get_browser_context(connection, resources)
    except Unauthenticated:
        stream_id = connection.path_params.get("stream_id") or _continued_stream(connection)
        ticket = connection.query_params.get("ticket")
        if stream_id is None or ticket is None or header_credential(connection) is not None:
            raise
        record = await resources.streams.find(stream_id)
        digest = digest_of(ticket).hex()
        if record is None or record.ticket_digest is None or not compare_digest(record.ticket_digest, digest):
            raise
        principal = resources.authenticator.renew(Principal(record.principal, key_digest=record.key_digest))
        return _context(connection, principal=principal)


async def get_timed_stream_context(
    connection: HTTPConnection, resources: Annotated[Resources, Depends(get_resources)]
) -> RequestContext:
    """Authenticate as :func:`get_stream_context`, for routes that generate."""
    return _timed(connection, await get_stream_context(connection, resources))


def _timed(connection: HTTPConnection, context: RequestContext) -> RequestContext:
    """Note in the context until when the answer is of use, if the caller says so."""
    timeout_s = request_timeout_s(connection)
    return context if timeout_s is None else replace(context, deadline_at=context.received_at + timeout_s)


def _continued_stream(connection: HTTPConnection) -> str | None:
    """Return the id of the stream that the request continues, if it does; the route looks at the rest of it."""
    stream_id, _, number = connection.headers.get("last-event-id", "").rpartition(":")
    return stream_id if number else None


Context = Annotated[RequestContext, Depends(get_context)]
TimedContext = Annotated[RequestContext, Depends(get_timed_context)]
StreamContext = Annotated[RequestContext, Depends(get_stream_context)]
TimedStreamContext = Annotated[RequestContext, Depends(get_timed_stream_context)]
BrowserContext = Annotated[RequestContext, Depends(get_browser_context)]
Generation = Annotated[GenerationService, Depends(get_generation)]
Batches = Annotated[BatchService, Depends(get_batches)]
Jobs = Annotated[JobService, Depends(get_jobs)]
Readiness = Annotated[ReadinessCheck, Depends(get_readiness)]
AllResources = Annotated[Resources, Depends(get_resources)]

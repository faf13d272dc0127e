"""``POST /tickets``: single-use credentials for browsers, whose EventSource and WebSocket can set no header."""

from fastapi import APIRouter
from starlette.responses import Response

from service.api.deps import AllResources, Context
from service.api.responses import json_response, problems
from service.api.schemas import TicketAnswer

router = APIRouter(tags=["tickets"])


@router.post("/tickets", status_code=201, response_model=TicketAnswer, responses=problems(401, 403, 413, 429, 503))
async def issue(resources: AllResources, context: Context) -> Response:
    """Issue a ticket: good once, for half a minute, for what the caller's own key may do."""
    ticket = await resources.tickets.issue(context.principal)
    return json_response(
        TicketAnswer(ticket=ticket.value, expires_in_s=ticket.expires_in_s),
        status=201,
        headers={"Cache-Control": "no-store"},
    )

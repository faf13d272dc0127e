"""What our protocols do where uvicorn's would blame the application."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from service.serving.protocols import WebSocketProtocol


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(scope, receive, send)


async def test_a_message_behind_the_servers_own_close_meets_a_client_that_is_gone() -> None:
    config = uvicorn.Config(app, log_config=None)
    protocol = WebSocketProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    # As after a ping that was never answered.
    protocol.handshake_complete = protocol.close_sent = True
    with pytest.raises(ClientDisconnected):
        await protocol.send({"type": "websocket.send", "text": "x"})


async def test_a_message_out_of_turn_is_still_a_mistake() -> None:
    config = uvicorn.Config(app, log_config=None)
    protocol = WebSocketProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match=r"websocket\.accept"):
        await protocol.send({"type": "websocket.send", "text": "x"})

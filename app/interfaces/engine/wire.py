"""The server's side of a connection: uvicorn's own, with a way to end one whose client takes nothing.

An ASGI application cannot say more to a client that does not read, not even that it is closed; the transport can. The
process names these classes as uvicorn's `http` and `ws`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

FAIL = "runyard.fail"
"""Key of the scope's extension: a callable (code, reason) that ends the connection without waiting."""

CUT = "runyard.cut"
"""Key of an HTTP scope's extension: a callable that ends the connection, and drops what was not taken of it."""

GRACE = 5.0
"""Seconds for what is buffered to go out before the connection is cut."""


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {CUT: self.transport.abort}
        self.scope["extensions"] = extensions


class SocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            extensions: dict[str, object] = scope["extensions"]
            extensions[FAIL] = self.fail

    def fail(self, code: int, reason: str) -> None:
        """Put a close frame behind what is buffered, and cut the connection where that does not go out in time."""
        if self.transport.is_closing():
            return
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        asyncio.get_running_loop().call_later(GRACE, self.transport.abort)

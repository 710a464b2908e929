"""The raw column: hand-written Starlette routes in the same process set-up, which do the least that the job needs.

/report, /follow   a message of one socket goes by Redis to another
/submit, /orders   a POST is one durable INSERT and one publish, and goes by Redis to a socket
"""

import os
import sys

import asyncpg
import uvicorn
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.interfaces.engine.wire import SocketProtocol

REPORTS, ORDERS = "raw:reports", "raw:orders"


class Raw:
    """One connection to each server, as many routes as there are paths."""

    def __init__(self, database: "asyncpg.Connection[asyncpg.Record]", redis: "Redis") -> None:
        self._database = database
        self._redis = redis

    async def report(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await self._redis.publish(REPORTS, await socket.receive_text())
                await socket.send_text("ok")
        except WebSocketDisconnect:
            return

    async def follow(self, socket: WebSocket) -> None:
        await self._forward(REPORTS, socket)

    async def submit(self, request: Request) -> Response:
        body = (await request.body()).decode()
        id = await self._database.fetchval("INSERT INTO raw_task (body) VALUES ($1::jsonb) RETURNING id", body)
        await self._redis.publish(ORDERS, body)
        return Response(str(id))

    async def orders(self, socket: WebSocket) -> None:
        await self._forward(ORDERS, socket)

    async def _forward(self, channel: str, socket: WebSocket) -> None:
        await socket.accept()
        async with self._redis.pubsub() as following:
            await following.subscribe(channel)
            async for message in following.listen():
                await socket.send_text("ready" if message["type"] == "subscribe" else message["data"].decode())


async def serve(database_url: str, redis_url: str) -> None:
    """Serve on a free port, which the first line of standard output names."""
    database = await asyncpg.connect(database_url)
    await database.execute("CREATE TABLE IF NOT EXISTS raw_task (id bigserial PRIMARY KEY, body jsonb NOT NULL)")
    raw = Raw(database, Redis.from_url(redis_url))
    routes = [
        WebSocketRoute("/report", raw.report),
        WebSocketRoute("/follow", raw.follow),
        WebSocketRoute("/orders", raw.orders),
        Route("/submit", raw.submit, methods=["POST"]),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes),
        port=0,
        http="httptools",
        ws=SocketProtocol,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    listener = config.bind_socket()
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(os.environ["BENCH_DATABASE_URL"], os.environ["BENCH_REDIS_URL"]))

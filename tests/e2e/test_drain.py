"""What SIGTERM does to one replica: it turns red, takes nothing new, answers what it has, and is gone in time."""

import asyncio
import json
import os
import signal
import time
from collections import defaultdict

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app.children import exists
from tests.e2e.world import Replica, World, set_up
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)

EXIT = 25.0  # seconds: G14
BUSY = 20.0  # seconds that a machine under load may add
PATIENCE = 60.0  # seconds
BODY = json.dumps({"query": "{ viewer { teams { id } } }"}).encode()


class HalfSent:
    """A request whose body is not whole yet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, replica: Replica, token: str) -> "HalfSent":
        host, port = replica.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /graphql HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        writer.write(head.encode() + BODY[:5])
        await writer.drain()
        return cls(reader, writer)

    async def end(self) -> bytes:
        """Send the rest; returns all that is answered until the connection closes."""
        self._writer.write(BODY[5:])
        return await asyncio.wait_for(self._reader.read(), PATIENCE)

    def close(self) -> None:
        self._writer.close()


async def refused(replica: Replica) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            await http.get(f"{replica.url}/healthz")
        except httpx.TransportError:
            return True
        return False


async def test_a_draining_replica_is_red_first_and_then_takes_nothing_new(world: World) -> None:
    replica = world.replica(RUNYARD_LINGER="4")
    await replica.start()
    seen, closing = list[int](), defaultdict[int, set[str]](set)

    os.kill(replica.pid, signal.SIGTERM)

    async def asked_until_refused() -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answer = await http.get(f"{replica.url}/readyz")
                seen.append(answer.status_code)
                closing[answer.status_code].add(answer.headers.get("connection", ""))
            except httpx.TransportError:
                return True
        return False

    await until(asked_until_refused, within=PATIENCE)
    await until(lambda: replica.returncode is not None, within=EXIT + BUSY)
    assert replica.returncode == 0
    assert 503 in seen
    assert set(seen) <= {200, 503}
    assert closing[503] == {"close"}  # or a proxy would use the connection again at the moment that it closes


async def test_a_request_in_flight_is_answered(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica)
    request = await HalfSent.begin(replica, team.owner)

    os.kill(replica.pid, signal.SIGTERM)
    await until(lambda: refused(replica), within=PATIENCE)
    answer = await request.end()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert team.id.encode() in answer
    await until(lambda: replica.returncode is not None, within=PATIENCE)
    assert replica.returncode == 0


async def test_sockets_are_told_to_come_back(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica)
    address = replica.url.replace("http", "ws", 1) + "/graphql"
    subprotocols = ["graphql-transport-ws"]
    async with connect(address, subprotocols=subprotocols, proxy=None) as socket:  # type: ignore[arg-type]
        who = {"authorization": f"Bearer {team.owner}"}
        await socket.send(json.dumps({"type": "connection_init", "payload": who}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        watch = {"query": "subscription { tasksChanged { resync } }"}
        await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": watch}))
        assert json.loads(await socket.recv())["type"] == "next"

        os.kill(replica.pid, signal.SIGTERM)

        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), PATIENCE)
        assert (socket.close_code, socket.close_reason) == (1012, "this server is stopping: connect again")
    await until(lambda: replica.returncode is not None, within=PATIENCE)
    assert replica.returncode == 0


async def test_streams_over_http_end_so_that_their_clients_ask_again(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica)
    body = {"query": "subscription { tasksChanged { resync } }"}
    headers = {"authorization": f"Bearer {team.owner}", "accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http,
        http.stream("POST", f"{replica.url}/graphql", json=body, headers=headers) as answer,
    ):
        heard = answer.aiter_text()
        said = await anext(heard)

        os.kill(replica.pid, signal.SIGTERM)

        said += "".join([text async for text in heard])  # raises where the answer is cut instead of ended

    assert said.startswith('event: next\ndata: {"data":{"tasksChanged":{"resync":true}}}\n\n')
    assert "complete" not in said
    await until(lambda: replica.returncode is not None, within=PATIENCE)
    assert replica.returncode == 0


async def test_a_request_that_never_ends_holds_nobody_up(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica)
    request = await HalfSent.begin(replica, team.owner)
    pid = replica.pid

    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    await until(lambda: not exists(pid), within=PATIENCE)

    assert time.monotonic() - began < EXIT + BUSY
    await until(lambda: replica.returncode is not None, within=PATIENCE)
    assert replica.returncode == 0
    request.close()

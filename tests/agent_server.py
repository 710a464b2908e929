"""A server for the agent's tests: speaks the real messages over a real socket, checked against the real schema.

It keeps tasks in memory and has switches to misbehave: lose answers, drop connections, refuse. It fakes the server, so
that the agent under test is the real process.
"""

import asyncio
import contextlib
import hashlib
import itertools
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from graphql import build_schema, graphql, parse, validate
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.agent_leases import Agent, Lease, order_of

SCHEMA = build_schema((Path(__file__).parents[1] / "app" / "agent" / "schema.graphql").read_text())
KEY = "ak-test-0123456789"


class AgentServer:
    """Start with `running`; give work with `assign`; look at `Lease`."""

    def __init__(self, *, part_size: int = 64 * 1024 * 1024) -> None:
        self.url = ""
        self.part_size = part_size
        self.agents: dict[str, Agent] = {}
        self.leases: dict[str, Lease] = {}
        self.files: dict[str, bytes] = {}  # inputs by path
        self.calls: list[str] = []
        self.beats: list[list[str]] = []
        self.accepting = True
        self.sent_away: int = 0  # reports with lines that are to be repeated later
        self.connects: list[dict[str, Any]] = []
        self.puts: list[str] = []
        # Switches: operation -> how often.
        self.lose_answer: dict[str, int] = defaultdict(int)  # done, not answered
        self.cut_after: dict[str, int] = defaultdict(int)  # done, then the connection breaks
        self.fail: dict[str, list[str]] = defaultdict(list)  # answered with this error code, not done
        self.refuse_sockets = False
        self.forbid = False
        self.down = False
        self.put_faults: list[int] = []
        self.refuse_output: str | None = None
        self.connect_answer: dict[str, Any] | None = None
        self._sockets: set[WebSocket] = set()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._lease_seconds, self._beat_seconds = 30.0, 0.2

    # What a test does.

    def assign(self, *, agent: str = "tester", command: str = "echo", **order: Any) -> Lease:
        """Give the agent a task."""
        number = next(self._numbers)
        token = f"token-{number}"
        lease = self.leases[token] = Lease(
            token,
            {
                "__typename": "Assign",
                "token": token,
                "taskId": f"0199f3a0-0000-7000-8000-{number:012d}",
                "attempt": 1,
                "workflow": "test-workflow",
                "runtime": "command",
                "definition": {"command": command},
                "parameters": {},
                "inputs": [],
                "timeout": 0.0,
                "exclusive": False,
                "agent": agent,
                **order,
            },
        )
        self._wake(agent)
        return lease

    def cancel(self, lease: Lease, grace: float = 10.0) -> None:
        """Cancel it, as the real server does: terminal at once, the slot stays taken."""
        lease.state = "cancelled"
        lease.order = {**lease.order, "grace": grace}
        self._wake(lease.order["agent"])

    def order(self, order: dict[str, Any], agent: str = "tester") -> None:
        """Send any other order once."""
        self.agents[agent].extra.append(order)
        self._wake(agent)

    def add_input(self, name: str, data: bytes, **changes: Any) -> dict[str, Any]:
        """An `Input` whose bytes this server holds."""
        path = f"/store/input/{next(self._numbers)}"
        self.files[path] = data
        return {
            "parameter": "picture",
            "name": name,
            "mediaType": "application/octet-stream",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "url": f"{self.url}{path}",
            **changes,
        }

    async def cut(self, code: int = 1012) -> None:
        """Break all connections."""
        for ws in list(self._sockets):
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await ws.close(code)

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait for a condition that what the agent says makes true."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["AgentServer"]:
        """Serve on a free loopback port."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self._app(), log_config=None, lifespan="off", ws="websockets-sansio", ws_max_size=2**21)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield self
        finally:
            await self.cut()
            server.should_exit = True
            server.force_exit = True
            await serving
            listener.close()

    # Transport.

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                WebSocketRoute("/agent/graphql", self._socket),
                Route("/agent/graphql", self._post, methods=["POST"]),
                Route("/store/{path:path}", self._store, methods=["GET", "PUT"]),
            ]
        )

    async def _socket(self, ws: WebSocket) -> None:
        if self.refuse_sockets or self.down:
            await ws.close(1013)
            return
        await ws.accept(subprotocol="graphql-transport-ws")
        self._sockets.add(ws)
        tasks: set[asyncio.Task[None]] = set()
        try:
            init = await ws.receive_json()
            assert init["type"] == "connection_init", init
            if self.forbid or init["payload"] != {"authorization": KEY, "protocol": 1}:
                await ws.close(4403, "Forbidden")
                return
            await ws.send_json({"type": "connection_ack"})
            while True:
                message = await ws.receive_json()
                if message["type"] == "subscribe":
                    tasks.add(asyncio.create_task(self._operation(ws, message)))
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            self._sockets.discard(ws)
            for task in tasks:
                task.cancel()

    async def _operation(self, ws: WebSocket, message: dict[str, Any]) -> None:
        ident, payload = message["id"], message["payload"]
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            if payload["operationName"] == "Orders":
                async for batch in self._orders(payload):
                    await ws.send_json({"id": ident, "type": "next", "payload": {"data": {"orders": batch}}})
                return
            result = await self._execute(payload)
            if result is None:
                return
            if result == "cut":
                await ws.close(1011)
                return
            await ws.send_json({"id": ident, "type": "next", "payload": result})
            await ws.send_json({"id": ident, "type": "complete"})

    async def _post(self, request: Request) -> Response:
        if self.down:
            return PlainTextResponse("down", 503)
        if self.forbid or request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"errors": [{"message": "no", "extensions": {"code": "UNAUTHENTICATED"}}]}, 401)
        payload = orjson.loads(await request.body())
        if payload["operationName"] == "Orders":
            return StreamingResponse(self._sse(payload), media_type="text/event-stream")
        result = await self._execute(payload)
        return Response(orjson.dumps(result), media_type="application/json")

    async def _sse(self, payload: dict[str, Any]) -> AsyncIterator[bytes]:
        yield b":\n\n"
        async for batch in self._orders(payload):
            yield b"event: next\ndata: " + orjson.dumps({"data": {"orders": batch}}) + b"\n\n"

    async def _orders(self, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        errors = validate(SCHEMA, parse(payload["query"]))
        assert not errors, errors
        agent = next(a for a in self.agents.values() if a.session == payload["variables"]["session"])
        told: set[tuple[str, str]] = set()
        while True:
            agent.wake.clear()
            orders = [order for lease in self.leases.values() if (order := order_of(agent.name, lease, told))]
            orders += agent.extra
            agent.extra = []
            if orders:
                yield {"orders": orders}
            await agent.wake.wait()

    async def _store(self, request: Request) -> Response:
        path = request.url.path
        if request.method == "GET":
            return Response(self.files[path]) if path in self.files else PlainTextResponse("no", 404)
        self.puts.append(path)
        if self.put_faults:
            return PlainTextResponse("fault", self.put_faults.pop(0))
        _, _, _, ident, part = path.split("/")
        body = await request.body()
        assert len(body) == int(request.headers["content-length"])
        output = next(o for lease in self.leases.values() for i, o in lease.outputs.items() if i == ident)
        output["uploaded"][int(part)] = body
        return Response()

    # The contract.

    async def _execute(self, payload: dict[str, Any]) -> Any:
        operation = payload["operationName"][0].lower() + payload["operationName"][1:]
        self.calls.append(operation)
        if self.fail[operation]:
            code = self.fail[operation].pop(0)
            return {"errors": [{"message": "a fault on purpose", "extensions": {"code": code}}]}
        result = await graphql(SCHEMA, payload["query"], root_value=self, variable_values=payload["variables"])
        assert not result.errors, result.errors
        async with self._changed:
            self._changed.notify_all()
        if self.lose_answer[operation]:
            self.lose_answer[operation] -= 1
            return None
        if self.cut_after[operation]:
            self.cut_after[operation] -= 1
            return "cut"
        return {"data": result.data}

    def connect(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        self.connects.append(input)
        if self.connect_answer:
            return self.connect_answer
        known = self.agents.get(input["name"])
        if known and known.secret != input.get("agentSecret") and known.instance != input["instanceId"]:
            return {"__typename": "Refused", "code": "FORBIDDEN", "message": "a wrong secret"}
        if known and known.instance != input["instanceId"] and known.sockets:
            return {"__typename": "AgentTaken", "message": "taken", "retryAfter": 0.2}
        first = known is None or known.secret != input.get("agentSecret")
        agent = Agent(
            input["name"], input["instanceId"], next(self._numbers), known.secret if known else "s3cret", input
        )
        if known:
            known.wake.set()
        self.agents[input["name"]] = agent
        mine = {t for t, lease in self.leases.items() if lease.state in ("queued", "running")}
        return {
            "__typename": "Connected",
            "agentId": "0199f3a0-0000-7000-8000-00000000aaaa",
            "session": agent.session,
            "lease": self._lease_seconds,
            "beat": self._beat_seconds,
            "keep": [t for t in input["holding"] if t in mine],
            "drop": [t for t in input["holding"] if t not in mine],
            "agentSecret": agent.secret if first else None,
        }

    def acknowledge(self, info: Any, session: int, tokens: list[str]) -> list[str]:
        return [self._acknowledge_one(self.leases[token]) for token in tokens]

    def _acknowledge_one(self, lease: Lease) -> str:
        if lease.state not in ("queued", "running"):
            return "LEASE_LOST"
        lease.state = "running"
        return "RUNNING"

    def report(self, info: Any, session: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._store_report(r) for r in reports]

    def _store_report(self, report: dict[str, Any]) -> dict[str, Any]:
        lease = self.leases[report["token"]]
        if lease.state != "running":
            return {"status": "LEASE_LOST"}
        if report["number"] <= lease.number:
            return {"status": "DUPLICATE"}
        if report["number"] != lease.number + 1:
            return {"status": "GAP", "expected": lease.number + 1}
        if report["events"] and self.sent_away:
            self.sent_away -= 1
            return {"status": "LATER", "after": 0.2}
        self._take(lease, report)
        return {"status": "ACCEPTED", "seq": len(lease.lines)}

    def _take(self, lease: Lease, report: dict[str, Any]) -> None:
        lease.number = report["number"]
        for event in report["events"]:
            if event["firstLine"] != len(lease.lines) + 1:
                lease.gaps.append(f"line {event['firstLine']} after {len(lease.lines)}")
            size = sum(len(line.encode()) + 1 for line in event["lines"])
            if size > 64 * 1024 or max(len(line.encode()) for line in event["lines"]) > 16 * 1024:
                lease.gaps.append(f"a chunk of {size} bytes")
            lease.lines += [(event["stream"], line) for line in event["lines"]]
        if report.get("progress"):
            lease.progress.append(report["progress"])
        if report.get("preview"):
            assert report["preview"] in lease.outputs
            lease.previews.append(report["preview"])

    def beginOutputs(self, info: Any, session: int, token: str, files: list[dict[str, Any]]) -> dict[str, Any]:
        lease = self.leases[token]
        if lease.state != "running":
            return {"__typename": "Refused", "code": "LEASE_LOST", "message": "over"}
        return {"__typename": "OutputGrants", "grants": [self._grant(lease, file) for file in files]}

    def _grant(self, lease: Lease, file: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_output and self.refuse_output in file["name"]:
            refusal = {"code": "LIMIT_EXCEEDED", "message": "too much"}
            return {"outputId": None, "requests": [], "partSize": self.part_size, "refused": refusal}
        same = [i for i, o in lease.outputs.items() if (o["role"], o["name"]) == (file["role"], file["name"])]
        ident = same[0] if same else f"out{next(self._numbers)}"
        output = lease.outputs.setdefault(ident, {"verified": False, "uploaded": {}, "data": b""})
        output.update(file)
        count = max(1, -(-file["size"] // self.part_size))
        requests = [
            {"method": "PUT", "url": f"{self.url}/store/output/{ident}/{n}", "headers": {"x-signed": "1"}}
            for n in range(count)
        ]
        return {
            "outputId": ident,
            "requests": [] if output["verified"] else requests,
            "partSize": self.part_size,
            "refused": None,
        }

    def completeOutputs(self, info: Any, session: int, token: str, outputIds: list[str]) -> dict[str, Any]:
        return {
            "__typename": "OutputsCompleted",
            "results": [self._verify(self.leases[token].outputs[i]) for i in outputIds],
        }

    def _verify(self, output: dict[str, Any]) -> str:
        uploaded = [output["uploaded"][n] for n in sorted(output["uploaded"])]
        if not uploaded:
            return "MISSING"
        data = b"".join(uploaded)
        hashes = [hashlib.sha256(part).hexdigest() for part in uploaded]
        if hashlib.sha256(data).hexdigest() != output["sha256"] or output["parts"] != (
            hashes if len(hashes) > 1 else []
        ):
            return "MISMATCH"
        output.update(verified=True, data=data)
        return "VERIFIED"

    def finish(self, info: Any, session: int, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._end(result) for result in results]

    def _end(self, result: dict[str, Any]) -> dict[str, Any]:
        lease = self.leases[result["token"]]
        if lease.finish and lease.state in ("completed", "failed"):
            return {"status": "ENDED", "state": lease.state}
        if lease.state != "running":
            return {"status": "LEASE_LOST"}
        if result["number"] != lease.number + 1:
            return {"status": "GAP"}
        self._take(lease, result)
        lease.finish = result
        lease.state = result["outcome"].lower()
        return {"status": "ENDED", "state": lease.state}

    def release(self, info: Any, session: int, tokens: list[str]) -> list[str]:
        answers = []
        for token in tokens:
            lease = self.leases[token]
            alive = lease.state in ("queued", "running")
            lease.released = lease.released or not alive
            answers.append("LEASE_ALIVE" if alive else "RELEASED")
        return answers

    def beat(self, info: Any, session: int, holding: list[str], accepting: bool) -> dict[str, Any]:
        self.beats.append(holding)
        self.accepting = accepting
        return {"drop": [t for t in holding if self.leases[t].state not in ("queued", "running")]}

    def _wake(self, agent: str) -> None:
        if agent in self.agents:
            self.agents[agent].wake.set()


__all__ = ["KEY", "SCHEMA", "Agent", "AgentServer", "Lease"]

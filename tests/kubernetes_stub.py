"""As much of the Kubernetes API as Runyard uses, on a loopback port: it keeps what it is sent and says no when told to.

Jobs and Secrets are kept as they were sent. A Secret that names its Job as owner goes with it, as the cluster's garbage
collection does it.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web

JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
SECRETS = "/api/v1/namespaces/{namespace}/secrets"
PODS = "/api/v1/namespaces/{namespace}/pods"


@dataclass
class Cluster:
    """What it holds, and what was asked of it: (method, path, query, body)."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[str, str] | None = None  # why pods do not run
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # bearer tokens that were shown
    answers: dict[tuple[str, str], int] = field(default_factory=dict)  # (method, kind) -> status instead of an answer
    silent: bool = False
    url: str = ""

    def end(self, name: str, *, kind: str, reason: str, message: str = "") -> None:
        """The Job comes to an end by itself."""
        self.jobs[name]["status"] = {
            "conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]
        }

    def of(self, method: str, kind: str) -> list[tuple[str, dict[str, str], Any]]:
        """(path, query, body) of every request of this kind."""
        return [
            (path, query, body) for asked, path, query, body in self.asked if asked == method and f"/{kind}" in path
        ]


@asynccontextmanager
async def kubernetes_api() -> AsyncIterator[Cluster]:
    """A cluster without anything in it."""
    cluster = Cluster()
    app = web.Application(middlewares=[_recording(cluster)])
    api = _Api(cluster)
    app.add_routes(
        [
            web.post(JOBS, api.create_job),
            web.get(JOBS + "/{name}", api.read_job),
            web.delete(JOBS + "/{name}", api.delete_job),
            web.post(SECRETS, api.create_secret),
            web.put(SECRETS + "/{name}", api.replace_secret),
            web.delete(SECRETS + "/{name}", api.delete_secret),
            web.get(PODS, api.list_pods),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    cluster.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield cluster
    finally:
        await runner.cleanup()


class _Api:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def create_job(self, request: web.Request) -> web.Response:
        return await self._create(request, self._cluster.jobs)

    async def read_job(self, request: web.Request) -> web.Response:
        return self._found(request, self._cluster.jobs)

    async def delete_job(self, request: web.Request) -> web.Response:
        answer = self._found(request, self._cluster.jobs)
        job = self._cluster.jobs.pop(request.match_info["name"], None)
        if job is not None and request.query.get("propagationPolicy") in ("Background", "Foreground"):
            owned = [name for name, each in self._cluster.secrets.items() if _owner(each) == job["metadata"]["uid"]]
            for name in owned:
                del self._cluster.secrets[name]
        return answer

    async def create_secret(self, request: web.Request) -> web.Response:
        return await self._create(request, self._cluster.secrets)

    async def replace_secret(self, request: web.Request) -> web.Response:
        answer = self._found(request, self._cluster.secrets)
        if answer.status == 200:
            self._cluster.secrets[request.match_info["name"]] = _stored(await request.json())
        return answer

    async def delete_secret(self, request: web.Request) -> web.Response:
        answer = self._found(request, self._cluster.secrets)
        self._cluster.secrets.pop(request.match_info["name"], None)
        return answer

    async def list_pods(self, request: web.Request) -> web.Response:
        waiting = self._cluster.waiting
        state = {"waiting": waiting} if waiting else {"running": {}}
        status = {"containerStatuses": [{"name": "agent", "image": "x", "imageID": "", "ready": False,
                                         "restartCount": 0, "state": state}]}  # fmt: skip
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{"status": status}]})

    async def _create(self, request: web.Request, kept: dict[str, dict[str, Any]]) -> web.Response:
        made = _stored(await request.json())
        name = made["metadata"]["name"]
        if name in kept:
            return _status(409, "AlreadyExists")
        made["metadata"] |= {"uid": str(uuid4()), "namespace": request.match_info["namespace"]}
        kept[name] = made
        return web.json_response(made, status=201)

    def _found(self, request: web.Request, kept: dict[str, dict[str, Any]]) -> web.Response:
        found = kept.get(request.match_info["name"])
        return _status(404, "NotFound") if found is None else web.json_response(found)


def _recording(cluster: Cluster) -> Any:
    @web.middleware
    async def record(request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        cluster.asked.append((request.method, request.path, dict(request.query), body))
        cluster.tokens.add(request.headers.get("Authorization", ""))
        if cluster.silent:
            await asyncio.sleep(3600)
        kind = next(kind for kind in ("jobs", "secrets", "pods") if f"/{kind}" in request.path)
        if (status := cluster.answers.get((request.method, kind))) is not None:
            return _status(status, "Refused", str(body))
        answer: web.StreamResponse = await handler(request)
        return answer

    return record


def _stored(sent: dict[str, Any]) -> dict[str, Any]:
    """As the server keeps it: `stringData` becomes `data`."""
    texts = sent.pop("stringData", None)
    if texts is not None:
        sent["data"] = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
    return sent


def _owner(secret: dict[str, Any]) -> str:
    return str(secret["metadata"]["ownerReferences"][0]["uid"])


def _status(code: int, reason: str, message: str = "") -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    return web.json_response(body | {"code": code}, status=code, reason=reason)


# Of a cluster at `url`, for whoever shows this token.
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: us, user: {{token: a-token}}}}]
contexts: [{{name: one, context: {{cluster: here, user: us}}}}]
"""

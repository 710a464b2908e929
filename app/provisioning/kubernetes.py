"""Agents as Jobs of Kubernetes: a Job and a Secret with its key for each launch, in the operator's namespace.

Invariants:
1. Names are made from the launch's id: what was asked for twice is there once, and is found again by any replica.
2. The Secret belongs to the Job (owner reference): whoever deletes the Job, the key goes with it. The Job comes first;
   its container waits for the key.
3. Nothing that people typed becomes a name, and none of it reaches a shell: it stands in arguments and, made to fit, in
   labels. The pod has no account of the cluster and gains no privileges.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException

from app.domain.errors import Unavailable
from app.domain.pool import Alive, Gone, LaunchOrder, LaunchRefused

T = TypeVar("T")

IN_CLUSTER = "in-cluster"
TIMEOUT = 10.0  # seconds that the API server has for an answer
ENDING = 60  # seconds that a pod has to end; its agent finishes what runs as far as it can
KEPT = 300  # seconds after which Kubernetes itself removes a Job that ended and that nobody asked after
CONFLICT, NOT_FOUND, TOO_MANY = 409, 404, 429
TOLD = 300  # characters of the API server's words

LAUNCH = "runyard.dev/launch"

# The library logs every answer, and an answer to a Secret holds the key.
logging.getLogger("kubernetes_asyncio").setLevel(logging.INFO)


class KubernetesProvisioner:
    """Makes and deletes Jobs in `namespace`; `open_kubernetes` makes it."""

    def __init__(self, api: client.ApiClient, namespace: str, *, timeout: float = TIMEOUT) -> None:
        # Typed for its own models alone; what is sent here are plain documents.
        self._jobs: Any = client.BatchV1Api(api)
        self._core: Any = client.CoreV1Api(api)
        self._namespace = namespace
        self._timeout = timeout

    async def start(self, order: LaunchOrder) -> str:
        """Make the Job and its Secret and return the Job's name; where both are there, the Secret gets the new key.

        Raises `LaunchRefused` for what Kubernetes does not take, `Unavailable` where it does not answer.
        """
        job = await self._make_job(order)
        secret = _secret(order, job)
        try:
            await self._ask(self._core.create_namespaced_secret(self._namespace, secret, **self._limits))
        except ApiException as refused:
            if refused.status != CONFLICT:
                raise _refusal(refused) from refused
            await self._told(
                self._core.replace_namespaced_secret(_name(order.launch_id), self._namespace, secret, **self._limits)
            )
        return f"{self._namespace}/{_name(order.launch_id)}"

    async def look(self, launch_id: UUID) -> Alive | Gone:
        """What the Job says of itself, and what its pod waits for; raises `Unavailable`."""
        try:
            job = await self._ask(self._jobs.read_namespaced_job(_name(launch_id), self._namespace, **self._limits))
        except ApiException as refused:
            if refused.status == NOT_FOUND:
                return Gone("its Job is not there: it was deleted, or never made")
            raise _away(refused) from refused
        if (ended := _end_of(job)) is not None:
            return Gone(ended)
        return Alive("" if job.status and job.status.ready else await self._waits_for(launch_id))

    async def stop(self, launch_id: UUID) -> None:
        """Delete the Job with its pod, and the Secret; silent where they are not there. Raises `Unavailable`."""
        name = _name(launch_id)
        deletions = (
            self._jobs.delete_namespaced_job(name, self._namespace, propagation_policy="Background", **self._limits),
            self._core.delete_namespaced_secret(name, self._namespace, **self._limits),
        )
        failed: ApiException | Unavailable | None = None
        for deletion in deletions:
            try:
                await self._ask(deletion)
            except ApiException as refused:
                if refused.status != NOT_FOUND:
                    failed = failed or _away(refused)
            except Unavailable as away:
                failed = failed or away
        if failed is not None:
            raise failed

    def held(self) -> frozenset[UUID]:
        """None: Jobs outlive this process."""
        return frozenset()

    async def close(self) -> None:
        """Nothing: Jobs go on, and another replica looks after them."""

    @property
    def _limits(self) -> dict[str, Any]:
        return {"_request_timeout": self._timeout}

    async def _make_job(self, order: LaunchOrder) -> Any:
        name, made = _name(order.launch_id), _job(order)
        try:
            return await self._ask(self._jobs.create_namespaced_job(self._namespace, made, **self._limits))
        except ApiException as refused:
            if refused.status != CONFLICT:
                raise _refusal(refused) from refused
        found = await self._told(self._jobs.read_namespaced_job(name, self._namespace, **self._limits))
        if (found.metadata.labels or {}).get(LAUNCH) != str(order.launch_id):
            raise LaunchRefused(f"a Job {name} that is not of this launch is there already")
        return found

    async def _waits_for(self, launch_id: UUID) -> str:
        """Why the pod does not run yet; empty where nothing is known, or nothing may be asked."""
        try:
            pods = await self._ask(
                self._core.list_namespaced_pod(
                    self._namespace, label_selector=f"{LAUNCH}={launch_id}", limit=1, **self._limits
                )
            )
        except ApiException:
            return ""
        statuses = [each for pod in pods.items for each in (pod.status and pod.status.container_statuses) or ()]
        waiting = [each.state.waiting for each in statuses if each.state and each.state.waiting]
        return _short(": ".join(part for each in waiting[:1] for part in (each.reason, each.message) if part))

    async def _told(self, answer: Awaitable[T]) -> T:
        """An answer whose refusal ends the launch."""
        try:
            return await self._ask(answer)
        except ApiException as refused:
            raise _refusal(refused) from refused

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout * 1.5):  # a host name that is not resolved is not in its limit
                return await answer
        except (aiohttp.ClientError, OSError, TimeoutError) as away:
            raise Unavailable(f"the Kubernetes API does not answer: {type(away).__name__}") from away
        except ApiException as refused:
            if not refused.status or refused.status >= 500 or refused.status == TOO_MANY:
                raise _away(refused) from refused
            raise


@asynccontextmanager
async def open_kubernetes(where: str, namespace: str) -> AsyncIterator[KubernetesProvisioner]:
    """Jobs in `namespace` of the cluster that `where` names: `in-cluster`, or a path of a kubeconfig.

    Raises `ValueError` where that says nothing of a cluster.
    """
    settings = client.Configuration()
    try:
        if where == IN_CLUSTER:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            path = str(Path(where).expanduser())
            await config.load_kube_config(config_file=path, client_configuration=settings, persist_config=False)
    except (config.ConfigException, OSError) as wrong:
        raise ValueError(f"expected in-cluster, or a kubeconfig that can be read, found {where!r}: {wrong}") from wrong
    async with client.ApiClient(settings) as api:
        yield KubernetesProvisioner(api, namespace)


def label_value(text: str) -> str:
    """`text` as the value of a label: letters, digits and `-_.`, at most 63, a letter or digit at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")[:63].strip("-_.")


def _name(launch_id: UUID) -> str:
    return f"runyard-{launch_id}"


def _labels(order: LaunchOrder) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "runyard-agent",
        "app.kubernetes.io/managed-by": "runyard",
        "runyard.dev/team": str(order.team_id),
        "runyard.dev/pool": label_value(order.pool),
        LAUNCH: str(order.launch_id),
    }


def _job(order: LaunchOrder) -> dict[str, Any]:
    labels = _labels(order)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": _name(order.launch_id), "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEPT,
            "template": {"metadata": {"labels": labels}, "spec": _pod(order)},
        },
    }


def _pod(order: LaunchOrder) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ENDING,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(order)],
        "volumes": [{"name": "state", "emptyDir": {}}],
    }
    if selector := order.settings.get("nodeSelector"):
        spec["nodeSelector"] = dict(selector)
    return spec


def _container(order: LaunchOrder) -> dict[str, Any]:
    arguments = [
        "run",
        f"--url={order.url}",
        f"--name={order.agent_name}",
        f"--slots={order.slots}",
        f"--labels={','.join(order.labels)}",
        "--state-dir=/var/lib/runyard-agent",
        "--log-format=json",
    ]
    if path := order.settings.get("config"):
        arguments.append(f"--config={path}")
    key = {"secretKeyRef": {"name": _name(order.launch_id), "key": "key"}}
    return {
        "name": "agent",
        "image": order.settings["image"],
        "command": ["runyard-agent"],
        # Kubernetes fills in $(NAME) in arguments: two dollars are one.
        "args": [each.replace("$", "$$") for each in arguments],
        "env": [{"name": "RUNYARD_AGENT_KEY", "valueFrom": key}],
        "resources": _resources(order.settings),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/runyard-agent"}],
    }


def _resources(settings: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: settings[name] for name in ("cpu", "memory") if name in settings}
    limits = {name: value for name, value in asked.items() if name == "memory"}
    if "gpus" in settings:
        limits["nvidia.com/gpu"] = str(settings["gpus"])
    return {kind: values for kind, values in (("requests", asked), ("limits", limits)) if values}


def _secret(order: LaunchOrder, job: Any) -> dict[str, Any]:
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "blockOwnerDeletion": False,
        "controller": False,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": _name(order.launch_id), "labels": _labels(order), "ownerReferences": [owner]},
        "stringData": {"key": order.key},
    }


def _end_of(job: Any) -> str | None:
    """Why the Job is over; None while it is not."""
    conditions = (job.status and job.status.conditions) or ()
    for each in conditions:
        if each.status == "True" and each.type in ("Failed", "Complete"):
            told = ": ".join(part for part in (each.reason, each.message) if part)
            how = "failed" if each.type == "Failed" else "ended by itself"
            return _short(f"its Job {how}" + (f": {told}" if told else ""))
    return None


def _refusal(refused: ApiException) -> LaunchRefused:
    return LaunchRefused(_short(f"Kubernetes refused it: {_words(refused)}"))


def _away(refused: ApiException) -> Unavailable:
    return Unavailable(_short(f"the Kubernetes API answered {_words(refused)}"))


def _words(refused: ApiException) -> str:
    """Status and reason; the body is not told, since it may repeat what was sent."""
    return f"{refused.status} {refused.reason or ''}".strip()


def _short(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:TOLD]

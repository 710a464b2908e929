"""What the Kubernetes API is sent, word by word, and what becomes of each of its refusals."""

import base64
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes_asyncio import client

from app import settings
from app.domain.errors import Unavailable
from app.domain.pool import Alive, Gone, LaunchRefused
from app.provisioning.kubernetes import KubernetesProvisioner, label_value, open_kubernetes
from app.wiring import open_app
from app.wiring.resources import CannotOpen
from tests.conformance.test_provisioner import KEY, an_order
from tests.kubernetes_stub import KUBECONFIG, Cluster, kubernetes_api

ORDER = an_order(
    {
        "image": "registry.example/agent:1",
        "config": "/etc/agent.toml",
        "cpu": "2",
        "memory": "4Gi",
        "gpus": 1,
        "nodeSelector": {"disk": "fast"},
    }
)
NAME = f"runyard-{ORDER.launch_id}"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with kubernetes_api() as opened:
        yield opened


@pytest.fixture
async def provisioner(cluster: Cluster) -> AsyncIterator[KubernetesProvisioner]:
    async with client.ApiClient(client.Configuration(host=cluster.url)) as api:
        yield KubernetesProvisioner(api, "agents", timeout=30)


async def test_a_launch_is_one_job_that_runs_the_agent_once(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(ORDER)

    ((path, _, job),) = cluster.of("POST", "jobs")
    labels = {
        "app.kubernetes.io/name": "runyard-agent",
        "app.kubernetes.io/managed-by": "runyard",
        "runyard.dev/team": str(ORDER.team_id),
        "runyard.dev/pool": "Farm-1",
        "runyard.dev/launch": str(ORDER.launch_id),
    }
    assert path == "/apis/batch/v1/namespaces/agents/jobs"
    assert job["metadata"] == {"name": NAME, "labels": labels}
    assert (job["spec"]["backoffLimit"], job["spec"]["template"]["metadata"]["labels"]) == (0, labels)
    pod = job["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"]) == ("Never", False)
    assert pod["nodeSelector"] == {"disk": "fast"}
    (container,) = pod["containers"]
    assert (container["image"], container["command"]) == ("registry.example/agent:1", ["runyard-agent"])
    assert container["args"] == [
        "run",
        "--url=http://127.0.0.1:9",
        "--name=Farm 1-00000001",
        "--slots=2",
        "--labels=gpu,os:linux",
        "--state-dir=/var/lib/runyard-agent",
        "--log-format=json",
        "--config=/etc/agent.toml",
    ]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi"},
        "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"},
    }
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


async def test_the_key_is_in_a_secret_of_the_job_and_nowhere_else(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(ORDER)

    (secret,) = cluster.secrets.values()
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": NAME, "uid": cluster.jobs[NAME]["metadata"]["uid"]}
    assert secret["metadata"]["ownerReferences"] == [owner | {"blockOwnerDeletion": False, "controller": False}]
    assert secret["data"] == {"key": base64.b64encode(KEY.encode()).decode()}
    (container,) = cluster.jobs[NAME]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [
        {"name": "RUNYARD_AGENT_KEY", "valueFrom": {"secretKeyRef": {"name": NAME, "key": "key"}}}
    ]
    assert KEY not in str(cluster.jobs)


async def test_the_key_is_in_no_log_however_much_is_logged(
    cluster: Cluster, provisioner: KubernetesProvisioner, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await provisioner.start(ORDER)
        cluster.answers["PUT", "secrets"] = 422
        with pytest.raises(LaunchRefused) as refused:
            await provisioner.start(ORDER)

    told = caplog.text + str(refused.value)
    assert KEY not in told
    assert base64.b64encode(KEY.encode()).decode() not in told


async def test_another_key_for_the_same_launch_replaces_the_first(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(ORDER)

    await provisioner.start(replace(ORDER, key="ak-another"))

    assert len(cluster.jobs) == len(cluster.secrets) == 1
    assert cluster.secrets[NAME]["data"] == {"key": base64.b64encode(b"ak-another").decode()}


async def test_stopping_deletes_the_job_with_its_pods_and_the_secret(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(ORDER)

    await provisioner.stop(ORDER.launch_id)

    ((_, query, _),) = cluster.of("DELETE", "jobs")
    assert query == {"propagationPolicy": "Background"}
    assert len(cluster.of("DELETE", "secrets")) == 1
    assert (cluster.jobs, cluster.secrets) == ({}, {})


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_refusal_is_for_good_and_says_what_was_answered(
    cluster: Cluster, provisioner: KubernetesProvisioner, status: int
) -> None:
    cluster.answers["POST", "jobs"] = status

    with pytest.raises(LaunchRefused, match=f"Kubernetes refused it: {status} Refused"):
        await provisioner.start(ORDER)

    assert cluster.secrets == {}


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_fault_of_the_api_is_no_verdict(
    cluster: Cluster, provisioner: KubernetesProvisioner, status: int
) -> None:
    for request in (("POST", "jobs"), ("GET", "jobs"), ("DELETE", "jobs")):
        cluster.answers[request] = status

    for ask in (provisioner.start(ORDER), provisioner.look(ORDER.launch_id), provisioner.stop(ORDER.launch_id)):
        with pytest.raises(Unavailable, match=f"the Kubernetes API answered {status} Refused"):
            await ask


async def test_a_job_that_cannot_be_deleted_keeps_no_key(cluster: Cluster, provisioner: KubernetesProvisioner) -> None:
    await provisioner.start(ORDER)
    cluster.answers["DELETE", "jobs"] = 500

    with pytest.raises(Unavailable):
        await provisioner.stop(ORDER.launch_id)

    assert cluster.secrets == {}


async def test_an_api_that_says_nothing_is_given_up_in_time(cluster: Cluster) -> None:
    cluster.silent = True
    async with client.ApiClient(client.Configuration(host=cluster.url)) as api:
        hasty = KubernetesProvisioner(api, "agents", timeout=0.2)

        for ask in (hasty.start(ORDER), hasty.look(ORDER.launch_id), hasty.stop(ORDER.launch_id)):
            with pytest.raises(Unavailable, match="the Kubernetes API does not answer"):
                await ask


async def test_an_api_that_is_not_there_is_no_verdict() -> None:
    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:9")) as api:
        with pytest.raises(Unavailable, match="the Kubernetes API does not answer"):
            await KubernetesProvisioner(api, "agents").look(ORDER.launch_id)


async def test_a_pod_that_does_not_come_says_what_it_waits_for(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(ORDER)
    cluster.waiting = {"reason": "ImagePullBackOff", "message": "no such image\x1b[31m"}

    waits = await provisioner.look(ORDER.launch_id)
    cluster.answers["GET", "pods"] = 403
    unknown = await provisioner.look(ORDER.launch_id)

    assert waits == Alive("ImagePullBackOff: no such image [31m")
    assert unknown == Alive("")


async def test_a_job_that_ended_says_how(cluster: Cluster, provisioner: KubernetesProvisioner) -> None:
    await provisioner.start(ORDER)
    cluster.end(NAME, kind="Complete", reason="CompletionsReached")

    assert await provisioner.look(ORDER.launch_id) == Gone("its Job ended by itself: CompletionsReached")


async def test_hostile_names_reach_neither_names_nor_labels_nor_substitutions(
    cluster: Cluster, provisioner: KubernetesProvisioner
) -> None:
    await provisioner.start(replace(ORDER, pool="../$(id)\n;rm -rf /", agent_name="$(RUNYARD_AGENT_KEY)-1"))

    ((_, _, job),) = cluster.of("POST", "jobs")
    assert job["metadata"]["name"] == NAME
    assert job["metadata"]["labels"]["runyard.dev/pool"] == "id-rm--rf"
    assert "--name=$$(RUNYARD_AGENT_KEY)-1" in job["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gpu", "gpu"),
        ("os:linux", "os-linux"),
        ("--", ""),
        ("ä" * 3, ""),
        ("a" * 80, "a" * 63),
        ("x" * 62 + "..y", "x" * 62),
    ],
)
def test_any_text_becomes_a_label_that_kubernetes_takes(text: str, value: str) -> None:
    assert label_value(text) == value


async def test_a_kubeconfig_names_the_cluster_and_proves_who_asks(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG.format(url=cluster.url))

    async with open_kubernetes(str(file), "agents") as provisioner:
        reference = await provisioner.start(ORDER)

    assert reference == f"agents/{NAME}"
    assert cluster.tokens == {"Bearer a-token"}


async def test_a_server_with_a_place_that_says_nothing_of_a_cluster_does_not_start(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    chosen = settings.load(
        {"database_url": database_url, "redis_url": redis_url, "data_dir": tmp_path, "kubernetes": "/nowhere"}
    )

    with pytest.raises(CannotOpen, match="kubernetes: expected in-cluster, or a kubeconfig"):
        async with open_app(chosen):
            pass


@pytest.mark.parametrize("where", ["in-cluster", "/nowhere/kubeconfig"])
async def test_a_place_that_says_nothing_of_a_cluster_is_refused_at_the_start(where: str) -> None:
    with pytest.raises(ValueError, match="expected in-cluster, or a kubeconfig that can be read"):
        async with open_kubernetes(where, "agents"):
            pass

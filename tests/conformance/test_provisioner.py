"""What every provisioner promises, tried on processes of this machine and on a stub of the Kubernetes API."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from kubernetes_asyncio import client

from app.domain.pool import Alive, Gone, LaunchOrder, LaunchRefused
from app.provisioning.kubernetes import KubernetesProvisioner
from app.provisioning.local import LocalProvisioner
from app.services.ports import Provisioner
from tests.kubernetes_stub import kubernetes_api
from tests.waiting import until

KEY = "ak-" + "k" * 59
WITHIN = 60.0  # seconds; a process of Python on a busy machine


@dataclass(frozen=True, kw_only=True)
class Site:
    """A provisioner, what it cannot start, how a launch is ended from outside, and whether anything of it is left."""

    provisioner: Provisioner
    order: LaunchOrder
    impossible: LaunchOrder
    kill: Callable[[UUID], Awaitable[None]]
    left: Callable[[], list[str]]


def an_order(settings: Mapping[str, Any]) -> LaunchOrder:
    return LaunchOrder(
        launch_id=uuid4(),
        team_id=uuid4(),
        pool="Farm 1",
        agent_name="Farm 1-00000001",
        labels=("gpu", "os:linux"),
        slots=2,
        url="http://127.0.0.1:9",  # nobody answers: the agent tries again and again
        settings=settings,
        key=KEY,
    )


@asynccontextmanager
async def local_site(folder: Path) -> AsyncIterator[Site]:
    root, configs = folder / "agents", folder / "pools"
    configs.mkdir()
    (configs / "render.toml").write_text("")
    provisioner = LocalProvisioner(root, configs, os.environ, grace=WITHIN)

    async def kill(launch_id: UUID) -> None:
        os.kill(int(await provisioner.start(replace(order, launch_id=launch_id))), 9)

    def left() -> list[str]:
        return [str(path) for own in root.iterdir() for path in own.iterdir()] if root.exists() else []

    order = an_order({"config": "render"})
    try:
        yield Site(
            provisioner=provisioner,
            order=order,
            impossible=replace(order, launch_id=uuid4(), settings={"config": "missing"}),
            kill=kill,
            left=left,
        )
    finally:
        await provisioner.close()


@asynccontextmanager
async def kubernetes_site() -> AsyncIterator[Site]:
    async with kubernetes_api() as cluster, client.ApiClient(client.Configuration(host=cluster.url)) as api:
        provisioner = KubernetesProvisioner(api, "agents", timeout=WITHIN)
        order = an_order({"image": "registry.example/agent:1"})
        impossible = replace(order, launch_id=uuid4())
        cluster.jobs[f"runyard-{impossible.launch_id}"] = {"metadata": {"name": "x", "uid": "foreign"}}

        async def kill(launch_id: UUID) -> None:
            cluster.end(f"runyard-{launch_id}", kind="Failed", reason="BackoffLimitExceeded")

        def left() -> list[str]:
            foreign = f"runyard-{impossible.launch_id}"
            return [name for name in (*cluster.jobs, *cluster.secrets) if name != foreign]

        yield Site(provisioner=provisioner, order=order, impossible=impossible, kill=kill, left=left)


@pytest.fixture(params=["local", "kubernetes"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with local_site(tmp_path) if request.param == "local" else kubernetes_site() as opened:
        yield opened


async def test_what_was_started_is_there_until_it_is_stopped(site: Site) -> None:
    reference = await site.provisioner.start(site.order)
    there = await site.provisioner.look(site.order.launch_id)

    await site.provisioner.stop(site.order.launch_id)

    assert reference
    assert isinstance(there, Alive)
    assert isinstance(await site.provisioner.look(site.order.launch_id), Gone)
    assert site.left() == []


async def test_what_was_started_twice_is_there_once(site: Site) -> None:
    first = await site.provisioner.start(site.order)

    assert await site.provisioner.start(site.order) == first

    await site.provisioner.stop(site.order.launch_id)
    assert site.left() == []


async def test_what_came_to_an_end_by_itself_says_how(site: Site) -> None:
    await site.provisioner.start(site.order)

    await site.kill(site.order.launch_id)

    await until(lambda: _is_gone(site), within=WITHIN, what="the launch to be gone")
    gone = await site.provisioner.look(site.order.launch_id)
    assert isinstance(gone, Gone)
    assert gone.counts
    assert gone.error in ("its process was ended by signal 9", "its Job failed: BackoffLimitExceeded")
    await site.provisioner.stop(site.order.launch_id)
    assert site.left() == []


async def test_what_cannot_be_started_is_refused_and_leaves_nothing(site: Site) -> None:
    with pytest.raises(LaunchRefused) as refused:
        await site.provisioner.start(site.impossible)

    assert KEY not in str(refused.value)
    assert site.left() == []


async def test_stopping_what_is_not_there_is_silent(site: Site) -> None:
    await site.provisioner.stop(uuid4())
    await site.provisioner.start(site.order)
    await asyncio.gather(*(site.provisioner.stop(site.order.launch_id) for _ in range(2)))

    await site.provisioner.stop(site.order.launch_id)

    assert site.left() == []


async def test_what_is_unknown_is_gone(site: Site) -> None:
    assert isinstance(await site.provisioner.look(uuid4()), Gone)


async def test_what_ends_with_this_process_is_known_and_ends_with_the_provisioner(site: Site) -> None:
    await site.provisioner.start(site.order)
    held = site.provisioner.held()

    await site.provisioner.close()

    assert held in (frozenset({site.order.launch_id}), frozenset())
    assert site.provisioner.held() == frozenset()
    assert bool(site.left()) == (not held)


async def _is_gone(site: Site) -> bool:
    return isinstance(await site.provisioner.look(site.order.launch_id), Gone)

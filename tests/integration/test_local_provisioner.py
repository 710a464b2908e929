"""Agents as processes: what they are given, what they are not, and what a killed server leaves to the next one."""

import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from app import children
from app.domain.pool import Gone, LaunchRefused
from app.provisioning.local import LocalProvisioner
from tests.conformance.test_provisioner import KEY, WITHIN, an_order
from tests.waiting import until

ORDER = an_order({"config": "render"})


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "render.toml").write_text("")
    return tmp_path


@pytest.fixture
async def provisioner(folder: Path) -> AsyncIterator[LocalProvisioner]:
    environ = {**os.environ, "RUNYARD_SECRET_KEY": "s" * 32, "AWS_SECRET_ACCESS_KEY": "t", "LC_ALL": "C.UTF-8"}
    opened = LocalProvisioner(folder / "agents", folder / "pools", environ, grace=WITHIN)
    yield opened
    await opened.close()


def place_of(folder: Path) -> Path:
    (own,) = (folder / "agents").iterdir()
    (place,) = own.iterdir()
    return place


async def test_the_key_is_a_file_that_only_this_user_may_read(provisioner: LocalProvisioner, folder: Path) -> None:
    pid = int(await provisioner.start(ORDER))

    key = place_of(folder) / "key"
    process = psutil.Process(pid)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(place_of(folder).stat().st_mode) == 0o700
    assert key.read_text() == KEY
    assert KEY not in " ".join(process.cmdline())
    assert KEY not in process.environ().values()


async def test_a_child_is_given_none_of_the_servers_secrets(provisioner: LocalProvisioner) -> None:
    process = psutil.Process(int(await provisioner.start(ORDER)))

    given = process.environ()

    assert given["LC_ALL"] == "C.UTF-8"
    assert [name for name in given if name.startswith(("RUNYARD", "AWS"))] == []


async def test_names_are_arguments_and_never_options_or_commands(provisioner: LocalProvisioner, folder: Path) -> None:
    hostile = replace(ORDER, agent_name="--config=/etc/passwd; touch pwned $(touch pwned)", pool="../../up")

    process = psutil.Process(int(await provisioner.start(hostile)))

    assert f"--name={hostile.agent_name}" in process.cmdline()
    assert place_of(folder).name == str(ORDER.launch_id)
    assert list(folder.rglob("pwned")) == []


async def test_a_configuration_that_the_operator_has_not_put_there_is_refused(provisioner: LocalProvisioner) -> None:
    with pytest.raises(LaunchRefused, match=r"expected the agents' configuration as pools/missing.toml"):
        await provisioner.start(replace(ORDER, settings={"config": "missing"}))

    assert provisioner.held() == frozenset()


async def test_an_agent_that_ends_by_itself_is_gone_with_its_last_words(
    provisioner: LocalProvisioner, folder: Path
) -> None:
    (folder / "pools" / "render.toml").write_text(f'"{KEY}" = 1\n')
    await provisioner.start(ORDER)

    async def is_gone() -> bool:
        return isinstance(await provisioner.look(ORDER.launch_id), Gone)

    await until(is_gone, within=WITHIN, what="the agent to end")
    gone = await provisioner.look(ORDER.launch_id)

    assert isinstance(gone, Gone)
    assert gone.error.startswith("its process ended with exit code 2: runyard-agent: (a key): expected one of ")
    assert KEY not in gone.error


async def test_what_another_server_started_is_gone_and_is_no_fault_of_the_pool(provisioner: LocalProvisioner) -> None:
    assert await provisioner.look(ORDER.launch_id) == Gone("the server that started it is gone", counts=False)


async def test_a_killed_server_leaves_no_process_and_the_next_one_removes_its_files(folder: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    left = place_of(folder)
    living = LocalProvisioner(folder / "agents", folder / "pools", os.environ, grace=WITHIN)
    await living.start(replace(ORDER, launch_id=an_order({}).launch_id))
    beside = left.exists()

    server.kill()
    server.wait()
    server.stdout.close()
    await until(lambda: not children.exists(pid), within=WITHIN, what="the agent to end with its server")
    after = LocalProvisioner(folder / "agents", folder / "pools", os.environ, grace=WITHIN)
    await after.start(ORDER)
    held = [path for own in (folder / "agents").iterdir() for path in own.iterdir()]

    assert beside, "a living server's files are left alone"
    assert not left.exists()
    assert len(held) == 2
    await living.close()
    await after.close()
    assert list((folder / "agents").iterdir()) == []


_SERVER = """
import asyncio, os, sys
from pathlib import Path
from app.provisioning.local import LocalProvisioner
from tests.integration.test_local_provisioner import ORDER

async def main():
    folder = Path(sys.argv[1])
    print(await LocalProvisioner(folder / "agents", folder / "pools", os.environ).start(ORDER), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

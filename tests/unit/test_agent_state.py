"""What an agent remembers on disk, and that it never ends a process that is not its own."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from app import children
from app.agent.errors import ConfigError
from app.agent.state import MARK, State, birth, remove

URL = "http://server"


@pytest.fixture
async def sleeper() -> AsyncIterator[children.Child]:
    """A process that has nothing to do with any agent."""
    child = await children.start(["/bin/sleep", "60"], env={})
    yield child
    await child.stop(0)


def _open(root: Path) -> State:
    return State.open(root, URL, "box")


def _remembered(root: Path) -> Path:
    (file,) = root.glob("*/state.json")
    return file


def test_secret_survives_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    state = _open(tmp_path)
    state.remember("s3cret")
    state.close()

    again = _open(tmp_path)

    assert again.secret == "s3cret"
    assert stat.S_IMODE(_remembered(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(_remembered(tmp_path).parent.stat().st_mode) == 0o700
    again.close()


def test_each_server_has_its_own_secret_and_an_unknown_one_gets_the_newest(tmp_path: Path) -> None:
    for url, secret in (("http://a", "for a"), ("http://b", "for b")):
        state = State.open(tmp_path, url, "box")
        state.remember(secret)
        state.close()

    secrets = []
    for url in ("http://a", "http://b", "http://moved"):
        state = State.open(tmp_path, url, "box")
        secrets.append(state.secret)
        state.close()

    assert secrets == ["for a", "for b", "for b"]


def test_directory_has_one_holder_at_a_time(tmp_path: Path) -> None:
    state = _open(tmp_path)

    with pytest.raises(ConfigError, match="found another agent 'box' running"):
        _open(tmp_path)

    state.close()
    _open(tmp_path).close()


async def test_reused_process_id_is_never_ended(tmp_path: Path, sleeper: children.Child) -> None:
    state = _open(tmp_path)
    directory = state.new_directory("task")
    state.started(directory, sleeper.pid)
    content = orjson.loads(_remembered(tmp_path).read_bytes())
    content["groups"][directory.name]["born"] = "another moment"
    _remembered(tmp_path).write_bytes(orjson.dumps(content))
    state.close()

    again = _open(tmp_path)
    killed = again.clear_leftovers()

    assert killed == 0
    assert children.exists(sleeper.pid)
    assert not directory.exists()
    again.close()


async def test_leftover_is_ended_by_id_and_moment_or_by_its_directory(tmp_path: Path) -> None:
    state = _open(tmp_path)
    known, marked = state.new_directory("known"), state.new_directory("marked")
    leader = await children.start(["/bin/sleep", "60"], env={})
    member = await children.start(["/bin/sleep", "60"], env={MARK: str(marked / "outputs")})
    state.started(known, leader.pid)
    state.started(marked, 2**22 + 1)  # no such process
    state.close()

    again = _open(tmp_path)
    killed = again.clear_leftovers()

    assert killed == 2
    assert (await leader.wait(), await member.wait()) == (-9, -9)
    assert list(again.work.iterdir()) == []
    again.close()


async def test_birth_tells_processes_apart(sleeper: children.Child) -> None:
    other = await children.start(["/bin/sleep", "60"], env={})

    assert birth(sleeper.pid) == birth(sleeper.pid) is not None
    await other.stop(0)
    assert birth(other.pid) is None


def test_removal_follows_no_link_and_takes_what_is_locked(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    directory = tmp_path / "work"
    (directory / "locked").mkdir(parents=True)
    (directory / "locked" / "file").touch()
    (directory / "link").symlink_to(outside)
    (directory / "locked").chmod(0o000)

    remove(directory)

    assert not directory.exists()
    assert (outside / "kept").read_text() == "kept"


def test_broken_state_file_is_named(tmp_path: Path) -> None:
    state = _open(tmp_path)
    state.remember("x")
    state.close()
    _remembered(tmp_path).write_text("{")

    with pytest.raises(ConfigError, match=r"state_dir: expected a readable .*state\.json"):
        _open(tmp_path)

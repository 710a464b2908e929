"""Child processes end with us, however we end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app import children
from tests.waiting import until

# A parent that starts one child, which starts one of its own, tells their ids, and then waits to be killed.
PARENT = """
import asyncio, json, sys
from app import children

CHILD = "import subprocess, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"

async def main():
    child = await children.start([sys.executable, "-c", CHILD], stdout=children.PIPE, guarded=True)
    grandchild = int(await child.stdout.readline())
    print(json.dumps([child.pid, grandchild]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


async def test_exit_code_is_told() -> None:
    child = await children.start(python("raise SystemExit(7)"))

    assert await child.wait() == 7
    assert child.returncode == 7
    assert await child.stop(grace=5) == 7


async def test_outputs_are_read_as_streams() -> None:
    child = await children.start(
        python("import sys; print('out'); print('err', file=sys.stderr)"),
        stdout=children.PIPE,
        stderr=children.PIPE,
    )

    assert child.stdout is not None
    assert child.stderr is not None
    assert await child.stdout.read() == b"out\n"
    assert await child.stderr.read() == b"err\n"
    assert await child.wait() == 0


async def test_missing_program_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await children.start(["no-such-program"])


async def test_child_has_no_input_and_only_the_given_environment() -> None:
    child = await children.start(
        python("import os, sys; print(sorted(k for k in os.environ if k != 'LC_CTYPE'), sys.stdin.read())"),
        env={"ONE": "1"},
        stdout=children.PIPE,
    )

    assert child.stdout is not None
    assert await child.stdout.read() == b"['ONE'] \n"


async def test_stop_asks_first() -> None:
    child = await children.start(
        python(
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
            "print('ready', flush=True)\n"
            "time.sleep(600)"
        ),
        stdout=children.PIPE,
    )
    assert child.stdout is not None
    await child.stdout.readline()

    assert await child.stop(grace=10) == 3


async def test_stop_kills_what_does_not_listen_after_the_grace() -> None:
    child = await children.start(
        python(
            "import signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('ready', flush=True)\n"
            "time.sleep(600)"
        ),
        stdout=children.PIPE,
    )
    assert child.stdout is not None
    await child.stdout.readline()

    started = asyncio.get_running_loop().time()
    code = await child.stop(grace=0.3)

    assert code == -signal.SIGKILL
    assert asyncio.get_running_loop().time() - started >= 0.3


async def test_stop_ends_the_whole_group() -> None:
    child = await children.start(
        ["/bin/sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait; sleep 600"], stdout=children.PIPE
    )
    assert child.stdout is not None
    grandchild = int(await child.stdout.readline())

    await child.stop(grace=0.2)

    await until(lambda: not children.exists(grandchild), what="grandchild gone")


async def test_member_that_outlives_its_leader_has_the_rest_of_the_grace(tmp_path: Path) -> None:
    farewell = tmp_path / "farewell"
    worker = (
        "import pathlib, signal, sys, time\n"
        f"def leave(*_): time.sleep(0.3); pathlib.Path({str(farewell)!r}).write_text('done'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave); print('ready', flush=True); time.sleep(600)"
    )
    child = await children.start(["/bin/sh", "-c", '"$0" -c "$1" & wait', sys.executable, worker], stdout=children.PIPE)
    assert child.stdout is not None
    await child.stdout.readline()

    await child.stop(grace=10)

    assert farewell.read_text() == "done"


async def test_what_is_left_of_a_group_ends_with_its_leader() -> None:
    child = await children.start(["/bin/sh", "-c", "sleep 600 & echo $!"], stdout=children.PIPE)
    assert child.stdout is not None
    grandchild = int(await child.stdout.readline())

    assert await child.wait() == 0
    await until(lambda: not children.exists(grandchild), what="grandchild gone")


async def test_cancelled_stop_kills_at_once() -> None:
    child = await children.start(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done"], stdout=children.PIPE
    )
    assert child.stdout is not None
    await child.stdout.readline()

    stopping = asyncio.create_task(child.stop(grace=600))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert await child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_killed_parent_leaves_nothing(how: signal.Signals) -> None:
    with subprocess.Popen(python(PARENT), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = json.loads(await asyncio.to_thread(parent.stdout.readline))
        assert all(children.exists(pid) for pid in pids)

        parent.send_signal(how)
        parent.wait()

    await until(lambda: not any(children.exists(pid) for pid in pids), what="child and grandchild gone")


async def test_a_program_run_with_its_parent_ends_with_it() -> None:
    parent = (
        "import subprocess, sys\n"
        "shell = ['/bin/sh', '-c', 'echo $$; exec sleep 600']\n"
        "subprocess.run([sys.executable, '-m', 'app.children', *shell])"
    )
    with subprocess.Popen(python(parent), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))

        process.kill()
        process.wait()

    await until(lambda: not children.exists(pid), what="program gone")


async def test_guarded_group_needs_no_keeper_once_it_has_ended() -> None:
    child = await children.start(["/bin/sh", "-c", "exit 4"], guarded=True)

    assert await child.wait() == 4
    assert child.keeper_pid is not None
    assert not children.exists(child.keeper_pid)


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
async def test_death_signal_holds_after_a_change_of_user() -> None:
    source = (
        PARENT.replace("guarded=True", "user=children.User(65534, 65534)")
        .replace("p = subprocess.Popen(['sleep', '600']); print(p.pid", "print(__import__('os').getuid()")
        .replace("sys.executable", "'/usr/bin/python3'")  # ours may lie where that user cannot look
    )
    with subprocess.Popen(python(source), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid, uid = json.loads(await asyncio.to_thread(parent.stdout.readline))
        assert uid == 65534

        parent.kill()
        parent.wait()

    await until(lambda: not children.exists(pid), what="child of another user gone")


async def test_children_start_from_the_main_thread_only() -> None:
    refusals: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(children.start(["true"]))
        except RuntimeError as refusal:
            refusals.append(refusal)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)

    assert "main thread" in str(refusals[0])

"""The real agent process against a server that speaks the contract: one task, its log, its files, its end."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.agent_process import ROOT, agent_process
from tests.agent_server import AgentServer

EVENTS = "import json, os; events = os.fdopen(int(os.environ['RUNYARD_EVENTS_FD']), 'w', buffering=1)\n"


async def test_task_runs_from_order_to_finish(tmp_path: Path) -> None:
    program = "import sys; print('hello'); print('again'); sys.stdout.flush(); print('careful', file=sys.stderr)"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program) as agent:
        await server.until(lambda: "tester" in server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert [line for line in lease.lines if line[0] == "STDOUT"] == [("STDOUT", "hello"), ("STDOUT", "again")]
        assert [line for line in lease.lines if line[0] == "STDERR"] == [("STDERR", "careful")]
        assert lease.system == ["attempt 1 of test-workflow starts on tester"]
        assert lease.gaps == []
        assert agent.work == []
        assert server.calls[0] == "connect"
        assert server.calls.index("acknowledge") < server.calls.index("finish")


async def test_parameters_and_inputs_arrive_as_files(tmp_path: Path) -> None:
    program = "import json, os; print(json.dumps(json.load(open(os.environ['RUNYARD_PARAMETERS']))))"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)
        picture = server.add_input("../../etc/pass\x1bwd", b"picture bytes")

        lease = server.assign(parameters={"steps": 3, "picture": "0199"}, inputs=[picture])
        await server.until(lambda: lease.finish)

        (line,) = lease.log
        parameters = json.loads(line)
        assert parameters["steps"] == 3
        path = Path(parameters["picture"])
        assert (path.name, path.parent.name, path.parents[1].name) == ("pass_wd", "picture", "inputs")
        assert path.is_relative_to(tmp_path / "state")


async def test_input_that_is_not_what_was_promised_fails_the_task(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print('never')"):
        await server.until(lambda: server.agents)
        wrong = server.add_input("data.bin", b"other bytes", sha256="0" * 64)

        lease = server.assign(inputs=[wrong])
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "agent_error"
        assert "expected SHA-256 0000" in lease.finish["error"]["message"]
        assert lease.log == []


async def test_every_file_left_in_outputs_is_uploaded(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; out = pathlib.Path(os.environ['RUNYARD_OUTPUTS']); (out / 'deep').mkdir()\n"
        "(out / 'deep' / 'a.txt').write_bytes(b'a'); (out / 'big.bin').write_bytes(bytes(range(256)) * 1000)\n"
        "(out / 'empty').touch()\n"
        "os.symlink('/etc/passwd', out / 'link'); os.symlink('/etc', out / 'folder'); os.mkfifo(out / 'pipe')\n"
        "open(os.fsencode(out) + b'/odd\\xff\\x1b[31m', 'w').write('odd')\n"
    )
    async with AgentServer(part_size=100_000).running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.files == {
            "deep/a.txt": b"a",
            "big.bin": bytes(range(256)) * 1000,
            "empty": b"",
            "odd?_[31m": b"odd",
        }
        big = next(o for o in lease.outputs.values() if o["name"] == "big.bin")
        assert len(big["uploaded"]) == 3
        assert big["parts"] == [hashlib.sha256(big["uploaded"][n]).hexdigest() for n in range(3)]
        refused = sorted(line for line in lease.system if "not uploaded" in line or "regular file" in line)
        assert len(refused) == 3


async def test_store_that_fails_for_a_while_is_tried_again(tmp_path: Path) -> None:
    program = "import os; open(os.environ['RUNYARD_OUTPUTS'] + '/a', 'w').write('content')"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)
        server.put_faults = [503, 403]

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.files == {"a": b"content"}
        assert len(server.puts) == 3


async def test_output_that_the_server_refuses_fails_the_task(tmp_path: Path) -> None:
    program = "import os; [open(os.environ['RUNYARD_OUTPUTS'] + f'/{n}', 'w').write(n) for n in ('good', 'forbidden')]"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)
        server.refuse_output = "forbidden"

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "output_refused"
        assert lease.files == {"good": b"good"}


async def test_failed_command_tells_code_log_and_files(tmp_path: Path) -> None:
    program = "import os, sys; open(os.environ['RUNYARD_OUTPUTS'] + '/half', 'w').write('h'); print('no'); sys.exit(7)"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["outcome"] == "FAILED"
        assert lease.finish["error"] == {
            "reason": "exited_non_zero",
            "message": "the command exited with code 7",
            "details": {"exitCode": 7},
        }
        assert lease.log == ["no"]
        assert lease.files == {"half": b"h"}


async def test_command_that_died_by_a_signal_names_it(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, echo="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
    ):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["details"] == {"signal": "SIGSEGV"}


async def test_unknown_command_and_unknown_runtime_are_refused(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print(1)"):
        await server.until(lambda: server.agents)

        unknown = server.assign(command="rm")
        strange = server.assign(runtime="shell")
        nothing = server.assign(definition={"argv": ["sh", "-c", "id"]})
        await server.until(lambda: unknown.finish and strange.finish and nothing.finish)

        for lease, words in ((unknown, "command 'rm'"), (strange, "runtime 'shell'"), (nothing, "definition")):
            assert lease.finish is not None
            assert lease.finish["error"]["reason"] == "refused_by_agent"
            assert words in lease.finish["error"]["message"]


async def test_argv_is_filled_without_a_shell(tmp_path: Path) -> None:
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    argv = ["{runyard.python}", "-c", show, "--title={title}", "{steps}", "{{x}}", "{runyard.outputs}"]
    async with AgentServer().running() as server, agent_process(server, tmp_path, argv={"show": argv}):
        await server.until(lambda: server.agents)

        lease = server.assign(command="show", parameters={"title": "$(id) -; 'x' {steps}", "steps": -2})
        await server.until(lambda: lease.finish)

        (line,) = lease.log
        title, steps, braces, outputs = json.loads(line)
        assert (title, steps, braces) == ("--title=$(id) -; 'x' {steps}", "-2", "{x}")
        assert outputs.endswith("/outputs")


async def test_environment_is_small_and_without_the_key(tmp_path: Path) -> None:
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, echo=program, env={"CLOUD_SECRET": "x", "LC_ALL": "C.UTF-8"}),
    ):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        environment = json.loads(lease.log[0])
        assert "CLOUD_SECRET" not in environment
        assert "RUNYARD_AGENT_KEY" not in environment
        assert environment["LC_ALL"] == "C.UTF-8"
        assert {"PATH", "RUNYARD_PARAMETERS", "RUNYARD_INPUTS", "RUNYARD_OUTPUTS", "RUNYARD_EVENTS_FD"} <= set(
            environment
        )


async def test_line_protocol_tells_progress_outputs_result_and_faults(tmp_path: Path) -> None:
    program = EVENTS + (
        "say = lambda value: events.write((value if isinstance(value, str) else json.dumps(value)) + '\\n')\n"
        "open('early.txt', 'w').write('early')\n"
        "say({'output': 'early.txt', 'name': 'Early one', 'mediaType': 'text/x-early'})\n"
        "say({'progress': {'step': 1, 'total': 4, 'stage': 'work'}}); say('not json'); say({'shout': 1})\n"
        "say({'output': '/etc/passwd'}); say({'preview': 'missing.png'})\n"
        "say({'progress': {'fraction': 2.5, 'message': 'end'}}); say({'result': {'mean': 3.5}})\n"
    )
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.state == "completed"
        assert lease.finish["result"] == {"mean": 3.5}
        assert lease.progress[-1] == {"fraction": 1.0, "message": "end"}
        assert lease.files == {"Early one": b"early"}
        (output,) = lease.outputs.values()
        assert output["mediaType"] == "text/x-early"
        faults = [line for line in lease.system if "expected" in line]
        assert len(faults) == 4
        assert any("outside" in line for line in faults)


async def test_preview_and_thumbnail_are_small_pictures(tmp_path: Path) -> None:
    program = EVENTS + (
        "import random\n"
        "from PIL import Image\n"
        "Image.frombytes('RGB', (1500, 1000), random.Random(1).randbytes(4500000)).save('outputs/noise.png')\n"
        "events.write(json.dumps({'preview': 'outputs/noise.png'}) + '\\n')\n"
    )
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish, seconds=60)

        by_role = {o["role"]: o for o in lease.outputs.values()}
        assert lease.previews == [i for i, o in lease.outputs.items() if o["role"] == "PREVIEW"]
        assert by_role["PREVIEW"]["size"] <= 256 * 1024
        assert by_role["THUMBNAIL"]["name"] == "noise.png"
        assert by_role["THUMBNAIL"]["verified"]
        assert max(by_role["THUMBNAIL"]["width"], by_role["THUMBNAIL"]["height"]) == 512
        assert (by_role["OUTPUT"]["width"], by_role["OUTPUT"]["height"]) == (1500, 1000)


async def test_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    bomb = _png_header(60_000, 60_000)
    program = EVENTS + (
        f"open('outputs/bomb.png', 'wb').write({bomb!r})\n"
        "events.write(json.dumps({'preview': 'outputs/bomb.png'}) + '\\n')\n"
    )
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.files == {"bomb.png": bomb}
        assert [o["role"] for o in lease.outputs.values()] == ["OUTPUT"]
        assert any("preview outputs/bomb.png" in line for line in lease.system)


async def test_large_log_comes_whole_and_in_order(tmp_path: Path) -> None:
    program = "import sys\nfor n in range(60000): print(n, '\\x1b[31m' * 8)\nsys.stdout.write('no end of line')"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish, seconds=60)

        assert lease.gaps == []
        assert lease.log == [f"{n} " + "\x1b[31m" * 8 for n in range(60000)] + ["no end of line"]


async def test_timeout_counts_from_the_acknowledgement_and_keeps_files(tmp_path: Path) -> None:
    program = "import os, time; open(os.environ['RUNYARD_OUTPUTS'] + '/half', 'w').write('h'); time.sleep(600)"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign(timeout=1.0)
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "timed_out"
        assert lease.files == {"half": b"h"}


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (body, data, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


async def test_output_is_there_while_the_task_runs(tmp_path: Path) -> None:
    program = EVENTS + (
        "import pathlib, time\n"
        "open('outputs/early', 'w').write('early'); events.write('{\"output\": \"outputs/early\"}\\n')\n"
        "while not pathlib.Path('../../../../gate').exists(): time.sleep(0.02)\n"
    )
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.files == {"early": b"early"})
        assert lease.state == "running"
        (tmp_path / "gate").touch()
        await server.until(lambda: lease.finish)

        assert lease.files == {"early": b"early"}
        assert len(lease.outputs) == 1


async def test_program_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, argv={"gone": ["/nowhere/tool"]}):
        await server.until(lambda: server.agents)

        lease = server.assign(command="gone")
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "refused_by_agent"
        assert "/nowhere/tool" in lease.finish["error"]["message"]


async def test_many_tasks_at_once_each_keep_their_own(tmp_path: Path) -> None:
    program = "import json; n = json.load(open('parameters.json'))['n']\nfor i in range(50): print(n, i)"
    async with AgentServer().running() as server, agent_process(server, tmp_path, "--slots", "8", echo=program):
        await server.until(lambda: server.agents)

        leases = [server.assign(parameters={"n": n}) for n in range(8)]
        await server.until(lambda: all(lease.finish for lease in leases))

        assert [lease.log for lease in leases] == [[f"{n} {i}" for i in range(50)] for n in range(8)]


async def test_store_that_keeps_other_bytes_gets_them_again(tmp_path: Path) -> None:
    program = "import os; open(os.environ['RUNYARD_OUTPUTS'] + '/a', 'w').write('content')"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)
        server.put_faults = [400]

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.files == {"a": b"content"}
        assert server.calls.count("beginOutputs") == 2


@pytest.mark.parametrize("refuse_sockets", [False, True])
async def test_proxy_of_the_environment_is_not_asked_for_this_machine(tmp_path: Path, refuse_sockets: bool) -> None:
    program = "import os; open(os.environ['RUNYARD_OUTPUTS'] + '/a', 'w').write('a')"
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    async with AgentServer().running() as server:
        server.refuse_sockets = refuse_sockets
        async with agent_process(server, tmp_path, env={**proxy, "NO_PROXY": "", "no_proxy": ""}, echo=program):
            await server.until(lambda: server.agents)

            lease = server.assign()
            await server.until(lambda: lease.finish)

            assert lease.files == {"a": b"a"}


async def test_example_workflow_runs_as_it_is_shipped(tmp_path: Path) -> None:
    parameters = {"width": 256, "height": 128, "iterations": 40, "tile": 64, "palette": "ocean", "overlay": "id"}
    shipped = (ROOT / "app" / "demo" / "agent.toml").read_text()
    async with AgentServer().running() as server, agent_process(server, tmp_path, config=shipped):
        await server.until(lambda: server.agents)
        image = tmp_path / "white.png"
        Image.new("RGB", (8, 8), (255, 255, 255)).save(image)
        overlay = server.add_input("white.png", image.read_bytes(), parameter="overlay")

        lease = server.assign(command="render", parameters=parameters, inputs=[overlay], workflow="render-fractal")
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.state == "completed"
        assert set(lease.files) == {"palette.png", "image.png", "field.bin", "stats.json"}
        assert len(lease.files["field.bin"]) == 256 * 128 * 4
        assert lease.finish["result"]["pixels"] == 256 * 128
        assert lease.progress[-1]["fraction"] == 1.0
        assert lease.previews
        assert "render" in server.agents["tester"].input["labels"]

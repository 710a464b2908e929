"""The agent's configuration: every fault is a sentence that names the setting; and its documents fit the contract."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphql import build_schema, parse, validate

from app.agent import operations
from app.agent.config import Command, Timings, load
from app.agent.errors import ConfigError
from app.agent.facts import discover
from app.agent.operations import document, operation_name

ROOT = Path(__file__).parents[2]
GIVEN = {"url": "https://runyard.example/", "key": "ak-abc"}
OPERATIONS = [file.stem for file in Path(operations.__path__[0]).glob("*.graphql")]


def _load(toml: str = "", **given: Any) -> Any:
    path = Path("/dev/null")
    if toml:
        path = Path(os.environ["PYTEST_TMP"]) / "agent.toml"
        path.write_text(toml)
    return load({**GIVEN, "config": str(path), **given}, {})


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


def test_everything_can_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ak-from-file\n")
    toml = f"""
        url = "http://127.0.0.1:8000"
        key_file = "{tmp_path}/key"
        name = "box"
        slots = 3
        labels = ["render", "render", "a"]
        state_dir = "{tmp_path}/state"
        log_format = "json"
        no_drain = true
        [commands.render]
        argv = ["blender", "{{scene}}"]
        env = {{ THREADS = "4" }}
        inherit = ["LICENSE"]
        [timings]
        scale = 0.5
        answer = 3
    """

    config = _load(toml, url=None, key=None)

    assert (config.url, config.key, config.name, config.slots) == ("http://127.0.0.1:8000", "ak-from-file", "box", 3)
    assert config.labels == ("render", "a")
    assert config.state_dir == tmp_path / "state"
    assert config.commands == {"render": Command(("blender", "{scene}"), {"THREADS": "4"}, ("LICENSE",))}
    assert (config.log_format, config.no_drain) == ("json", True)
    assert (config.timings.answer, config.timings.backoff_max) == (3.0, 15.0)
    assert "ak-from-file" not in repr(config)


def test_command_line_wins_over_file_and_environment() -> None:
    config = _load('name = "file"\nurl = "http://file"', name="line", labels="a, b,,")

    assert (config.name, config.url, config.labels) == ("line", "https://runyard.example", ("a", "b"))
    assert config.timings == Timings()


@pytest.mark.parametrize(
    ("toml", "given", "words"),
    [
        ("", {"url": None}, "url: expected the server's address"),
        ("", {"url": "ftp://x"}, "url: expected"),
        ("", {"key": None}, "key: expected an ak- key"),
        ("", {"key": "sk-abc"}, "key: expected an agent key that begins with ak-"),
        ("key_file = '/nowhere'", {"key": None}, "key_file: expected a readable file"),
        ("", {"slots": 0}, "slots: expected a whole number from 1"),
        ("slots = true", {}, "slots: expected a whole number from 1"),
        ("", {"name": "a\nb"}, "name: expected"),
        ("labels = [1]", {}, "labels: expected"),
        ("slot = 1", {}, "slot: expected one of"),
        ("= 1", {}, "config: expected TOML"),
        ("[commands.a]", {}, "commands.a.argv: expected"),
        ("[commands.a]\nargv = 'ls'", {}, "commands.a.argv: expected a list"),
        ("[commands.a]\nargv = ['ls']\nshell = true", {}, "commands.a.shell: expected argv, env or inherit"),
        ("[commands.a]\nargv = ['ls']\nenv = {A = 1}", {}, "commands.a.env: expected a table of texts"),
        ("log_format = 'xml'", {}, "log_format: expected text or json"),
        ("[timings]\nsoon = 1", {}, "timings.soon: expected one of"),
        ("[timings]\nanswer = -1", {}, "timings.answer: expected a number"),
    ],
)
def test_wrong_configuration_names_the_setting(toml: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        _load(toml, **given)

    assert words in str(found.value)


def test_command_ends_with_a_sentence_and_code_two() -> None:
    command = [sys.executable, "-m", "app.agent", "run", "--url", "nowhere", "--key", "ak-x"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == (
        "runyard-agent: url: expected the server's address such as https://runyard.example, found 'nowhere'\n"
    )


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.agent", "run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    for option in ("--url", "--key", "--key-file", "--config", "--name", "--slots", "--labels", "--state-dir"):
        assert option in done.stdout


@pytest.mark.parametrize("operation", OPERATIONS)
def test_documents_fit_the_contract(operation: str) -> None:
    schema = build_schema((ROOT / "app" / "agent" / "schema.graphql").read_text())

    parsed = parse(document(operation))

    assert validate(schema, parsed) == []
    (definition,) = parsed.definitions
    assert getattr(definition, "name").value == operation_name(operation)  # noqa: B009


def test_every_operation_of_the_contract_has_a_document() -> None:
    schema = build_schema((ROOT / "app" / "agent" / "schema.graphql").read_text())

    assert schema.mutation_type is not None
    assert schema.subscription_type is not None
    assert {*schema.mutation_type.fields, *schema.subscription_type.fields} == set(OPERATIONS)


async def test_gpus_are_found_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_smi(
        tmp_path, "echo 'NVIDIA GeForce RTX 4090, 24564'; echo 'NVIDIA A100-SXM4-80GB, 81920'; echo 'Failed, N/A'"
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    labels, facts = await discover(("mine", "gpu"))

    assert labels[4:] == ["gpu", "gpu-rtx-4090", "gpu-a100-sxm4-80gb", "vram-23gib", "mine"]
    assert facts["gpus"][0] == {"name": "NVIDIA GeForce RTX 4090", "vramMib": 24564}


@pytest.mark.parametrize("script", ["exit 9", "echo garbage", "sleep 60"])
async def test_broken_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    _fake_smi(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("app.agent.facts.GPU_PATIENCE", 0.5)

    labels, facts = await discover(())

    assert facts["gpus"] == []
    assert "gpu" not in labels
    assert labels[2] == f"cpus-{facts['cpus']}"
    await asyncio.sleep(0)


def _fake_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

"""The workflow document: what people see, what decides how tasks run, and every fault at once."""

from typing import Any

import pytest

from app.domain.errors import InvalidInput
from app.domain.workflow import Draft, Plan, Retry, RetryOn, Runtime, changed, check_note, read, write

DOCUMENT = {"slug": "render", "name": "Render", "runtime": "command", "definition": {"command": "render"}}


def faults_of(document: Any) -> list[str]:
    with pytest.raises(InvalidInput) as refusal:
        read(document)
    return [".".join(fault.path) for fault in refusal.value.faults]


def test_document_is_read_with_its_defaults() -> None:
    assert read(DOCUMENT) == Draft(
        slug="render",
        name="Render",
        description="",
        plan=Plan(
            runtime=Runtime.COMMAND,
            definition={"command": "render"},
            parameters=(),
            labels=(),
            timeout=0.0,
            queue_timeout=None,
            retry=Retry(max=0, on=(RetryOn.AGENT_LOST, RetryOn.TIMED_OUT, RetryOn.FAILED)),
        ),
    )


def test_written_document_reads_as_the_same_workflow() -> None:
    draft = read(
        DOCUMENT
        | {
            "parameters": [{"key": "n", "type": "integer", "default": 1}],
            "labels": [" GPU ", "linux", "gpu"],
            "timeout": 60,
            "queueTimeout": 30,
            "retry": {"max": 2, "on": ["failed", "agent_lost"]},
            "exclusive": True,
        }
    )

    assert draft.plan.exclusive
    assert draft.plan.labels == ("gpu", "linux")
    assert draft.plan.retry == Retry(max=2, on=(RetryOn.AGENT_LOST, RetryOn.FAILED))
    assert read(write(draft)) == draft


def test_every_fault_is_told_at_once() -> None:
    assert faults_of(
        {
            "slug": "Render",
            "name": "",
            "description": "x" * 2001,
            "runtime": "bash",
            "definition": [],
            "parameters": [{"key": "n"}],
            "labels": ["", 3],
            "timeout": -1,
            "queueTimeout": 0,
            "retry": {"max": 11, "on": ["rain", {}], "backoff": 1},
            "colour": "red",
        }
    ) == [
        "colour",
        "slug",
        "runtime",
        "name",
        "description",
        "definition",
        "parameters.0.type",
        "labels.0",
        "labels.1",
        "timeout",
        "queueTimeout",
        "retry.backoff",
        "retry.max",
        "retry.on.0",
        "retry.on.1",
    ]


@pytest.mark.parametrize("slug", ["a", "a" * 101, "-a", "a-", "a--b", "a_b", "é1", "a b", "ab\n", None, 3])
def test_slug_is_lower_case_words_joined_by_hyphens(slug: Any) -> None:
    assert set(faults_of(DOCUMENT | {"slug": slug})) == {"slug"}


@pytest.mark.parametrize(
    ("definition", "path"),
    [
        ({}, "definition.command"),
        ({"command": "/bin/sh"}, "definition.command"),
        ({"command": ""}, "definition.command"),
        ({"command": "x", "note": "\0"}, "definition"),
        ({"command": "x", "n": float("nan")}, "definition"),
        ({"command": "x", "big": "y" * 600_000}, "definition"),
        (None, "definition"),
    ],
)
def test_command_needs_the_name_of_a_command(definition: Any, path: str) -> None:
    assert faults_of(DOCUMENT | {"definition": definition}) == [path]


@pytest.mark.parametrize(
    ("definition", "path"),
    [
        ({}, "definition"),
        ({"1": {"inputs": {}}}, "definition.1"),
        ({"nodes": []}, "definition.nodes"),
        ({"1": {"class_type": "KSampler", "inputs": []}}, "definition.1.inputs"),
    ],
)
def test_comfyui_needs_a_graph_in_api_format(definition: Any, path: str) -> None:
    assert faults_of(DOCUMENT | {"runtime": "comfyui", "definition": definition}) == [path]


def test_comfyui_graph_is_kept_as_it_is() -> None:
    graph = {"3": {"class_type": "KSampler", "inputs": {"seed": 1}, "_meta": {"title": "x"}}}

    assert read(DOCUMENT | {"runtime": "comfyui", "definition": graph}).plan.definition == graph


def test_change_to_null_goes_back_to_the_default() -> None:
    document = write(read(DOCUMENT | {"timeout": 60, "labels": ["gpu"]}))

    draft = read(changed(document, {"timeout": None, "description": "new"}))

    assert (draft.plan.timeout, draft.plan.labels, draft.description) == (0.0, ("gpu",), "new")


def test_note_is_stripped_and_limited() -> None:
    assert check_note(" faster ") == "faster"
    with pytest.raises(InvalidInput):
        check_note("x" * 501)

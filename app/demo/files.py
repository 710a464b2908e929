"""Save what a task produced: each file by its signed URL, checked by its SHA-256."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from app.demo.client import Client

OUTPUTS = """
query Outputs($taskId: ID!) {
  node(id: $taskId) { ... on Task { outputs { nodes { name size sha256 url(disposition: ATTACHMENT) } } } }
}
"""


class WrongFile(Exception):
    """A downloaded file is not the one that the task produced."""


async def save_outputs(client: Client, task_id: str, folder: Path) -> list[Path]:
    """Write every output of the task below `folder/<task>/` and return the paths; raises `WrongFile`."""
    task = (await client.ask(OUTPUTS, taskId=task_id))["node"]
    target = folder / task_id
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        return [await _save(http, output, target) for output in task["outputs"]["nodes"]]


async def _save(http: httpx.AsyncClient, output: dict[str, Any], folder: Path) -> Path:
    path = folder / _safe(output["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with path.open("wb") as file:
        async with http.stream("GET", output["url"]) as answer:
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                found.update(piece)
                file.write(piece)
    if found.hexdigest() != output["sha256"]:
        raise WrongFile(f"{path}: expected SHA-256 {output['sha256']}, found {found.hexdigest()}")
    return path


def _safe(name: str) -> PurePosixPath:
    """An output's name is text from an agent: as a path it keeps only plain segments."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
    return PurePosixPath(*parts) if parts else PurePosixPath("output")

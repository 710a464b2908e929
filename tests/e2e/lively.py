"""What must hold of a task that ran `programs.LIVELY`: its word arrives at once, its files arrive whole."""

import hashlib
import io

import httpx
from PIL import Image

from app.demo.client import Client
from tests.e2e.tasks import Watch, read

PROMPT = 1.0  # seconds from the program's word until a client has it, and from then to the end at least
FILES = {"early.bin": bytes(range(256)) * 4096, "deep/late.txt": b"late"}


def assert_prompt(watch: Watch) -> None:
    """A line, a progress, a preview and an output were each received promptly and long before the end."""
    output = next(event["seq"] for event in watch.received if event["__typename"] == "TaskOutputAdded")
    received = {
        "line": watch.time_of_line("line"),
        "progress": watch.progress[0][0],
        "preview": watch.previews[0][0],
        "output": watch.times[output],
    }
    said = {word: float(time) for word, time in (line.split() for line in watch.lines)}
    end = watch.times[watch.received[-1]["seq"]]
    late = {word: round(time - said[word], 3) for word, time in received.items()}
    left = {word: round(end - time, 3) for word, time in received.items()}
    print(f"seconds after the program's word: {late}, before the end: {left}")
    assert max(late.values()) <= PROMPT
    assert min(left.values()) >= PROMPT


async def assert_files(watch: Watch, client: Client) -> None:
    """The preview is the picture that was drawn; every output is there, byte for byte and by its SHA-256."""
    with Image.open(io.BytesIO(await download(watch.previews[0][1]))) as picture:
        assert (picture.size, picture.convert("RGB").getpixel((5, 5))) == ((64, 48), (0, 128, 128))
    outputs = {each["name"]: each for each in (await read(client, watch.task_id))["outputs"]["nodes"]}
    found = {name: await download(each["url"]) for name, each in outputs.items()}
    assert found == FILES
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    assert {name: each["sha256"] for name, each in outputs.items()} == hashes


async def download(url: str) -> bytes:
    """What is behind a signed link."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        return (await http.get(url)).raise_for_status().content

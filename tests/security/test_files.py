"""Files behind the local store's links: what a hostile sender, reader or name can do to them, over real HTTP."""

import asyncio
import random
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from app.domain.errors import BadRequest, StorageUnavailable
from app.domain.output import upload_key
from app.interfaces.rest.files import byte_range
from app.services.ports import SignedRequest
from app.storage.disk import META
from app.storage.local import LocalStore
from app.storage.signing import Grant, sign
from tests.stores import KEYS, MIB, MINUTE, ORIGIN, PART, FileHost, Now, Sender, finish, link, plan, sha256
from tests.waiting import until

BODY = b"sixteen letters." * 1000

GUARDS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "same-site",
    "cache-control": "private, no-store",
    "referrer-policy": "no-referrer",
}


@pytest.fixture(scope="module")
async def sender() -> AsyncIterator[Sender]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        yield Sender(http)


@pytest.fixture
def clock() -> Now:
    return Now()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture(scope="module")
async def host() -> AsyncIterator[FileHost]:
    async with FileHost() as host:
        yield host


@pytest.fixture
def store(host: FileHost, directory: Path, clock: Now) -> LocalStore:
    return host.store(directory, clock)


@pytest.fixture
def key() -> str:
    return upload_key(uuid4(), uuid4())


async def stored(store: LocalStore, sender: Sender, key: str, body: bytes = BODY) -> str:
    """Bring an object in; returns a link to it."""
    upload = await plan(store, key, body)
    assert (await sender.send(upload.requests[0], body)).status_code == 201
    return await link(store, key)


def guards(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers.get(name, "") for name in GUARDS}


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


# What every answer carries


async def test_every_answer_is_sandboxed_and_not_kept(store: LocalStore, sender: Sender, key: str, clock: Now) -> None:
    url = await stored(store, sender, key)
    again = await plan(store, key, BODY)
    gone = await link(store, f"{key}x")

    answers = {
        200: await sender.get(url),
        206: await sender.get(url, Range="bytes=0-1"),
        416: await sender.get(url, Range="bytes=99999999-"),
        403: await sender.get(url + "x"),
        404: await sender.get(gone),
        412: await sender.send(again.requests[0], BODY),
        400: await sender.send((await plan(store, f"{key}y", BODY)).requests[0], BODY[::-1]),
        201: await sender.send((await plan(store, f"{key}z", BODY)).requests[0], BODY),
    }
    clock.offset = timedelta(hours=1)
    answers[410] = await sender.get(url)

    assert {status: answer.status_code for status, answer in answers.items()} == {status: status for status in answers}
    assert all(guards(answer) == GUARDS for answer in answers.values())


async def test_an_expired_link_says_so(store: LocalStore, sender: Sender, key: str, clock: Now) -> None:
    url = await stored(store, sender, key)
    at = (clock() + MINUTE).strftime("%Y-%m-%dT%H:%M:")

    clock.offset = timedelta(seconds=61)
    answer = await sender.get(url)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (410, "LINK_EXPIRED")
    assert error["message"].startswith(f"This link expired at {at}")
    assert error["message"].endswith("Z; fetch the task again for a fresh one.")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/files/", 404, None),
        ("/files/a/b?signature=c", 404, None),
        ("/files/a", 403, "FORBIDDEN"),
        ("/files/a?signature=", 403, "FORBIDDEN"),
        ("/files/..%2f..%2fetc%2fpasswd?signature=x", 404, None),
        ("/files/%00?signature=%00", 403, "FORBIDDEN"),
        ("/files/%ff?signature=%ff", 403, "FORBIDDEN"),
        ("/files/" + "a" * 20_000 + "?signature=x", 403, "FORBIDDEN"),
    ],
)
async def test_what_was_never_signed_opens_nothing(
    store: LocalStore, sender: Sender, path: str, status: int, code: str | None
) -> None:
    host = urlsplit(await link(store, "teams/1/uploads/2")).netloc

    for method in ("GET", "HEAD", "PUT"):
        answer = await sender.http.request(method, f"http://{host}{path}")
        assert answer.status_code == status
        assert method == "HEAD" or code is None or answer.json()["error"]["code"] == code


async def test_links_survive_the_rotation_of_keys_and_no_longer(
    store: LocalStore, sender: Sender, key: str, directory: Path, clock: Now
) -> None:
    url = await stored(store, sender, key)
    base = url[: url.index("/files/")]

    def signed_by(secret: bytes) -> LocalStore:
        return LocalStore(directory, base, [secret], clock)

    assert (await sender.get(await link(signed_by(KEYS[1]), key))).content == BODY
    assert (await sender.get(await link(signed_by(b"foreign" * 5), key))).status_code == 403


# Names and paths


@pytest.mark.parametrize(
    "key",
    [
        "",
        "..",
        "../files",
        "/etc/passwd",
        "teams/../../x",
        "teams//x",
        "teams/./x",
        "teams/.hidden",
        "teams/a\0b",
        "teams/a b",
        "teams\\a",
        "teams/é",
        "teams/a\n",
        "~root",
        "a" * 101,
        "/".join(["a" * 90] * 6),
    ],
)
async def test_keys_are_ids_and_nothing_else(store: LocalStore, sender: Sender, key: str, directory: Path) -> None:
    before = files(directory.parent)

    with pytest.raises(BadRequest, match="expected a key like"):
        await plan(store, key, BODY)
    with pytest.raises(BadRequest, match="expected a key like"):
        await store.put(key, BODY, media_type="text/plain")
    with pytest.raises(BadRequest, match="expected a key like"):
        await store.delete([key])

    assert files(directory.parent) == before


@pytest.mark.parametrize("upload_id", ["..", "../objects", "a" * 32 + "/..", "A" * 32, "\0" * 32, "tmp"])
async def test_upload_ids_are_not_paths(store: LocalStore, key: str, upload_id: str) -> None:
    with pytest.raises(BadRequest, match="expected an upload id of this store"):
        await store.abort_upload(key, upload_id=upload_id)
    with pytest.raises(BadRequest, match="expected an upload id of this store"):
        await store.finish_upload(key, upload_id=upload_id, size=PART + 1, sha256=b"", parts=[b"", b""])


async def test_nothing_is_read_through_a_symbolic_link(
    store: LocalStore, sender: Sender, key: str, directory: Path, tmp_path: Path
) -> None:
    url = await stored(store, sender, key)
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    [body] = [path for path in files(directory) if path.name == "1"]

    # The chunk, then the object's directory, then its parent, become links.
    body.unlink()
    body.symlink_to(secret)
    with pytest.raises((httpx.RemoteProtocolError, StorageUnavailable)):
        (await sender.get(url)).raise_for_status()
    for path in (body.parent, body.parent.parent):
        moved = tmp_path / f"moved-{path.name}"
        shutil.move(path, moved)
        path.symlink_to(moved)
        assert (await sender.get(url)).status_code == 404
        path.unlink()
        shutil.move(moved, path)


async def test_a_link_in_the_place_of_an_object_is_not_written_through(
    store: LocalStore, sender: Sender, key: str, directory: Path, tmp_path: Path
) -> None:
    await stored(store, sender, key)
    [body] = [path for path in files(directory) if path.name == "1"]
    elsewhere = tmp_path / "elsewhere"
    shutil.move(body.parent, elsewhere)
    body.parent.symlink_to(elsewhere)
    (elsewhere / META).unlink()

    upload = await plan(store, key, BODY)
    answer = await sender.send(upload.requests[0], BODY)

    assert answer.status_code == 412
    assert not (elsewhere / META).exists()


async def test_names_of_files_on_disk_come_from_no_key(
    store: LocalStore, sender: Sender, key: str, directory: Path
) -> None:
    await stored(store, sender, key)

    assert all(team not in str(path) for path in files(directory) for team in key.split("/"))
    assert {path.name for path in files(directory)} == {"1", META}
    assert oct(directory.joinpath("objects").stat().st_mode)[-3:] == "700"


# Uploads that go wrong


async def test_a_full_disk_leaves_nothing_behind(store: LocalStore, sender: Sender, key: str, directory: Path) -> None:
    body = bytes(4 * MIB)
    upload = await plan(store, key, body)

    with largest_file(2 * MIB):
        answer = await sender.send(upload.requests[0], body)

    assert answer.status_code == 507
    assert answer.json()["error"] == {
        "code": "STORAGE_UNAVAILABLE",
        "message": "the disk of the file store is full; nothing was kept of this file",
    }
    assert files(directory) == []
    assert list(directory.joinpath("tmp").iterdir()) == []
    assert (await sender.send(upload.requests[0], body)).status_code == 201


async def test_what_cannot_fit_is_refused_before_it_travels(store: LocalStore, key: str, directory: Path) -> None:
    petabyte = 2**50
    grant = Grant(method="PUT", key=key, expires=2**40, media_type="image/png", size=petabyte, sha256="00" * 32)
    base = (await link(store, key)).partition("/files/")[0]
    request = SignedRequest(method="PUT", url=f"{base}/files/{sign(grant, KEYS[0])}", headers=grant.upload_headers())

    reader, writer = await begin(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()

    assert head.startswith(b"HTTP/1.1 507 ")
    assert files(directory) == []


async def test_a_sender_that_leaves_leaves_nothing_behind(store: LocalStore, key: str, directory: Path) -> None:
    body = bytes(4 * MIB)
    upload = await plan(store, key, body)
    _, writer = await begin(upload.requests[0])
    writer.write(body[: 3 * MIB])
    await writer.drain()
    await until(lambda: any(path.stat().st_size for path in files(directory)), what="bytes arrive")

    writer.close()

    await until(lambda: list(directory.joinpath("tmp").iterdir()) == [], what="cleaned up")
    assert files(directory) == []


async def test_a_sender_that_stalls_is_given_up(host: FileHost, directory: Path, key: str, clock: Now) -> None:
    upload = await plan(host.store(directory, clock, patience=0.2), key, BODY)
    reader, writer = await begin(upload.requests[0])
    writer.write(BODY[:100])

    answer = await asyncio.wait_for(reader.read(65_536), 5)
    writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the upload stood still for 0.2 s" in answer
    assert files(directory) == []


async def test_a_body_without_a_length_is_refused(store: LocalStore, sender: Sender, key: str, directory: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield BODY

    request = (await plan(store, key, BODY)).requests[0]
    headers = {name: value for name, value in request.headers.items() if name != "Content-Length"}
    answer = await sender.http.put(request.url, content=endless(), headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("expected the header Content-Length: 16000, found None")
    assert files(directory) == []


async def test_of_two_senders_one_writes(store: LocalStore, sender: Sender, key: str, directory: Path) -> None:
    bodies = [bytes([number]) * MIB for number in range(8)]
    uploads = [await plan(store, key, body) for body in bodies]

    answers = await asyncio.gather(
        *(sender.send(upload.requests[0], body) for upload, body in zip(uploads, bodies, strict=True))
    )

    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [201] + [412] * 7
    assert b"".join([piece async for piece in store.open(key)]) == bodies[statuses.index(201)]
    assert list(directory.joinpath("tmp").iterdir()) == []


@pytest.mark.parametrize("seed", range(3))
async def test_a_request_cut_at_any_moment_leaves_all_or_nothing(
    host: FileHost, directory: Path, clock: Now, key: str, seed: int
) -> None:
    store, chance = host.store(directory, clock), random.Random(seed)
    body = bytes(range(256)) * 8192
    keys = [f"{key}-{number}" for number in range(40)]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            await asyncio.sleep(0)
            yield body[start : start + 65_536]

    async def upload(key: str) -> None:
        request = (await plan(store, key, body)).requests[0]
        claims, _, signature = request.url.rpartition("/")[2].partition("?signature=")
        headers = {name.lower(): value for name, value in request.headers.items()}
        await store.receive_signed(claims, signature, headers=headers, body=pieces())

    for batch in range(0, len(keys), 4):
        tasks = [asyncio.create_task(upload(key)) for key in keys[batch : batch + 4]]
        for task in tasks:
            await asyncio.sleep(chance.uniform(0, 0.02))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    await until(lambda: list(directory.joinpath("tmp").iterdir()) == [], what="cleaned up")
    kept = [key for key in keys if await store.head(key) is not None]
    for key in kept:
        assert b"".join([piece async for piece in store.open(key)]) == body
    assert len(files(directory)) == 2 * len(kept)


async def test_part_links_open_their_own_part_alone(store: LocalStore, sender: Sender, key: str) -> None:
    body = bytes(PART) + b"end"
    upload = await plan(store, key, body)
    first, last = upload.requests

    crossed = await sender.send(replace(first, headers=last.headers), b"end")

    assert crossed.status_code == 400
    assert await finish(store, key, body, upload) is None


async def test_what_was_left_unfinished_is_swept(store: LocalStore, sender: Sender, key: str, directory: Path) -> None:
    upload = await plan(store, key, bytes(PART + 1))
    await sender.send(upload.requests[0], bytes(PART))
    await stored(store, sender, f"{key}x")

    assert await store.sweep() == 0
    assert await store.sweep(timedelta(seconds=-1)) == 1

    assert list(directory.joinpath("uploads").iterdir()) == []
    assert await store.head(f"{key}x") is not None


# Reading


async def test_head_follows_get(store: LocalStore, sender: Sender, key: str) -> None:
    url = await stored(store, sender, key)

    for headers in ({}, {"Range": "bytes=5-9"}, {"Range": "bytes=99999999-"}):
        head = await sender.http.head(url, headers=headers)
        got = await sender.get(url, **headers)

        assert head.status_code == got.status_code
        assert head.content == b""
        volatile = {"date"}
        assert {k: v for k, v in head.headers.items() if k not in volatile} == {
            k: v for k, v in got.headers.items() if k not in volatile
        }


async def test_a_range_holds_only_for_the_same_content(store: LocalStore, sender: Sender, key: str) -> None:
    url = await stored(store, sender, key)
    etag = (await sender.get(url)).headers["etag"]

    same = await sender.http.get(url, headers={"Range": "bytes=0-3", "If-Range": etag})
    other = await sender.http.get(url, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
    date = await sender.http.get(url, headers={"Range": "bytes=0-3", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"})

    assert etag == f'"{sha256(BODY).hex()}"'
    assert (same.status_code, same.content) == (206, BODY[:4])
    assert [answer.status_code for answer in (other, date)] == [200, 200]


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=9-9", 10, (9, 10)),
        ("bytes=0-99", 10, (0, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=10-", 10, (10, 10)),
        ("bytes=-0", 10, (10, 10)),
        ("bytes=0-", 0, (0, 0)),
        ("bytes=-5", 0, (0, 0)),
        ("bytes=5-4", 10, None),
        ("bytes=-", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=٣-٤", 10, None),
        ("bytes=--1", 10, None),
        ("lines=0-1", 10, None),
        ("bytes=" + "9" * 30 + "-", 10, None),
        ("", 10, None),
    ],
)
def test_byte_ranges(header: str, size: int, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, size) == expected


async def test_an_empty_file_has_no_range(store: LocalStore, sender: Sender, key: str) -> None:
    url = await stored(store, sender, key, b"")

    assert (await sender.get(url)).content == b""
    assert (await sender.get(url, Range="bytes=0-")).status_code == 416


async def test_a_file_that_vanishes_is_not_found(store: LocalStore, sender: Sender, key: str) -> None:
    url = await stored(store, sender, key)

    await store.delete([key])

    answer = await sender.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")


# Browsers


async def test_listed_origins_may_fetch_and_upload(store: LocalStore, sender: Sender, key: str) -> None:
    url = await stored(store, sender, key)
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type,if-none-match,x-amz-checksum-sha256",
    }

    preflight = await sender.http.options(url, headers=asked)
    got = await sender.get(url, Origin=ORIGIN)

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert got.headers["access-control-allow-origin"] == ORIGIN
    assert "Content-Range" in got.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in got.headers


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", ORIGIN + ".evil", "https://console.test", ORIGIN + ":1"]
)
async def test_other_origins_may_not(store: LocalStore, sender: Sender, key: str, origin: str) -> None:
    url = await stored(store, sender, key)

    preflight = await sender.http.options(url, headers={"Origin": origin, "Access-Control-Request-Method": "PUT"})
    got = await sender.get(url, Origin=origin)

    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in got.headers


# Senders


async def begin(request: SignedRequest) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the head of a signed request on a connection of its own; the body is the caller's."""
    address = urlsplit(request.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    lines = [f"PUT {address.path}?{address.query} HTTP/1.1", f"Host: {address.netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    return reader, writer


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write further into a file than this, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""What every object store promises, asked of the local disk and of S3 alike, over real HTTP."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import pytest

from app.domain.errors import InvalidInput, NotFound
from app.domain.output import upload_key
from app.services.ports import ObjectStore
from app.storage.s3 import S3Options, open_s3
from tests.servers import S3Server
from tests.stores import MIB, PART, FileHost, Now, Sender, finish, link, plan, sha256
from tests.waiting import until

SECOND = timedelta(seconds=1)
BODY = b"sixteen letters." * 1000
HEADERS = ["x-amz-checksum-sha256", "If-None-Match", "Content-Type"]


@pytest.fixture(scope="session")
async def sender() -> AsyncIterator[Sender]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        yield Sender(http)


@pytest.fixture(scope="session")
def clock() -> Now:
    return Now()


@pytest.fixture(scope="session")
async def local_store(tmp_path_factory: pytest.TempPathFactory, clock: Now) -> AsyncIterator[ObjectStore]:
    async with FileHost() as host:
        yield host.store(tmp_path_factory.mktemp("files"), clock)


@pytest.fixture(scope="session")
async def s3_store(s3: S3Server) -> AsyncIterator[ObjectStore]:
    config = await s3.make_bucket(f"conformance-{uuid4().hex}")
    async with open_s3(S3Options(**asdict(config), part_size=PART)) as store:
        yield store


@pytest.fixture(params=["local_store", "s3_store"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each adapter in turn, shared by all tests: a test has keys of its own."""
    opened: ObjectStore = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
def key() -> str:
    return upload_key(uuid4(), uuid4())


async def stored(store: ObjectStore, sender: Sender, key: str, body: bytes = BODY) -> None:
    upload = await plan(store, key, body)
    answer = await sender.send(upload.requests[0], body)
    assert answer.is_success, answer.text


async def read(store: ObjectStore, key: str) -> bytes:
    return b"".join([piece async for piece in store.open(key)])


@pytest.mark.parametrize("body", [BODY, b"", b"\0" * MIB], ids=["text", "empty", "a MiB"])
async def test_what_was_put_comes_back(store: ObjectStore, sender: Sender, key: str, body: bytes) -> None:
    upload = await plan(store, key, body)

    put = await sender.send(upload.requests[0], body)
    found = await finish(store, key, body, upload)
    got = await sender.get(await link(store, key))

    assert (len(upload.requests), upload.part_size, upload.upload_id) == (1, 0, "")
    assert put.is_success
    assert found is not None
    assert (found.size, found.media_type, found.sha256) == (len(body), "image/png", sha256(body))
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, body, "image/png")
    assert await store.head(key) == found
    assert await read(store, key) == body


@pytest.mark.parametrize("sent", [BODY[:-1], BODY + b"x"], ids=["short", "long"])
async def test_another_length_is_refused(store: ObjectStore, sender: Sender, key: str, sent: bytes) -> None:
    upload = await plan(store, key, BODY)

    answer = await sender.send(upload.requests[0], sent, without="Content-Length")

    assert answer.status_code in (400, 403)
    assert await store.head(key) is None
    assert await finish(store, key, BODY, upload) is None


async def test_other_content_is_refused(store: ObjectStore, sender: Sender, key: str) -> None:
    upload = await plan(store, key, BODY)

    answer = await sender.send(upload.requests[0], BODY[::-1])

    assert answer.status_code == 400
    assert await store.head(key) is None
    assert await finish(store, key, BODY, upload) is None


@pytest.mark.parametrize("header", HEADERS)
async def test_a_request_without_a_planned_header_is_refused(
    store: ObjectStore, sender: Sender, key: str, header: str
) -> None:
    upload = await plan(store, key, BODY)

    answer = await sender.send(upload.requests[0], BODY, without=header)

    assert answer.status_code in (400, 403)
    assert await store.head(key) is None


async def test_the_hash_of_other_content_cannot_be_sent_instead(store: ObjectStore, sender: Sender, key: str) -> None:
    other = BODY[::-1]
    upload, swapped = await plan(store, key, BODY), await plan(store, f"{key}x", other)

    answer = await sender.send(replace(upload.requests[0], headers=swapped.requests[0].headers), other)

    assert answer.status_code in (400, 403)
    assert await store.head(key) is None


async def test_expired_links_are_refused(store: ObjectStore, sender: Sender, key: str, clock: Now) -> None:
    await stored(store, sender, key)
    url = await link(store, key, expires=SECOND)
    upload = await plan(store, f"{key}x", BODY, expires=SECOND)

    clock.offset += 2 * SECOND

    async def refused() -> bool:
        return (await sender.get(url)).status_code in (403, 410)

    await until(refused, within=10, every=0.2)
    assert (await sender.send(upload.requests[0], BODY)).status_code in (403, 410)
    assert await store.head(f"{key}x") is None


async def test_a_key_is_written_once(store: ObjectStore, sender: Sender, key: str) -> None:
    first, second = await plan(store, key, BODY), await plan(store, key, BODY[::-1])
    await sender.send(first.requests[0], BODY)

    answer = await sender.send(second.requests[0], BODY[::-1])
    again = await sender.send(first.requests[0], BODY)

    assert (answer.status_code, again.status_code) == (412, 412)
    assert await read(store, key) == BODY
    assert await finish(store, key, BODY[::-1], second) is None
    assert await finish(store, key, BODY, first) is not None


async def test_a_tampered_signature_is_refused(store: ObjectStore, sender: Sender, key: str) -> None:
    await stored(store, sender, key)
    url = await link(store, key)
    upload = await plan(store, f"{key}x", BODY)

    got = await sender.get(tampered(url))
    put = await sender.send(replace(upload.requests[0], url=tampered(upload.requests[0].url)), BODY)

    assert (got.status_code, put.status_code) == (403, 403)
    assert await store.head(f"{key}x") is None


async def test_a_link_is_for_its_own_method_and_key(store: ObjectStore, sender: Sender, key: str) -> None:
    await stored(store, sender, key)
    await stored(store, sender, f"{key}x", BODY[::-1])
    url, other = await link(store, key), await link(store, f"{key}x")
    crossed = urlunsplit(urlsplit(url)._replace(path=urlsplit(other).path))

    put = await sender.http.put(url, content=BODY)
    deleted = await sender.http.delete(url)
    moved = await sender.get(crossed)

    assert put.status_code == 403
    assert deleted.status_code in (403, 405)
    assert moved.status_code == 403
    assert await read(store, key) == BODY


async def test_a_large_object_comes_in_parts(store: ObjectStore, sender: Sender, key: str) -> None:
    body = secrets.token_bytes(2 * PART + 3)
    upload = await plan(store, key, body)

    for request, part in zip(upload.requests, parts(body), strict=True):
        assert (await sender.send(request, part)).is_success
    found = await finish(store, key, body, upload)
    got = await sender.get(await link(store, key))
    across = await sender.get(await link(store, key), Range=f"bytes={PART - 2}-{PART + 1}")

    assert (len(upload.requests), upload.part_size) == (3, PART)
    assert found is not None
    assert (found.size, found.media_type, found.sha256) == (len(body), "image/png", None)
    assert got.content == body
    assert (across.status_code, across.content) == (206, body[PART - 2 : PART + 2])
    assert await read(store, key) == body
    assert await finish(store, key, body, upload) == found


async def test_a_wrong_part_is_refused_and_can_be_repaired(store: ObjectStore, sender: Sender, key: str) -> None:
    body = secrets.token_bytes(PART + 3)
    upload = await plan(store, key, body)
    first, last = parts(body)
    await sender.send(upload.requests[0], first)

    wrong = await sender.send(upload.requests[1], b"abc")
    short = await sender.send(upload.requests[1], last[:1], without="Content-Length")
    early = await finish(store, key, body, upload)
    right = await sender.send(upload.requests[1], last)

    assert wrong.status_code == 400
    assert short.status_code in (400, 403)
    assert early is None
    assert right.is_success
    assert await finish(store, key, body, upload) is not None
    assert await read(store, key) == body


async def test_parts_sent_in_any_order_and_twice_are_one_object(store: ObjectStore, sender: Sender, key: str) -> None:
    body = secrets.token_bytes(PART + 3)
    upload = await plan(store, key, body)
    first, last = parts(body)

    for number, part in ((1, last), (0, first), (1, last)):
        assert (await sender.send(upload.requests[number], part)).is_success

    assert await finish(store, key, body, upload) is not None
    assert await read(store, key) == body


async def test_an_upload_whose_links_expired_goes_on(store: ObjectStore, sender: Sender, key: str) -> None:
    body = secrets.token_bytes(PART + 3)
    first = await plan(store, key, body)
    assert (await sender.send(first.requests[0], body[:PART])).is_success

    second = await plan(store, key, body, upload_id=first.upload_id)

    assert second.upload_id == first.upload_id
    assert (await sender.send(second.requests[1], body[PART:])).is_success
    assert await finish(store, key, body, second) is not None
    assert await read(store, key) == body


async def test_a_second_upload_in_parts_does_not_replace_the_first(
    store: ObjectStore, sender: Sender, key: str
) -> None:
    body, other = secrets.token_bytes(PART + 1), secrets.token_bytes(PART + 1)
    first, second = await plan(store, key, body), await plan(store, key, other)
    for upload, content in ((first, body), (second, other)):
        for request, part in zip(upload.requests, parts(content), strict=True):
            assert (await sender.send(request, part)).is_success

    kept = await finish(store, key, body, first)
    refused = await finish(store, key, other, second)

    assert kept is not None
    assert refused is None
    assert await read(store, key) == body


async def test_an_aborted_upload_is_gone(store: ObjectStore, sender: Sender, key: str) -> None:
    body = secrets.token_bytes(PART + 1)
    upload = await plan(store, key, body)
    await sender.send(upload.requests[0], body[:PART])

    await store.abort_upload(key, upload_id=upload.upload_id)
    late = await sender.send(upload.requests[1], body[PART:])
    await store.abort_upload(key, upload_id=upload.upload_id)

    assert late.status_code == 404
    assert await finish(store, key, body, upload) is None
    assert await store.head(key) is None


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_upload_in_parts_needs_a_hash_for_each(store: ObjectStore, key: str, count: int) -> None:
    with pytest.raises(InvalidInput, match=f"expected 2 hashes, of parts of {PART} bytes, found {count}"):
        await store.plan_upload(
            key,
            size=PART + 1,
            sha256=sha256(b""),
            parts=[sha256(b"")] * count,
            media_type="image/png",
            expires=SECOND,
        )


async def test_what_never_came_is_not_finished(store: ObjectStore, key: str) -> None:
    upload = await plan(store, key, BODY)

    assert await finish(store, key, BODY, upload) is None
    assert await store.head(key) is None


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, BODY[:4], f"bytes 0-3/{len(BODY)}"),
        ("bytes=10-", 206, BODY[10:], f"bytes 10-{len(BODY) - 1}/{len(BODY)}"),
        ("bytes=-5", 206, BODY[-5:], f"bytes {len(BODY) - 5}-{len(BODY) - 1}/{len(BODY)}"),
        (f"bytes=0-{len(BODY) * 2}", 206, BODY, f"bytes 0-{len(BODY) - 1}/{len(BODY)}"),
        (f"bytes={len(BODY)}-", 416, None, f"bytes */{len(BODY)}"),
    ],
)
async def test_ranges(
    store: ObjectStore,
    sender: Sender,
    key: str,
    asked: str,
    status: int,
    content: bytes | None,
    content_range: str,
) -> None:
    await stored(store, sender, key)

    answer = await sender.get(await link(store, key), Range=asked)

    assert (answer.status_code, answer.headers["content-range"]) == (status, content_range)
    assert content is None or answer.content == content


async def test_what_was_deleted_is_gone(store: ObjectStore, sender: Sender, key: str) -> None:
    await stored(store, sender, key)
    await stored(store, sender, f"{key}x")
    url = await link(store, key)

    await store.delete([key, f"{key}y"])
    await store.delete([key])
    await store.delete([])

    assert await store.head(key) is None
    assert (await sender.get(url)).status_code == 404
    assert await read(store, f"{key}x") == BODY


async def test_many_are_deleted_at_once(store: ObjectStore, key: str) -> None:
    keys = [f"{key}-{number}" for number in range(1_001)]
    await store.put(keys[0], BODY, media_type="text/plain")
    await store.put(keys[-1], BODY, media_type="text/plain")

    await store.delete(keys)

    assert await store.head(keys[0]) is None
    assert await store.head(keys[-1]) is None


async def test_the_server_itself_puts_and_replaces(store: ObjectStore, sender: Sender, key: str) -> None:
    await store.put(key, b"first", media_type="text/plain")
    await store.put(key, BODY, media_type="application/json")

    found = await store.head(key)

    assert found is not None
    assert (found.size, found.media_type, found.sha256) == (len(BODY), "application/json", sha256(BODY))
    assert await read(store, key) == BODY


async def test_reading_what_is_not_there_says_so(store: ObjectStore, sender: Sender, key: str) -> None:
    with pytest.raises(NotFound):
        await read(store, key)
    assert (await sender.get(await link(store, key))).status_code == 404


@pytest.mark.parametrize(
    ("media_type", "inline", "content_type", "kind"),
    [
        ("image/png", True, "image/png", "inline"),
        ("IMAGE/PNG; name=x", True, "image/png", "inline"),
        ("image/png", False, "image/png", "attachment"),
        ("text/plain", True, "text/plain; charset=utf-8", "inline"),
        ("application/json", True, "application/json", "attachment"),
        ("text/html", True, "application/octet-stream", "attachment"),
        ("text/html;charset=utf-7", True, "application/octet-stream", "attachment"),
        ("image/svg+xml", True, "application/octet-stream", "attachment"),
        ("application/pdf", True, "application/octet-stream", "attachment"),
        ("image/png\r\nX-Evil: 1", True, "application/octet-stream", "attachment"),
        ("image/png,text/html", True, "application/octet-stream", "attachment"),
        ("", True, "application/octet-stream", "attachment"),
        ("a" * 300 + "/b", True, "application/octet-stream", "attachment"),
    ],
)
async def test_only_what_cannot_run_is_shown_in_place(
    store: ObjectStore, sender: Sender, key: str, media_type: str, inline: bool, content_type: str, kind: str
) -> None:
    upload = await plan(store, key, BODY, media_type=media_type)
    assert (await sender.send(upload.requests[0], BODY)).is_success

    answer = await sender.get(await link(store, key, media_type=media_type, inline=inline))

    assert (answer.status_code, answer.headers["content-type"].lower()) == (200, content_type)
    assert answer.headers["content-disposition"].startswith(f"{kind}; ")
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("filename", "disposition"),
    [
        ("render.png", "attachment; filename=\"render.png\"; filename*=UTF-8''render.png"),
        ('a"b.png', "attachment; filename=\"a_b.png\"; filename*=UTF-8''a%22b.png"),
        ("a\r\nSet-Cookie: x=1", "attachment; filename=\"aSet-Cookie: x=1\"; filename*=UTF-8''aSet-Cookie%3A%20x%3D1"),
        ("\u202egnp.exe", "attachment; filename=\"gnp.exe\"; filename*=UTF-8''gnp.exe"),
        ("../../etc/passwd", "attachment; filename=\"passwd\"; filename*=UTF-8''passwd"),
        ("Größe 1%.png", "attachment; filename=\"Gr__e 1_.png\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe%201%25.png"),
        ("\0", "attachment; filename=\"file\"; filename*=UTF-8''file"),
        ("n" * 300 + ".png", f"attachment; filename=\"{'n' * 251}.png\"; filename*=UTF-8''{'n' * 251}.png"),
    ],
)
async def test_hostile_names_become_names(
    store: ObjectStore, sender: Sender, key: str, filename: str, disposition: str
) -> None:
    await stored(store, sender, key)

    answer = await sender.get(await link(store, key, filename=filename))

    assert (answer.status_code, answer.headers["content-disposition"]) == (200, disposition)
    assert "set-cookie" not in answer.headers


def tampered(url: str) -> str:
    """The link with another character in the middle of its signature, which comes last."""
    place = len(url) - 20
    return url[:place] + ("0" if url[place] != "0" else "1") + url[place + 1 :]


def parts(body: bytes) -> list[bytes]:
    return [body[start : start + PART] for start in range(0, len(body), PART)]

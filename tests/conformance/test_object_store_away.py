"""A store that is away says so in time, in its own words, and works again when it is back."""

import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.domain.errors import StorageUnavailable
from app.services.ports import ObjectStore
from app.storage.local import LocalStore
from app.storage.s3 import S3Options, open_s3
from tests.servers import S3Config
from tests.stores import KEYS, MINUTE, PART, Now, Relay, link, plan, sha256

BODY = b"sixteen letters." * 1000
KEY = "teams/1/uploads/2"
UPLOAD = "0123456789abcdef" * 2


@pytest.fixture
async def relay(bucket: S3Config) -> AsyncIterator[tuple[Relay, S3Options]]:
    """An address in front of the S3 server, and hasty options that lead through it."""
    address = urlsplit(bucket.endpoint)
    relay = Relay(str(address.hostname), int(address.port or 0))
    options = S3Options(
        **asdict(bucket) | {"endpoint": f"http://{await relay.start()}"},
        part_size=PART,
        connect_timeout=0.5,
        read_timeout=0.5,
        deadline=1.0,
    )
    yield relay, options
    await relay.refuse()


@pytest.fixture(params=["disk gone", "silent", "refusing"])
async def away(
    request: pytest.FixtureRequest, tmp_path: Path, relay: tuple[Relay, S3Options]
) -> AsyncIterator[ObjectStore]:
    """An open store that has just gone away."""
    if request.param == "disk gone":
        store = LocalStore(tmp_path / "files", "http://unused", KEYS, Now(), part_size=PART)
        shutil.rmtree(tmp_path / "files")
        yield store
        return
    between, options = relay
    async with open_s3(options) as s3_store:
        if request.param == "silent":
            between.silence()
        else:
            await between.refuse()
        yield s3_store


async def test_every_call_ends_in_time_with_one_refusal(away: ObjectStore) -> None:
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "plan parts": lambda: plan(away, KEY, b"x" * (PART + 1)),
        "finish": lambda: away.finish_upload(KEY, upload_id="", size=1, sha256=sha256(b"x"), parts=[]),
        "finish parts": lambda: away.finish_upload(
            KEY, upload_id=UPLOAD, size=PART + 1, sha256=sha256(b"x"), parts=[sha256(b"x")] * 2
        ),
        "head": lambda: away.head(KEY),
        "put": lambda: away.put(KEY, BODY, media_type="text/plain"),
        "open": lambda: anext(away.open(KEY)),
        "abort": lambda: away.abort_upload(KEY, upload_id=UPLOAD),
        "delete": lambda: away.delete([KEY]),
    }
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await call()
        assert time.monotonic() - began < 3, name


async def test_a_store_that_is_back_works_again(relay: tuple[Relay, S3Options]) -> None:
    between, options = relay
    async with open_s3(options) as store:
        await store.put(KEY, BODY, media_type="text/plain")
        between.silence()
        with pytest.raises(StorageUnavailable):
            await store.head(KEY)

        between.silence(on=False)

        found = await store.head(KEY)
        assert found is not None
        assert found.size == len(BODY)


async def test_links_are_signed_without_the_store(relay: tuple[Relay, S3Options]) -> None:
    between, options = relay
    async with open_s3(options) as store:
        await between.refuse()

        assert (await link(store, KEY)).startswith(options.endpoint)
        assert len((await plan(store, KEY, BODY)).requests) == 1


async def test_a_store_that_never_answers_is_not_opened(relay: tuple[Relay, S3Options]) -> None:
    between, options = relay
    between.silence()
    began = time.monotonic()

    with pytest.raises(StorageUnavailable, match="does not answer"):
        async with open_s3(options):
            pass

    assert time.monotonic() - began < 3


async def test_a_missing_bucket_is_named_or_made(bucket: S3Config) -> None:
    options = replace(S3Options(**asdict(bucket)), bucket=f"{bucket.bucket[:40]}-new")

    with pytest.raises(StorageUnavailable, match=f"the bucket '{options.bucket}' at {bucket.endpoint} does not exist"):
        async with open_s3(options):
            pass
    async with open_s3(options, create=True) as store:
        await store.put(KEY, BODY, media_type="text/plain")
    async with open_s3(options, create=True) as again:
        assert await again.head(KEY) is not None


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
async def test_keys_that_do_not_open_the_bucket_are_named(bucket: S3Config, wrong: str) -> None:
    options = S3Options(**asdict(bucket) | {wrong: "x" * 20})

    with pytest.raises(StorageUnavailable, match="does not open to these keys"):
        async with open_s3(options):
            pass


async def test_clients_and_agents_get_links_to_addresses_they_know(bucket: S3Config) -> None:
    options = S3Options(
        **asdict(bucket), public_endpoint="https://files.example.com", agent_endpoint="http://10.0.0.1:9000"
    )
    async with open_s3(options) as store:
        upload = await plan(store, KEY, BODY)
        internal = await store.sign_get(
            KEY, expires=MINUTE, filename="a", media_type="image/png", inline=False, internal=True
        )

        assert upload.requests[0].url.startswith(f"https://files.example.com/{bucket.bucket}/{KEY}?")
        assert (await link(store, KEY)).startswith(f"https://files.example.com/{bucket.bucket}/{KEY}?")
        assert internal.startswith(f"http://10.0.0.1:9000/{bucket.bucket}/{KEY}?")


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageUnavailable, match="the file store does not work"):
        LocalStore(tmp_path / "file", "http://unused", KEYS, Now())

"""Files that would like to be programs, opened in a real browser: nothing in them runs, in our origin or elsewhere."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from playwright.async_api import Browser, Page, async_playwright

from app.domain.output import upload_key
from app.storage.local import LocalStore
from tests.stores import FileHost, Now, Sender, link, plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

SCRIPT = b"<script>document.title = 'ran'; fetch('/ran')</script>"
HTML = b"<!doctype html><html><body>" + SCRIPT + b"</body></html>"
SVG = b"<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"document.title='ran';fetch('/ran')\">" + SCRIPT + b"</svg>"
# An image's first bytes before a page, to whoever decides by magic numbers or by looking further.
POLYGLOT = b"GIF89a/*" + HTML + b"*/=1;"
UTF7 = b"+ADw-script+AD4-document.title='ran'+ADw-/script+AD4-"


@pytest.fixture(scope="module")
async def host() -> AsyncIterator[FileHost]:
    async with FileHost() as host:
        yield host


@pytest.fixture
def store(host: FileHost, tmp_path: Path) -> LocalStore:
    return host.store(tmp_path / "files", Now())


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context(accept_downloads=True)
    yield await context.new_page()
    await context.close()


@pytest.fixture
def asked(page: Page) -> list[str]:
    """Every address that the page asked for."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url))
    return found


async def stored(store: LocalStore, body: bytes, media_type: str, name: str) -> str:
    key = upload_key(uuid4(), uuid4())
    upload = await plan(store, key, body, media_type=media_type)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await Sender(http).send(upload.requests[0], body)).status_code == 201
    return await link(store, key, filename=name, media_type=media_type, inline=True)


@pytest.mark.parametrize(
    ("body", "media_type", "name"),
    [
        (HTML, "text/html", "report.html"),
        (HTML, "application/xhtml+xml", "report.xhtml"),
        (SVG, "image/svg+xml", "picture.svg"),
        (HTML, "application/pdf", "paper.pdf"),
        (HTML, "application/octet-stream", "anything"),
        (HTML, "text/html;charset=utf-7", "a.html"),
    ],
)
async def test_what_could_run_is_downloaded(
    page: Page, asked: list[str], store: LocalStore, body: bytes, media_type: str, name: str
) -> None:
    url = await stored(store, body, media_type, name)

    async with page.expect_download() as download:
        await page.evaluate("url => { location.href = url }", url)

    saved = await (await download.value).path()
    assert (await download.value).suggested_filename == name
    assert Path(saved).read_bytes() == body
    assert await page.title() != "ran"
    assert asked == [url]


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (HTML, "image/png"),
        (POLYGLOT, "image/gif"),
        (SVG, "image/webp"),
        (HTML, "text/plain"),
        (UTF7, "text/plain;charset=utf-7"),
        (HTML, "video/mp4"),
    ],
)
async def test_what_is_shown_in_place_does_not_run(
    page: Page, asked: list[str], store: LocalStore, body: bytes, media_type: str
) -> None:
    url = await stored(store, body, media_type, "picture")

    answer = await page.goto(url)

    assert answer is not None
    assert answer.status == 200
    assert await page.title() != "ran"
    assert not [address for address in asked if address.endswith("/ran")]


async def test_a_page_of_ours_that_frames_or_loads_a_file_runs_nothing_of_it(
    page: Page, asked: list[str], host: FileHost, store: LocalStore
) -> None:
    framed = await stored(store, HTML, "image/png", "picture.png")
    loaded = await stored(store, b"fetch('/ran')", "text/plain", "program.txt")
    await page.goto(host.url)

    outcome = await page.evaluate(
        """async ([framed, loaded]) => {
            const done = (element) => new Promise((resolve) => {
                element.onload = () => resolve("load"); element.onerror = () => resolve("error")
                document.body.append(element)
            })
            const frame = document.createElement("iframe"); frame.src = framed
            const script = document.createElement("script"); script.src = loaded
            return [await done(frame), await done(script)]
        }""",
        [framed, loaded],
    )

    assert outcome == ["load", "error"]
    assert not [address for address in asked if address.endswith("/ran")]

"""The pages of our own origin in a real browser: sign in, the explorer, and nothing asked of anybody else."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from app.interfaces.web import pages
from app.process import Running, serving
from app.services.tasks import Submit
from app.settings import load
from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

EMAIL, PASSWORD = "ann@example.org", "a long password"


@dataclass(frozen=True)
class Visit:
    """One browser with its server; `foreign` and `errors` are what must stay empty."""

    page: Page
    running: Running
    foreign: list[str]
    errors: list[str]

    async def first_run(self) -> None:
        """Make the owner by the one-time link that `runyard serve` prints."""
        await self.page.goto(await self.running.app.first_run_link() or "")
        form = self.page.locator("#first-run")
        await form.get_by_label("E-mail").fill(EMAIL)
        await form.get_by_label("Your name").fill("Ann")
        await form.get_by_label("Password").fill(PASSWORD)
        await form.get_by_label("Team").fill("Acme")
        await form.get_by_role("button").click()
        await expect(self.page.locator("#signed-in")).to_be_visible()

    async def execute(self, shown: str, answer: str) -> None:
        """Run the document that the editor shows, until the result has `answer`: the explorer reads it with a delay."""
        await expect(self.page.locator(".graphiql-query-editor")).to_contain_text(shown, timeout=20_000)

        async def answered() -> bool:
            await self.page.get_by_role("button", name="Execute query (Ctrl-Enter)").click()
            with contextlib.suppress(AssertionError):
                await expect(self.page.locator(".graphiql-response")).to_contain_text(answer, timeout=2_000)
                return True
            return False

        await until(answered, within=20, what=f"{shown} answers {answer}")

    async def submit(self) -> UUID:
        """A task of the owner's team, as somebody else would submit it."""
        services = self.running.app.services
        signed_in = await services.accounts.sign_in(email=EMAIL, password=PASSWORD, client="", user_agent="test")
        (team,) = await services.teams.mine(signed_in.viewer)
        await services.workflows.create(signed_in.viewer, team.id, WORKFLOW)
        return (await services.tasks.submit(signed_in.viewer, team.id, Submit(workflow="hello"))).id


WORKFLOW = {
    "slug": "hello",
    "name": "Hello",
    "description": "",
    "runtime": "command",
    "definition": {"command": "hello"},
    "parameters": [],
    "labels": [],
    "timeout": 0,
    "queueTimeout": None,
    "retry": {"max": 0, "on": []},
}


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def visit(browser: Browser, database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Visit]:
    settings = load({"database_url": database_url, "redis_url": redis_url, "data_dir": tmp_path, "port": 0})
    async with serving(settings, stop=asyncio.Event()) as running:
        context = await browser.new_context()
        page = await context.new_page()
        foreign: list[str] = []
        errors: list[str] = []
        own = urlsplit(running.url).netloc

        def note(url: str) -> None:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != own:
                foreign.append(url)

        page.on("request", lambda request: note(request.url))
        page.on("websocket", lambda socket: note(socket.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield Visit(page, running, foreign, errors)
        await context.close()


async def test_the_first_run_link_makes_the_owner_and_signs_in(visit: Visit) -> None:
    await visit.first_run()

    await expect(visit.page.locator("#who")).to_have_text(f"Ann <{EMAIL}>")
    await expect(visit.page.locator("#teams")).to_have_text("Acme (acme): owner")
    assert urlsplit(visit.page.url).fragment == ""
    assert visit.foreign == []
    assert visit.errors == []


async def test_a_password_signs_in_and_signing_out_ends_it(visit: Visit) -> None:
    await visit.first_run()
    await visit.page.get_by_role("button", name="Sign out").click()
    form = visit.page.locator("#sign-in")
    await expect(form).to_be_visible()

    await form.get_by_label("E-mail").fill(EMAIL)
    await form.get_by_label("Password").fill("a wrong password")
    await form.get_by_role("button").click()

    await expect(visit.page.get_by_role("alert")).to_contain_text("the e-mail address or the password is wrong")
    await form.get_by_label("Password").fill(PASSWORD)
    await form.get_by_role("button").click()
    await expect(visit.page.locator("#signed-in")).to_be_visible()
    await visit.page.reload()
    await expect(visit.page.locator("#signed-in")).to_be_visible()


async def test_a_one_time_link_signs_in_once(visit: Visit) -> None:
    await visit.first_run()
    await visit.page.get_by_role("button", name="Sign out").click()
    link = f"{visit.running.url}/#sign-in={await visit.running.app.services.accounts.sign_in_link(EMAIL)}"

    await visit.page.goto(link)

    await expect(visit.page.locator("#signed-in")).to_be_visible()
    await visit.page.get_by_role("button", name="Sign out").click()
    await visit.page.goto(f"{visit.running.url}/assets/icon.svg")
    await visit.page.goto(link)
    await expect(visit.page.get_by_role("alert")).to_contain_text("has been used")


@pytest.mark.skipif(not pages.built(), reason="the explorer's bundle is not built")
async def test_the_explorer_runs_a_query_and_follows_a_subscription(visit: Visit) -> None:
    await visit.first_run()
    await visit.page.get_by_role("link", name="Open the explorer").click()
    result = visit.page.locator(".graphiql-response")

    await visit.execute("query Viewer", EMAIL)
    await visit.page.get_by_role("tab", name="TasksChanged").click()
    await visit.execute("subscription TasksChanged", '"resync": true')
    task_id = await visit.submit()

    await expect(result).to_contain_text(f"task_{task_id}", timeout=10_000)
    assert visit.foreign == []
    assert [error for error in visit.errors if "Content Security Policy" in error] == []


@pytest.mark.skipif(not pages.built(), reason="the explorer's bundle is not built")
async def test_the_explorer_keeps_no_token(visit: Visit) -> None:
    await visit.first_run()

    await visit.page.goto(f"{visit.running.url}/graphql")
    await expect(visit.page.get_by_role("button", name="Execute query (Ctrl-Enter)")).to_be_visible(timeout=20_000)

    kept = await visit.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "rs-" not in kept
    assert "runyard=" not in kept


@pytest.mark.skipif(not pages.built(), reason="the explorer's bundle is not built")
async def test_pages_carry_a_strict_policy_and_no_inline_script(visit: Visit) -> None:
    for path in ("/", "/graphql"):
        answer = await visit.page.goto(f"{visit.running.url}{path}")

        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in f"{policy};"
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"

"""What the demo needs before its first task: an owner with a team, the example workflow, and a key for the agent."""

import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from app.domain.credential import KeyKind
from app.domain.ids import Kind, encode
from app.process import Running
from app.services.access import Viewer
from app.services.bundle import Services
from app.services.credentials import CredentialWish

HERE = Path(__file__).parent
AGENT = "demo-agent"
KEY = "demo agent"
OWNER = "owner@demo.example"


@dataclass(frozen=True, slots=True)
class Scene:
    """Global ids and secrets: `token` is the owner's session, `link` signs a browser in once."""

    team_id: str
    workflow: str
    token: str
    link: str
    agent_key: str
    agent_config: Path


async def prepare(running: Running) -> Scene:
    """Make what is missing; what an earlier demo made is used again, with a fresh session and a fresh key."""
    services = running.app.services
    opened = await services.accounts.open_demo(
        email=OWNER, name="Demo owner", team_name="Demo", user_agent="runyard demo"
    )
    viewer, team_id = opened.signed_in.viewer, opened.team.id
    document = json.loads((HERE / "workflow.json").read_text())
    workflow = await services.workflows.import_(viewer, team_id, document)
    return Scene(
        team_id=encode(Kind.TEAM, team_id),
        workflow=workflow.slug,
        token=opened.signed_in.token,
        link=opened.link,
        agent_key=await _agent_key(services, viewer, team_id),
        agent_config=HERE / "agent.toml",
    )


async def _agent_key(services: Services, viewer: Viewer, team_id: UUID) -> str:
    for old in await services.credentials.page(viewer, team_id, kind=KeyKind.AGENT, after=None, limit=100):
        if old.name == KEY and old.revoked_at is None:
            await services.credentials.revoke(viewer, old.id)
    made = await services.credentials.create(viewer, team_id, CredentialWish(kind=KeyKind.AGENT, name=KEY))
    if made.key is None:
        raise RuntimeError("a new key comes with its text")
    return made.key

"""What each mutation is given so that nothing but the caller's rights can stop it.

Every factory makes the thing that its mutation changes: each cell of the matrix has a party of its own, and no cell
takes away what another one needs.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from app.domain.ids import Kind, encode
from app.domain.people import Role
from app.persistence import teams
from app.services.access import Viewer
from app.services.accounts import Redemption
from tests.security.authorization_world import SESSIONS, Party

Input = dict[str, Any]
Factory = Callable[["Cell"], Awaitable[Input]]
Calls = Callable[[Party], Awaitable[list[Input]]]

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Cell:
    """One mutation by one caller; `user` is the person behind it."""

    party: Party
    user: UUID
    elsewhere: Party  # another team, whose members none of the callers are

    async def self(self) -> Viewer:
        """The person itself, where a thing must be its own."""
        roles = await teams.roles(self.user)
        if self.party.team not in roles:
            return self.party.owner
        return Viewer.person(self.user, roles, session_id=uuid4())


async def _sign_in(cell: Cell) -> Input:
    user = await cell.elsewhere.person(None)
    email = f"{uuid4().hex}@x.test"
    await cell.party.doors.admin.execute("UPDATE user_account SET email = $2 WHERE id = $1", user, email)
    accounts = cell.party.doors.services.accounts
    await accounts.redeem_link(await accounts.reset_link(email), Redemption(password=PASSWORD), user_agent="matrix")
    return {"email": email, "password": PASSWORD}


async def _redeem_link(cell: Cell) -> Input:
    email = await cell.party.doors.admin.fetchval(
        "SELECT email FROM user_account WHERE id = $1", await cell.elsewhere.person(None)
    )
    return {"token": await cell.party.doors.services.accounts.sign_in_link(email)}


async def _accept(cell: Cell) -> Input:
    return {"token": (await cell.elsewhere.invitation())[1], "name": "New", "password": PASSWORD}


async def _pool(cell: Cell) -> Input:
    settings = {"config": "none"}
    return {"teamId": cell.party.team_id, "name": "New", "provisioner": "LOCAL", "settings": settings, "enabled": False}


async def _transfer(cell: Cell) -> Input:
    return {"teamId": cell.party.team_id, "memberId": await cell.party.member(Role.ADMIN)}


async def _restore(cell: Cell) -> Input:
    workflow = await cell.party.workflow()
    changes = {"definition": {"command": "other"}}
    await cell.party.doors.services.workflows.update(cell.party.owner, workflow, changes)
    return {"workflowId": encode(Kind.WORKFLOW, workflow), "number": 1}


async def _unarchive(cell: Cell) -> Input:
    workflow = await cell.party.workflow()
    await cell.party.doors.services.workflows.archive(cell.party.owner, workflow)
    return {"workflowId": encode(Kind.WORKFLOW, workflow)}


async def _own_task(cell: Cell) -> str:
    """A task of the caller itself where it may have one, else of the owner."""
    viewer = await cell.self()
    return encode(Kind.TASK, await cell.party.task(viewer if _runs(viewer, cell) else None))


def _runs(viewer: Viewer, cell: Cell) -> bool:
    return viewer.roles.get(cell.party.team) not in (None, Role.VIEWER)


async def _run(cell: Cell) -> Input:
    return {"teamId": cell.party.team_id, "workflow": encode(Kind.WORKFLOW, await cell.party.workflow())}


async def _agent(cell: Cell, **more: Any) -> Input:
    return {"agentId": encode(Kind.AGENT, await cell.party.agent()), **more}


async def _paused(cell: Cell) -> Input:
    agent = await cell.party.agent()
    await cell.party.doors.services.agents.pause(cell.party.owner, agent)
    return {"agentId": encode(Kind.AGENT, agent)}


async def _session(cell: Cell) -> Input:
    return {"sessionId": encode(Kind.SESSION, (await SESSIONS.open(cell.user, "matrix")).session.id)}


def _team(**more: Any) -> Factory:
    async def make(cell: Cell) -> Input:
        return {"teamId": cell.party.team_id, **more}

    return make


def _given(**given: Any) -> Factory:
    async def make(cell: Cell) -> Input:
        return given

    return make


def _workflow(**more: Any) -> Factory:
    async def make(cell: Cell) -> Input:
        return {"workflowId": encode(Kind.WORKFLOW, await cell.party.workflow()), **more}

    return make


async def _member(cell: Cell) -> Input:
    return {"memberId": await cell.party.member()}


async def _role(cell: Cell) -> Input:
    return {"memberId": await cell.party.member(), "role": "VIEWER"}


async def _upload(cell: Cell) -> Input:
    return {"uploadId": encode(Kind.UPLOAD, await cell.party.upload())}


async def _invitation(cell: Cell) -> Input:
    return {"invitationId": (await cell.party.invitation())[0]}


async def _credential(cell: Cell) -> Input:
    return {"credentialId": encode(Kind.CREDENTIAL, await cell.party.credential())}


async def _some_pool(cell: Cell) -> Input:
    return {"poolId": encode(Kind.POOL, await cell.party.pool())}


async def _task(cell: Cell) -> Input:
    return {"taskId": await _own_task(cell)}


async def _tasks(cell: Cell) -> Input:
    return {"taskIds": [await _own_task(cell)]}


async def _runs_of(cell: Cell) -> Input:
    return {"tasks": [await _run(cell)]}


FILE = {"name": "in.png", "mediaType": "image/png", "size": 9, "sha256": "0" * 64}
WORKFLOW = {"slug": "new", "runtime": "COMMAND", "definition": {"command": "work"}}

INPUTS: dict[str, Factory] = {
    "signIn": _sign_in,
    "signOut": _given(),
    "redeemLink": _redeem_link,
    "updateProfile": _given(name="New"),
    "changePassword": _given(newPassword=PASSWORD),
    "revokeSession": _session,
    "createTeam": _given(name="New"),
    "updateTeam": _team(name="New"),
    "inviteMember": _team(email="new@x.test"),
    "withdrawInvitation": _invitation,
    "acceptInvitation": _accept,
    "changeMemberRole": _role,
    "removeMember": _member,
    "leaveTeam": _team(),
    "transferTeam": _transfer,
    "createResetLink": _member,
    "createCredential": _team(kind="INTEGRATION", name="New", scopes=["READ"]),
    "revokeCredential": _credential,
    "createWorkflow": _team(**WORKFLOW),
    "updateWorkflow": _workflow(name="New"),
    "restoreWorkflowVersion": _restore,
    "archiveWorkflow": _workflow(),
    "unarchiveWorkflow": _unarchive,
    "setWorkflowActive": _workflow(active=False),
    "beginUpload": _team(**FILE),
    "completeUpload": _upload,
    "submitTask": _run,
    "submitTasks": _runs_of,
    "cancelTasks": _tasks,
    "cancelTasksByFilter": _team(filter={}),
    "rerunTask": _task,
    "pauseAgent": _agent,
    "resumeAgent": _paused,
    "drainAgent": _agent,
    "removeAgent": lambda cell: _agent(cell, force=True),
    "createPool": _pool,
    "updatePool": _some_pool,
    "deletePool": _some_pool,
}
"""By mutation. One that is not here fails the matrix with its name."""


async def _twice(party: Party) -> list[Input]:
    return [{"name": name, "idempotencyKey": "once"} for name in ("One", "Two")]


async def _taken(party: Party) -> list[Input]:
    await party.workflow(slug="new")
    return [{"teamId": party.team_id, **WORKFLOW}]


async def _inactive(party: Party) -> list[Input]:
    workflow = await party.workflow()
    await party.doors.services.workflows.set_active(party.owner, workflow, False)
    return [{"teamId": party.team_id, "workflow": encode(Kind.WORKFLOW, workflow)}]


async def _unfit(party: Party) -> list[Input]:
    workflow = encode(Kind.WORKFLOW, await party.workflow())
    return [{"teamId": party.team_id, "workflow": workflow, "parameters": {"size": 1}}]


async def _unknown(party: Party) -> list[Input]:
    return [{"tasks": [{"teamId": party.team_id, "workflow": "unknown"}]}]


async def _held(party: Party) -> list[Input]:
    concurrency = {"key": "all", "limit": 1, "onCollision": "refuse"}
    workflow = encode(Kind.WORKFLOW, await party.workflow(concurrency=concurrency))
    return [{"teamId": party.team_id, "workflow": workflow}] * 2


async def _cluster(party: Party) -> list[Input]:
    settings = {"image": "runyard/agent"}
    return [{"teamId": party.team_id, "name": "New", "provisioner": "KUBERNETES", "settings": settings}]


def _always(*given: Input) -> Calls:
    async def make(party: Party) -> list[Input]:
        return list(given)

    return make


REFUSALS: dict[str, tuple[str, Calls]] = {
    "INVALID_INPUT": ("updateProfile", _always({"name": ""})),
    "LINK_EXPIRED": ("acceptInvitation", _always({"token": "none"})),
    "IDEMPOTENCY_CONFLICT": ("createTeam", _twice),
    "ALREADY_EXISTS": ("createWorkflow", _taken),
    "WRONG_STATE": ("submitTask", _inactive),
    "INVALID_PARAMETERS": ("submitTask", _unfit),
    "CONCURRENCY_LIMIT": ("submitTask", _held),
    "PROVISIONER_OFF": ("createPool", _cluster),
    "NOT_FOUND": ("submitTasks", _unknown),
}
"""By code: the mutation that an owner is refused with it, and the inputs of its calls, the last of which is refused."""

TYPES = {
    "agentId": "Agent",
    "credentialId": "Credential",
    "invitationId": "Invitation",
    "memberId": "Member",
    "poolId": "Pool",
    "sessionId": "Session",
    "submitterId": "User",
    "taskId": "Task",
    "taskIds": "Task",
    "team": "Team",
    "teamId": "Team",
    "uploadId": "Upload",
    "workflowId": "Workflow",
    "workflowIds": "Workflow",
    "bulkOperationChanged": "BulkOperation",
}
"""What an id is of, by the name of its argument or, where that is `id`, by its field."""

WITH: dict[tuple[str, str], Input] = {
    ("createCredential", "workflowIds"): {"kind": "AGENT", "scopes": None},
}
"""What else a mutation is given where it is given this id."""

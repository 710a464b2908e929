"""Every kind of caller of the graph, each in a team of its own, with one thing of every kind for them to ask for.

A `Party` is a team with one caller of each kind. What it owns is made by the services and by rows, so that no caller's
own right was needed to make it.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.domain.credential import KeyKind
from app.domain.file import FileRole
from app.domain.ids import Kind, encode
from app.domain.people import Role, Scope
from app.persistence import database, teams
from app.services.access import ROLE_GRANTS, SCOPE_GRANTS, Permission, Viewer
from app.services.credentials import CredentialWish
from app.services.sessions import OpenSessions
from app.services.submission import Submit
from tests.model.front_doors import Doors
from tests.viewers import key_of, make_owner, team_of

SESSIONS = OpenSessions(life=timedelta(days=1))


class Actor(StrEnum):
    """Who asks."""

    ANONYMOUS = "anonymous"
    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"
    OWNER = "owner"
    STRANGER = "owner of another team"
    FORMER = "ex-member"
    READ_KEY = "sk- key that reads"
    RUN_KEY = "sk- key that runs"
    CANCEL_KEY = "sk- key that cancels"
    MANAGE_KEY = "sk- key that manages"
    AGENT_KEY = "ak- key"
    REVOKED_KEY = "revoked sk- key"
    EXPIRED_KEY = "expired sk- key"


ROLES = {Actor.VIEWER: Role.VIEWER, Actor.MEMBER: Role.MEMBER, Actor.ADMIN: Role.ADMIN, Actor.OWNER: Role.OWNER}
SCOPES = {
    Actor.READ_KEY: Scope.READ,
    Actor.RUN_KEY: Scope.RUN,
    Actor.CANCEL_KEY: Scope.CANCEL,
    Actor.MANAGE_KEY: Scope.MANAGE,
}
KEYS = frozenset(SCOPES)
PEOPLE = frozenset({*ROLES, Actor.STRANGER, Actor.FORMER})
SHUT_OUT = frozenset({Actor.AGENT_KEY, Actor.REVOKED_KEY, Actor.EXPIRED_KEY})
"""What these show as their credential is refused before anything is looked at."""


def grants(actor: Actor) -> frozenset[Permission]:
    """What the caller may do in the party's team; empty for all who are not in it."""
    if actor in ROLES:
        return ROLE_GRANTS[ROLES[actor]]
    return SCOPE_GRANTS[SCOPES[actor]] if actor in SCOPES else frozenset()


@dataclass(kw_only=True)
class Party:
    """One team. `things` are global ids by the name of their type, some of which only `furnish` makes."""

    doors: Doors
    owner: Viewer
    slug: str
    things: dict[str, list[str]] = field(default_factory=dict)
    offer: str = ""  # the token of an open invitation

    @classmethod
    async def found(cls, doors: Doors) -> "Party":
        owner = await _found()
        team = await teams.get(team_of(owner))
        assert team is not None
        return cls(doors=doors, owner=owner, slug=team.slug)

    @property
    def team(self) -> UUID:
        return team_of(self.owner)

    @property
    def team_id(self) -> str:
        return encode(Kind.TEAM, self.team)

    async def person(self, role: Role | None) -> UUID:
        """Somebody with this role in the team, or in no team."""
        name = f"{uuid4().hex}@x.test"
        [row] = await database.rows("INSERT INTO user_account (email, name) VALUES ($1, $1) RETURNING id", name)
        if role is not None:
            await teams.join(self.team, row["id"], role)
        return UUID(str(row["id"]))

    async def member(self, role: Role = Role.MEMBER) -> str:
        """The global id of a new membership."""
        membership = await teams.membership(self.team, await self.person(role))
        assert membership is not None
        return encode(Kind.MEMBER, membership.id)

    async def caller(self, actor: Actor) -> tuple[UUID, str | None]:
        """A new caller of this kind: the person behind it, and the token that it shows."""
        if actor in PEOPLE:
            user = await self._user(actor)
            return user, (await SESSIONS.open(user, "matrix")).token
        return self.owner.user_id, None if actor is Actor.ANONYMOUS else await self._key(actor)

    async def _user(self, actor: Actor) -> UUID:
        if actor is Actor.OWNER:
            return self.owner.user_id
        if actor is Actor.STRANGER:
            return (await _found()).user_id
        user = await self.person(ROLES.get(actor, Role.ADMIN))
        if actor is Actor.FORMER:
            membership = await teams.membership(self.team, user)
            assert membership is not None
            await teams.leave(membership.id)
        return user

    async def _key(self, actor: Actor) -> str:
        kind = KeyKind.AGENT if actor is Actor.AGENT_KEY else KeyKind.INTEGRATION
        scopes = () if kind is KeyKind.AGENT else (SCOPES.get(actor, Scope.MANAGE),)
        credentials = self.doors.services.credentials
        made = await credentials.create(self.owner, self.team, CredentialWish(kind=kind, name="K", scopes=scopes))
        if actor is Actor.REVOKED_KEY:
            await credentials.revoke(self.owner, made.credential.id)
        if actor is Actor.EXPIRED_KEY:
            await self.doors.admin.execute(
                "UPDATE credential SET expires_at = app_now() - interval '1 day' WHERE id = $1", made.credential.id
            )
        assert made.key is not None
        return made.key

    # Things

    async def workflow(self, **changes: Any) -> UUID:
        document = {**WORKFLOW, "slug": f"w-{uuid4().hex[:12]}", **changes}
        return (await self.doors.services.workflows.create(self.owner, self.team, document)).id

    async def task(self, by: Viewer | None = None, *, workflow: UUID | None = None) -> UUID:
        wanted = Submit(workflow=encode(Kind.WORKFLOW, workflow or await self.workflow()), queue_timeout=3600.0)
        return (await self.doors.services.tasks.submit(by or self.owner, self.team, wanted)).id

    async def agent(self, *, alive: bool = True) -> UUID:
        [row] = await database.rows(_AGENT, self.team, uuid4().hex)
        await database.rows(_SESSION, row["id"], self.team, alive)
        return UUID(str(row["id"]))

    async def pool(self, **changes: Any) -> UUID:
        document = {"name": uuid4().hex, "provisioner": "local", "settings": {"config": "none"}, "enabled": False}
        return (await self.doors.services.pools.create(self.owner, self.team, {**document, **changes})).id

    async def credential(self) -> UUID:
        wish = CredentialWish(kind=KeyKind.INTEGRATION, name="K", scopes=[Scope.READ], expires_in_days=9)
        return (await self.doors.services.credentials.create(self.owner, self.team, wish)).credential.id

    async def invitation(self) -> tuple[str, str]:
        """The global id of an open invitation, and its token."""
        made = await self.doors.services.invitations.invite(
            self.owner, self.team, email=f"{uuid4().hex}@x.test", role=Role.MEMBER
        )
        assert made.token is not None
        return encode(Kind.INVITATION, made.invitation.id), made.token

    async def upload(self) -> UUID:
        [row] = await database.rows(_UPLOAD, self.team, self.owner.user_id, b"\0" * 32)
        return UUID(str(row["id"]))

    async def furnish(self) -> "Party":
        """One of everything."""
        agent, pool, upload = await self.agent(), await self.pool(labels=["nowhere"], enabled=True), await self.upload()
        gone, closed, archived = await self.agent(), await self.pool(), await self.workflow()
        await self.doors.admin.execute(_GONE, gone)
        await self.doors.admin.execute(_CLOSED, closed)
        await self.doors.services.workflows.archive(self.owner, archived)
        waiting, ended, done = await self._tasks(agent)
        unlimited = await self.task(workflow=await self.workflow(concurrency=None))
        files = [await database.rows(_FILE, self.team, done, b"\0" * 32, role) for role in FileRole]
        output = files[0][0]["id"]
        [launch] = await database.rows(_LAUNCH, self.team, pool, agent)
        [bulk] = await database.rows(_BULK, self.team, self.owner.user_id)
        key, session = await self.credential(), await SESSIONS.open(self.owner.user_id, "matrix")
        await self.doors.admin.execute(_PIN, key)
        invitation, self.offer = await self.invitation()
        await self._events(ended, output, agent)
        membership = await teams.membership(self.team, self.owner.user_id)
        assert membership is not None
        row = await self.doors.admin.fetchrow(_WORKFLOW_OF, ended)
        self.things = {
            "Team": [self.team_id],
            "User": [encode(Kind.USER, self.owner.user_id)],
            "Member": [encode(Kind.MEMBER, membership.id)],
            "Invitation": [invitation],
            "Session": [encode(Kind.SESSION, session.session.id)],
            "Credential": [encode(Kind.CREDENTIAL, key)],
            "Workflow": [encode(Kind.WORKFLOW, id) for id in (row["workflow_id"], archived)],
            "WorkflowVersion": [encode(Kind.WORKFLOW_VERSION, row["version_id"])],
            "Task": [encode(Kind.TASK, id) for id in (ended, waiting, done, unlimited)],
            "Agent": [encode(Kind.AGENT, id) for id in (agent, gone)],
            "Output": [encode(Kind.OUTPUT, output)],
            "Upload": [encode(Kind.UPLOAD, upload)],
            "BulkOperation": [encode(Kind.BULK_OPERATION, bulk["id"])],
            "Pool": [encode(Kind.POOL, id) for id in (pool, closed)],
            "Launch": [encode(Kind.LAUNCH, launch["id"])],
        }
        return self

    async def mark(self, canary: str) -> None:
        """Put the canary into what the team's people and agents have written, as far as it can be changed."""
        for table, columns in _TEXTS.items():
            texts = ", ".join(f"{column} = $2::text || id::text" for column in columns)
            await self.doors.admin.execute(f"UPDATE {table} SET {texts} WHERE team_id = $1", self.team, canary)
        for table, id in (("team", self.team), ("user_account", self.owner.user_id)):
            await self.doors.admin.execute(f"UPDATE {table} SET name = $2::text || id::text WHERE id = $1", id, canary)

    async def _tasks(self, agent: UUID) -> tuple[UUID, UUID, UUID]:
        """One that waits, one that repeated it and has failed, and one that has completed."""
        workflow = await self.workflow(slug="shown")
        waiting = await self.task(workflow=workflow)
        done = await self.task(key_of(self.owner, Scope.RUN), workflow=workflow)
        ended = (await self.doors.services.tasks.rerun(self.owner, waiting)).id
        await self.doors.settle()
        for sql, task in ((_FAILED, ended), (_DONE, done)):
            await self.doors.admin.execute(sql, task, agent)
            for table in ("ready", "task_live"):
                await self.doors.admin.execute(f"DELETE FROM {table} WHERE task_id = $1", task)
        await database.rows(_ATTEMPT, ended, self.team, agent)
        await self.doors.admin.execute(_TAKEN, waiting)
        await self.doors.admin.execute(_HELD, waiting, agent, ended)
        return waiting, ended, done

    async def _events(self, task: UUID, output: UUID, agent: UUID) -> None:
        log = {"stream": "stdout", "level": "info", "firstLine": 1, "lines": ["line"]}
        file = {"output": str(output), "name": "o.png", "size": 9, "mediaType": "image/png"}
        status = {"from": "running", "state": "failed", "reason": "exited_non_zero", "agent": str(agent)}
        for kind, body in (("log", log), ("output", file), ("status", status)):
            await database.rows(_EVENT, task, kind, orjson.dumps({"v": 1, "attempt": 1, **body}).decode())


async def _found() -> Viewer:
    owner = await make_owner()
    await teams.join(team_of(owner), owner.user_id, Role.OWNER)
    return owner


WORKFLOW: dict[str, Any] = {
    "name": "Work",
    "runtime": "command",
    "definition": {"command": "work"},
    "parameters": [
        {
            "key": "size",
            "type": "select",
            "default": "s",
            "options": [{"value": "s", "label": "Small"}],
        },
        {"key": "steps", "type": "integer", "default": 4, "min": 1, "max": 9, "step": 1},
        {"key": "title", "type": "string", "default": "A", "minLength": 1, "maxLength": 9},
    ],
    "labels": ["nowhere"],
    "timeout": 60,
    "queueTimeout": 3600,
    "retry": {"max": 1, "on": ["failed"]},
    "concurrency": {"key": "all", "limit": 1},
}

_TEXTS = {
    "workflow": ("name", "description"),
    "agent": ("name", "pause_note"),
    "pool": ("name", "trouble"),
    "launch": ("agent_name", "error"),
    "credential": ("name",),
    "invitation": ("email",),
    "output": ("name",),
    "upload": ("name",),
}
"""Columns of free text, by table."""

_AGENT = """
INSERT INTO agent (team_id, name, secret_hash, credential_id, labels, facts, slots, version)
VALUES ($1, $2, '', uuidv7(), '{gpu}', '{}', 1, '1') RETURNING id
"""
_SESSION = """
INSERT INTO agent_session (agent_id, team_id, session_no, instance_id, alive, seen_at, replica, slots)
VALUES ($1, $2, 1, 'i', $3, app_now(), 'r', 1) RETURNING agent_id
"""
_UPLOAD = """
INSERT INTO upload (team_id, user_id, name, media_type, size, sha256, parts, key, upload_id, completed_at)
VALUES ($1, $2, 'in.png', 'image/png', 9, $3, '{}', uuidv7()::text, '', app_now()) RETURNING id
"""
_FILE = """
INSERT INTO output (id, team_id, task_id, attempt, lease_no, role, name, media_type, size, sha256, parts, key,
  upload_id, width, height, completed_at)
SELECT f.id, $1, $2, 1, 1, $4::text, 'o.png', 'image/png', 9, $3, '{}', f.id::text, '', 1, 1, app_now()
FROM (SELECT CASE $4::text WHEN 'preview' THEN $2::uuid ELSE uuidv7() END AS id) f RETURNING id
"""
_GONE = "UPDATE agent SET removed_at = app_now(), pause = 'paused', pause_note = 'why' WHERE id = $1"
_CLOSED = "UPDATE pool SET removed_at = app_now(), trouble = 'it fell' WHERE id = $1"
_TAKEN = """
INSERT INTO semaphore (key_id, workflow_id)
SELECT l.key_id, t.workflow_id FROM task_live l JOIN task t ON t.id = l.task_id
WHERE l.task_id = $1 ON CONFLICT DO NOTHING
"""
_HELD = """
WITH o AS (INSERT INTO offer (team_id, labels) SELECT team_id, '{gpu}' FROM agent WHERE id = $2 RETURNING id)
INSERT INTO slot (agent_id, no, team_id, offer_id, open, session_no, task_id, lease_no, key_id)
SELECT $2, 1, l.team_id, o.id, true, 1, $3, 1, l.key_id FROM task_live l, o WHERE l.task_id = $1
"""
_LAUNCH = """
INSERT INTO launch (team_id, pool_id, provisioner, agent_name, state, agent_id, error, due_at, running_at, ended_at)
VALUES ($1, $2, 'local', 'box', 'failed', $3, 'it fell', app_now(), app_now(), app_now()) RETURNING id
"""
_BULK = """
INSERT INTO bulk_operation (team_id, user_id, kind, wanted, total, done, ended_at)
VALUES ($1, $2, 'cancel_tasks', '{}', 1, 1, app_now()) RETURNING id
"""
_PIN = """
UPDATE credential SET last_used_at = app_now(), revoked_at = app_now(), labels = '{gpu}', max_slots = 1,
  workflows = ARRAY[uuidv7()] WHERE id = $1
"""
_END = """
INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
  error, result, progress, preview, revision)
SELECT task_id, team_id, {end}, 1, event_seq + {more}, 1, $2, app_now(), app_now(), {error}, {result},
  '{{"fraction": 0.5, "step": 1, "total": 2, "stage": "s", "message": "m"}}', task_id::text, 1
FROM task_live WHERE task_id = $1
"""
_ERROR = """'{"code": "exited_non_zero", "message": "it failed", "details": {"exit": 1}}'"""
_FAILED = _END.format(end="'failed', 'exited_non_zero'", more=3, error=_ERROR, result="NULL")
_DONE = _END.format(end="'completed', NULL", more=0, error="NULL", result="""'{"x": 1}'""")
_ATTEMPT = """
INSERT INTO attempt (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome, reason, error)
VALUES ($1, 1, $2, 1, $3, app_now(), app_now(), 'failed', 'exited_non_zero',
  '{"code": "exited_non_zero", "message": "it failed", "details": {"exit": 1}}') RETURNING no
"""
_EVENT = """
INSERT INTO task_event (task_id, seq, at, kind, body)
SELECT $1, max(seq) + 1, app_now(), $2, $3::jsonb FROM task_event WHERE task_id = $1 RETURNING seq
"""
_WORKFLOW_OF = """
SELECT t.workflow_id, v.id AS version_id FROM task t
JOIN workflow_version v ON v.workflow_id = t.workflow_id AND v.number = t.version WHERE t.id = $1
"""

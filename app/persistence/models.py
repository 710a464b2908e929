"""Every table that is kept by the ORM. One file, because foreign keys form a graph and modules must not.

The hot tables (task, task_live, task_end, task_event, ready, slot, agent_session, ...) are not here: they are written
by the statements of `hot.py` alone and are made by raw SQL in the migrations (partitions, fill factors, triggers).
Ids are UUIDs of version 7, made by the database. Text enums are lower case, as everywhere outside GraphQL.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from tortoise import fields
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.fields import OnDelete, SqlDefault
from tortoise.models import Model

V7 = SqlDefault("uuidv7()")
NOW = SqlDefault("app_now()")


class TeamRow(Model):
    """The boundary that owns everything else."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    slug = fields.CharField(max_length=64, unique=True)
    name = fields.CharField(max_length=255)
    created_at = fields.DatetimeField(db_default=NOW)

    class Meta:
        table = "team"


class UserRow(Model):
    """A person. Without a password hash it signs in by one-time link only."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    email = fields.CharField(max_length=320, unique=True)  # normalised, lower case
    name = fields.CharField(max_length=255)
    password_hash = fields.CharField(max_length=255, null=True)
    created_at = fields.DatetimeField(db_default=NOW)

    class Meta:
        table = "user_account"


class MembershipRow(Model):
    """A user in a team, with a role. One owner a team, by a partial unique index."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="memberships")
    team_id: UUID
    user: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField("models.UserRow", related_name="memberships")
    user_id: UUID
    role = fields.CharField(max_length=16)
    created_at = fields.DatetimeField(db_default=NOW)

    class Meta:
        table = "membership"
        unique_together = (("team", "user"),)
        indexes = (("user_id",),)


class InvitationRow(Model):
    """An open, accepted or withdrawn invitation; its token is stored hashed. One open one for a team and address."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="invitations")
    team_id: UUID
    email = fields.CharField(max_length=320)
    role = fields.CharField(max_length=16)
    token_hash = fields.CharField(max_length=64, unique=True)
    invited_by: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField(
        "models.UserRow", related_name="invitations", on_delete=OnDelete.RESTRICT
    )
    invited_by_id: UUID
    created_at = fields.DatetimeField(db_default=NOW)
    expires_at = fields.DatetimeField()
    accepted_at = fields.DatetimeField(null=True)
    withdrawn_at = fields.DatetimeField(null=True)

    class Meta:
        table = "invitation"
        indexes = (("team_id",),)


class SessionRow(Model):
    """A signed-in user: a bearer token or a cookie, stored hashed, sliding."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    user: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField("models.UserRow", related_name="sessions")
    user_id: UUID
    token_hash = fields.CharField(max_length=64, unique=True)
    user_agent = fields.CharField(max_length=255)
    created_at = fields.DatetimeField(db_default=NOW)
    seen_at = fields.DatetimeField(db_default=NOW)
    expires_at = fields.DatetimeField()
    revoked_at = fields.DatetimeField(null=True)

    class Meta:
        table = "session"
        indexes = (("user_id",),)


class LinkRow(Model):
    """A one-time link: first run (no user yet), sign in, or password reset. Its token is stored hashed."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    purpose = fields.CharField(max_length=16)  # first_run | sign_in | reset
    user: fields.ForeignKeyNullableRelation[UserRow] = fields.ForeignKeyField(
        "models.UserRow", related_name="links", null=True
    )
    user_id: UUID | None
    token_hash = fields.CharField(max_length=64, unique=True)
    created_at = fields.DatetimeField(db_default=NOW)
    expires_at = fields.DatetimeField()
    used_at = fields.DatetimeField(null=True)

    class Meta:
        table = "link"


class CredentialRow(Model):
    """An integration key (`sk-`) or an agent key (`ak-`): public id and keyed hash, never the secret."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="credentials")
    team_id: UUID
    kind = fields.CharField(max_length=16)  # integration | agent
    name = fields.CharField(max_length=100)
    key_id = fields.CharField(max_length=10, unique=True)  # the public part of the key
    secret_hash = fields.BinaryField()
    scopes: Any = ArrayField(element_type="text", default=list)
    labels: Any = ArrayField(element_type="text", null=True)  # agent keys: pinned labels, None: any
    max_slots = fields.IntField(null=True)
    workflows: Any = ArrayField(element_type="uuid", null=True)
    made_by: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField(
        "models.UserRow", related_name="credentials", on_delete=OnDelete.RESTRICT
    )
    made_by_id: UUID
    created_at = fields.DatetimeField(db_default=NOW)
    expires_at = fields.DatetimeField(null=True)
    last_used_at = fields.DatetimeField(null=True)
    revoked_at = fields.DatetimeField(null=True)

    class Meta:
        table = "credential"
        indexes = (("team_id",),)


class WorkflowRow(Model):
    """A template. What runs is one of its immutable versions; `version` is the current one."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="workflows")
    team_id: UUID
    slug = fields.CharField(max_length=100)
    name = fields.CharField(max_length=255)
    description = fields.TextField()
    version = fields.IntField()
    active = fields.BooleanField(db_default=True)  # false: refuses new tasks
    own_lanes = fields.BooleanField(db_default=False)  # an agent key was pinned to it: its tasks queue by themselves
    created_at = fields.DatetimeField(db_default=NOW)
    updated_at = fields.DatetimeField(db_default=NOW)
    archived_at = fields.DatetimeField(null=True)

    class Meta:
        table = "workflow"
        unique_together = (("team", "slug"),)


class WorkflowVersionRow(Model):
    """Everything that decides how a task runs, frozen. A trigger refuses updates."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    workflow: fields.ForeignKeyRelation[WorkflowRow] = fields.ForeignKeyField(
        "models.WorkflowRow", related_name="versions"
    )
    workflow_id: UUID
    number = fields.IntField()
    runtime = fields.CharField(max_length=32)  # command | comfyui
    definition: Any = fields.JSONField()
    parameters: Any = fields.JSONField()  # list of parameter definitions, see domain/parameters.py
    labels: Any = ArrayField(element_type="text", default=list)  # sorted
    requirement_id = fields.IntField()  # the labels, interned
    timeout = fields.FloatField()  # seconds from the acknowledgement, 0: none
    queue_timeout = fields.FloatField(null=True)  # seconds, None: none
    retry: Any = fields.JSONField()  # {"max": 0, "on": ["agent_lost", ...]}
    concurrency: Any = fields.JSONField(null=True)  # {"key": "..", "limit": 1, "onCollision": "queue"}, None: none
    exclusive = fields.BooleanField(db_default=False)  # who is cut off ends its work before another can have it
    note = fields.CharField(max_length=500)
    created_by: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField(
        "models.UserRow", related_name="workflow_versions", on_delete=OnDelete.RESTRICT
    )
    created_by_id: UUID
    created_at = fields.DatetimeField(db_default=NOW)

    class Meta:
        table = "workflow_version"
        unique_together = (("workflow", "number"),)


class AgentRow(Model):
    """A process on the team's machine, known by its name; kept while offline. Its session and slots are hot tables."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="agents")
    team_id: UUID
    name = fields.CharField(max_length=100)
    secret_hash = fields.CharField(max_length=64)
    credential_id = fields.UUIDField()
    labels: Any = ArrayField(element_type="text", default=list)
    facts: Any = fields.JSONField()
    slots = fields.IntField()
    version = fields.CharField(max_length=32)
    pause = fields.CharField(max_length=16, null=True)  # paused | draining, None: takes work
    pause_note = fields.CharField(max_length=500, null=True)
    created_at = fields.DatetimeField(db_default=NOW)
    connected_at = fields.DatetimeField(db_default=NOW)
    workflows: Any = ArrayField(element_type="uuid", null=True)  # what its key is pinned to, None: any
    # Of an agent that was removed: its name is free for another one, and `name` holds its id.
    removed_at = fields.DatetimeField(null=True)
    former_name = fields.CharField(max_length=100, null=True)
    registration = fields.CharField(max_length=64, null=True)  # hash of what it said of itself last

    class Meta:
        table = "agent"
        unique_together = (("team", "name"),)


class OutputRow(Model):
    """One file that an attempt produced, or its preview or thumbnail. No foreign key to the hot tables."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team_id = fields.UUIDField()
    task_id = fields.UUIDField()
    attempt = fields.IntField()
    lease_no = fields.IntField()
    role = fields.CharField(max_length=16)  # output | preview | thumbnail
    name = fields.CharField(max_length=255)
    media_type = fields.CharField(max_length=127)
    size = fields.BigIntField()
    sha256 = fields.BinaryField()
    parts: Any = ArrayField(element_type="text", default=list)  # SHA-256 of each part, hex
    key = fields.CharField(max_length=255)
    upload_id = fields.CharField(max_length=255)  # of a multipart upload, else empty
    width = fields.IntField(null=True)
    height = fields.IntField(null=True)
    created_at = fields.DatetimeField(db_default=NOW)
    completed_at = fields.DatetimeField(null=True)

    class Meta:
        table = "output"
        unique_together = (("task_id", "lease_no", "role", "name"),)
        indexes = (("team_id", "id"),)


class UploadRow(Model):
    """An input file, brought in before the submit. Unreferenced it dies after 24 h."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team: fields.ForeignKeyRelation[TeamRow] = fields.ForeignKeyField("models.TeamRow", related_name="uploads")
    team_id: UUID
    user: fields.ForeignKeyRelation[UserRow] = fields.ForeignKeyField("models.UserRow", related_name="uploads")
    user_id: UUID
    name = fields.CharField(max_length=255)
    media_type = fields.CharField(max_length=127)
    size = fields.BigIntField()
    sha256 = fields.BinaryField()
    parts: Any = ArrayField(element_type="text", default=list)
    key = fields.CharField(max_length=255)
    upload_id = fields.CharField(max_length=255)
    created_at = fields.DatetimeField(db_default=NOW)
    completed_at = fields.DatetimeField(null=True)
    used_at = fields.DatetimeField(null=True)  # when a submit named it last
    condemned_at = fields.DatetimeField(null=True)  # nothing may use it any more: its object is being removed

    class Meta:
        table = "upload"
        indexes = (("team_id",),)


class IdempotencyRow(Model):
    """What a keyed creation made: (team, caller, operation, key) -> object and hash of the input, for 48 h.

    Submits have their own table in the hot statements.
    """

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team_id = fields.UUIDField()
    caller_id = fields.UUIDField()
    operation = fields.CharField(max_length=64)
    key = fields.CharField(max_length=255)
    hash = fields.BinaryField()
    object_id = fields.UUIDField()
    created_at: datetime = fields.DatetimeField(db_default=NOW)

    class Meta:
        table = "idempotency_record"
        unique_together = (("team_id", "caller_id", "operation", "key"),)


class BulkOperationRow(Model):
    """One verb over many tasks, done in batches by whichever replica holds its claim."""

    id = fields.UUIDField(primary_key=True, db_default=V7, default=None)
    team_id = fields.UUIDField()
    kind = fields.CharField(max_length=32)  # cancel_tasks
    user_id = fields.UUIDField()
    credential_id = fields.UUIDField(null=True)
    wanted: Any = fields.JSONField()  # the filter, as far as the caller may cancel what it finds
    total = fields.BigIntField()  # tasks that it found when it was made
    done = fields.BigIntField(db_default=0)
    failed = fields.BigIntField(db_default=0)
    reached = fields.UUIDField(null=True)  # the last task that was dealt with: newest first
    claim_no = fields.IntField(db_default=0)  # grows with each claim: a late batch of an older one is not counted
    claimed_until = fields.DatetimeField(null=True)
    created_at = fields.DatetimeField(db_default=NOW)
    ended_at = fields.DatetimeField(null=True)

    class Meta:
        table = "bulk_operation"
        indexes = (("team_id", "id"),)

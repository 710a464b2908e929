from orjson import loads
from tortoise import fields, migrations
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.fields.base import OnDelete
from tortoise.fields.data import JSON_DUMPS
from tortoise.fields.db_defaults import SqlDefault
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0001_clock_and_roles")]

    initial = False

    operations = [
        ops.CreateModel(
            name="IdempotencyRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("team_id", fields.UUIDField()),
                ("caller_id", fields.UUIDField()),
                ("operation", fields.CharField(max_length=64)),
                ("key", fields.CharField(max_length=255)),
                ("hash", fields.BinaryField()),
                ("object_id", fields.UUIDField()),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "idempotency_record",
                "app": "models",
                "unique_together": (("team_id", "caller_id", "operation", "key"),),
                "pk_attr": "id",
                "table_description": "What a keyed creation made: (team, caller, operation, key) -> object and hash of the input, for 48 h.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="OutputRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("team_id", fields.UUIDField()),
                ("task_id", fields.UUIDField()),
                ("attempt", fields.IntField()),
                ("lease_no", fields.IntField()),
                ("role", fields.CharField(max_length=16)),
                ("name", fields.CharField(max_length=255)),
                ("media_type", fields.CharField(max_length=127)),
                ("size", fields.BigIntField()),
                ("sha256", fields.BinaryField()),
                ("parts", ArrayField(default=list, element_type="TEXT")),
                ("key", fields.CharField(max_length=255)),
                ("upload_id", fields.CharField(max_length=255)),
                ("width", fields.IntField(null=True)),
                ("height", fields.IntField(null=True)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("completed_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "output",
                "app": "models",
                "unique_together": (("task_id", "lease_no", "role", "name"),),
                "indexes": [Index(fields=["team_id", "id"])],
                "pk_attr": "id",
                "table_description": "One file that an attempt produced, or its preview or thumbnail. No foreign key to the hot tables.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="TeamRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("slug", fields.CharField(unique=True, max_length=64)),
                ("name", fields.CharField(max_length=255)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "team",
                "app": "models",
                "pk_attr": "id",
                "table_description": "The boundary that owns everything else.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="AgentRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="agents",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("name", fields.CharField(max_length=100)),
                ("secret_hash", fields.CharField(max_length=64)),
                ("credential_id", fields.UUIDField()),
                ("labels", ArrayField(default=list, element_type="TEXT")),
                ("facts", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("slots", fields.IntField()),
                ("version", fields.CharField(max_length=32)),
                ("pause", fields.CharField(null=True, max_length=16)),
                ("pause_note", fields.CharField(null=True, max_length=500)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                (
                    "connected_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "agent",
                "app": "models",
                "unique_together": (("team", "name"),),
                "pk_attr": "id",
                "table_description": "A process on the team's machine, known by its name; kept while offline. Its session and slots are hot tables.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="UserRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("email", fields.CharField(unique=True, max_length=320)),
                ("name", fields.CharField(max_length=255)),
                ("password_hash", fields.CharField(null=True, max_length=255)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "user_account",
                "app": "models",
                "pk_attr": "id",
                "table_description": "A person. Without a password hash it signs in by one-time link only.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="CredentialRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="credentials",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("kind", fields.CharField(max_length=16)),
                ("name", fields.CharField(max_length=100)),
                ("key_id", fields.CharField(unique=True, max_length=10)),
                ("secret_hash", fields.BinaryField()),
                ("scopes", ArrayField(default=list, element_type="TEXT")),
                ("labels", ArrayField(null=True, element_type="TEXT")),
                ("max_slots", fields.IntField(null=True)),
                ("workflows", ArrayField(null=True, element_type="UUID")),
                (
                    "made_by",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="made_by_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="credentials",
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("expires_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("last_used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("revoked_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "credential",
                "app": "models",
                "indexes": [Index(fields=["team_id"])],
                "pk_attr": "id",
                "table_description": "An integration key (`sk-`) or an agent key (`ak-`): public id and keyed hash, never the secret.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="InvitationRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="invitations",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("email", fields.CharField(max_length=320)),
                ("role", fields.CharField(max_length=16)),
                ("token_hash", fields.CharField(unique=True, max_length=64)),
                (
                    "invited_by",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="invited_by_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="invitations",
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("expires_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("accepted_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("withdrawn_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "invitation",
                "app": "models",
                "indexes": [Index(fields=["team_id"])],
                "pk_attr": "id",
                "table_description": "An open, accepted or withdrawn invitation; its token is stored hashed. One open one for a team and address.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="LinkRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("purpose", fields.CharField(max_length=16)),
                (
                    "user",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="user_id",
                        null=True,
                        db_constraint=True,
                        to_field="id",
                        related_name="links",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("token_hash", fields.CharField(unique=True, max_length=64)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("expires_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "link",
                "app": "models",
                "pk_attr": "id",
                "table_description": "A one-time link: first run (no user yet), sign in, or password reset. Its token is stored hashed.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="MembershipRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="memberships",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                (
                    "user",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="user_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="memberships",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("role", fields.CharField(max_length=16)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "membership",
                "app": "models",
                "unique_together": (("team", "user"),),
                "indexes": [Index(fields=["user_id"])],
                "pk_attr": "id",
                "table_description": "A user in a team, with a role. One owner a team, by a partial unique index.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="SessionRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "user",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="user_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="sessions",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("token_hash", fields.CharField(unique=True, max_length=64)),
                ("user_agent", fields.CharField(max_length=255)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                (
                    "seen_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("expires_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("revoked_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "session",
                "app": "models",
                "indexes": [Index(fields=["user_id"])],
                "pk_attr": "id",
                "table_description": "A signed-in user: a bearer token or a cookie, stored hashed, sliding.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="UploadRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="uploads",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                (
                    "user",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="user_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="uploads",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("name", fields.CharField(max_length=255)),
                ("media_type", fields.CharField(max_length=127)),
                ("size", fields.BigIntField()),
                ("sha256", fields.BinaryField()),
                ("parts", ArrayField(default=list, element_type="TEXT")),
                ("key", fields.CharField(max_length=255)),
                ("upload_id", fields.CharField(max_length=255)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("completed_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("condemned_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "upload",
                "app": "models",
                "indexes": [Index(fields=["team_id"])],
                "pk_attr": "id",
                "table_description": "An input file, brought in before the submit. Unreferenced it dies after 24 h.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="WorkflowRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "team",
                    fields.ForeignKeyField(
                        "models.TeamRow",
                        source_field="team_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="workflows",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("slug", fields.CharField(max_length=100)),
                ("name", fields.CharField(max_length=255)),
                ("description", fields.TextField(unique=False)),
                ("version", fields.IntField()),
                ("active", fields.BooleanField(db_default=True)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                (
                    "updated_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("archived_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "workflow",
                "app": "models",
                "unique_together": (("team", "slug"),),
                "pk_attr": "id",
                "table_description": "A template. What runs is one of its immutable versions; `version` is the current one.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="WorkflowVersionRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                (
                    "workflow",
                    fields.ForeignKeyField(
                        "models.WorkflowRow",
                        source_field="workflow_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="versions",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("number", fields.IntField()),
                ("runtime", fields.CharField(max_length=32)),
                ("definition", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("parameters", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("labels", ArrayField(default=list, element_type="TEXT")),
                ("requirement_id", fields.IntField()),
                ("timeout", fields.FloatField()),
                ("queue_timeout", fields.FloatField(null=True)),
                ("retry", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("note", fields.CharField(max_length=500)),
                (
                    "created_by",
                    fields.ForeignKeyField(
                        "models.UserRow",
                        source_field="created_by_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="workflow_versions",
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
            ],
            options={
                "table": "workflow_version",
                "app": "models",
                "unique_together": (("workflow", "number"),),
                "pk_attr": "id",
                "table_description": "Everything that decides how a task runs, frozen. A trigger refuses updates.",
            },
            bases=["Model"],
        ),
    ]

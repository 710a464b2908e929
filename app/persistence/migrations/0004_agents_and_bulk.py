from orjson import loads
from tortoise import fields, migrations
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.fields.data import JSON_DUMPS
from tortoise.fields.db_defaults import SqlDefault
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0003_hot_tables")]

    initial = False

    operations = [
        ops.CreateModel(
            name="BulkOperationRow",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, unique=True, db_index=True, db_default=SqlDefault("uuidv7()")),
                ),
                ("team_id", fields.UUIDField()),
                ("kind", fields.CharField(max_length=32)),
                ("user_id", fields.UUIDField()),
                ("credential_id", fields.UUIDField(null=True)),
                ("wanted", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("total", fields.BigIntField()),
                ("done", fields.BigIntField(db_default=0)),
                ("failed", fields.BigIntField(db_default=0)),
                ("reached", fields.UUIDField(null=True)),
                ("claim_no", fields.IntField(db_default=0)),
                ("claimed_until", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "created_at",
                    fields.DatetimeField(db_default=SqlDefault("app_now()"), auto_now=False, auto_now_add=False),
                ),
                ("ended_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "bulk_operation",
                "app": "models",
                "indexes": [Index(fields=["team_id", "id"])],
                "pk_attr": "id",
                "table_description": "One verb over many tasks, done in batches by whichever replica holds its claim.",
            },
            bases=["Model"],
        ),
        ops.AddField(
            model_name="AgentRow",
            name="former_name",
            field=fields.CharField(null=True, max_length=100),
        ),
        ops.AddField(
            model_name="AgentRow",
            name="removed_at",
            field=fields.DatetimeField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddField(
            model_name="AgentRow",
            name="workflows",
            field=ArrayField(null=True, element_type="UUID"),
        ),
        ops.AddField(
            model_name="WorkflowRow",
            name="own_lanes",
            field=fields.BooleanField(db_default=False),
        ),
        ops.RunSQL("CREATE INDEX bulk_operation_open ON bulk_operation (id) WHERE ended_at IS NULL"),
    ]

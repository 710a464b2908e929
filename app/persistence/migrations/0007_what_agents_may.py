from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0005_pools")]

    initial = False

    operations = [
        ops.AddField(
            model_name="AgentRow",
            name="registration",
            field=fields.CharField(null=True, max_length=64),
        ),
        ops.AddField(
            model_name="WorkflowVersionRow",
            name="exclusive",
            field=fields.BooleanField(db_default=False),
        ),
        # `accepting`: the process itself takes new work; `connected_at`: when it connected last, null: see the agent.
        ops.RunSQL(
            "ALTER TABLE agent_session ADD COLUMN accepting boolean NOT NULL DEFAULT true, "
            "ADD COLUMN connected_at timestamptz"
        ),
    ]

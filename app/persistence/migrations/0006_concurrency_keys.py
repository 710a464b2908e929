from orjson import loads
from tortoise import fields, migrations
from tortoise.fields.data import JSON_DUMPS
from tortoise.migrations import operations as ops

from app.persistence.migrations import sql


class Migration(migrations.Migration):
    dependencies = [("models", "0004_agents_and_bulk")]

    initial = False

    operations = [
        ops.AddField(
            model_name="WorkflowVersionRow",
            name="concurrency",
            field=fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads),
        ),
        ops.RunSQL(sql("keys")),
    ]

from tortoise import migrations
from tortoise.migrations import operations as ops

from app.persistence.migrations import sql


class Migration(migrations.Migration):
    dependencies = [("models", "0002_tables")]

    initial = False

    operations = [
        ops.RunSQL(sql("cold_rules")),
        ops.RunSQL(sql("history")),
        ops.RunSQL(sql("present")),
        ops.RunSQL(sql("views")),
        ops.RunSQL(sql("grants")),
    ]

from tortoise import migrations
from tortoise.migrations import operations as ops

from app.persistence.migrations import sql


class Migration(migrations.Migration):
    dependencies = [("models", "0004_agents_and_bulk")]

    initial = False

    operations = [ops.RunSQL(sql("pools"))]

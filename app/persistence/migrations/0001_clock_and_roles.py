from tortoise import migrations
from tortoise.migrations import operations as ops

from app.persistence.migrations import sql


class Migration(migrations.Migration):
    initial = True

    operations = [ops.RunSQL(sql("clock")), ops.RunSQL(sql("roles"))]

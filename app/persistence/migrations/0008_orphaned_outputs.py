from tortoise import migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0007_what_agents_may")]

    initial = False

    operations = [
        # Few: files that are on their way, and those that never came.
        ops.RunSQL("CREATE INDEX output_not_there ON output (id) WHERE completed_at IS NULL"),
    ]

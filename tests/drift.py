"""Whether the migrations say all that the models say: `python -m tests.drift` fails where they do not."""

import asyncio
import sys

from tortoise.context import TortoiseContext
from tortoise.migrations.autodetector import MigrationAutodetector

from app.persistence.database import orm_config

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"  # models and migrations are compared without a database


async def missing() -> list[str]:
    """What `tortoise makemigrations` would write, an operation each."""
    config = orm_config(NOWHERE)
    async with TortoiseContext() as context:
        await context.init(config=config)
        assert context.apps is not None
        writers = await MigrationAutodetector(context.apps, config["apps"]).changes()
    return [f"{writer.app_label}: {operation!r}" for writer in writers for operation in writer.operations]


def main() -> int:
    """Print what is missing; 1 where there is something."""
    found = asyncio.run(missing())
    sys.stdout.writelines(f"migrations lack {operation}\n" for operation in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""One process of services over a database whose clock tests move, and how long the searches of this folder last."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from app.services.ports import ObjectStore
from app.storage.local import LocalStore
from tests.model.world import ModelWorld, model_world
from tests.stores import KEYS, PART, Now

settings.register_profile("quick", max_examples=20, stateful_step_count=25)
"""`make test ARGS="--hypothesis-profile quick tests/model"` searches for seconds."""
settings.register_profile("find", phases=(Phase.generate,))
"""As long as always, but what is found is not shrunk: for code that is broken on purpose."""


def effort(*, examples: int, steps: int = 50) -> settings:
    """So much search, or that of the profile `quick` where it was asked for. What was found once is tried first."""
    if settings.get_current_profile_name() == "quick":
        examples, steps = 20, 25
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=False,
        phases=settings.default.phases if settings.default else tuple(Phase),
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return LocalStore(tmp_path_factory.mktemp("files"), "http://files.test", KEYS, Now(), part_size=PART)


@pytest.fixture
async def world(database_url: str, redis_url: str, store: ObjectStore) -> AsyncIterator[ModelWorld]:
    async with model_world(database_url, redis_url, store) as opened:
        yield opened

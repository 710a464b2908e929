"""Every use case is told who asks, or is known to need nobody: a new one that does neither fails here."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, get_type_hints

import app.services
from app.services.access import SYSTEM_VERBS, AgentIdentity, Viewer

NOT_VERBS = frozenset({"open", "close"})
"""They begin and end a service with its process; they concern no data."""


def services() -> Iterator[type]:
    """Every class of `app.services` that is named as a service."""
    for found in pkgutil.walk_packages(app.services.__path__, "app.services."):
        module = importlib.import_module(found.name)
        for name, thing in inspect.getmembers(module, inspect.isclass):
            if name.endswith("Service") and thing.__module__ == module.__name__:
                yield thing


def verbs(service: type) -> Iterator[tuple[str, Any]]:
    for name, method in inspect.getmembers(service, inspect.isroutine):
        if not name.startswith("_") and name not in NOT_VERBS:
            yield f"{service.__name__}.{name}", method


def asks_who(method: Any) -> bool:
    """Whether the first parameter after `self` is the viewer or the agent."""
    parameters = list(inspect.signature(method).parameters)
    if len(parameters) < 2:
        return False
    return is_identity(get_type_hints(method).get(parameters[1]))


def is_identity(annotation: Any) -> bool:
    """The viewer, the agent, or a connection that an agent's identity is part of."""
    if annotation in (Viewer, AgentIdentity):
        return True
    return inspect.isclass(annotation) and get_type_hints(annotation).get("identity") is AgentIdentity


def test_every_verb_takes_its_viewer_first_or_is_a_listed_system_verb() -> None:
    found = {name: method for service in services() for name, method in verbs(service)}

    careless = sorted(name for name, method in found.items() if not asks_who(method) and name not in SYSTEM_VERBS)

    assert len(found) > 20
    assert careless == [], "take the viewer first, or stand on services.access.SYSTEM_VERBS"


def test_the_list_of_system_verbs_names_only_verbs_that_need_it() -> None:
    found = {name: method for service in services() for name, method in verbs(service)}

    needless = sorted(name for name in SYSTEM_VERBS if name not in found or asks_who(found[name]))

    assert needless == []


def test_a_verb_without_a_viewer_would_be_found() -> None:
    class LeakService:
        async def read(self, task_id: int) -> int:
            return task_id

        async def fine(self, viewer: Viewer, task_id: int) -> int:
            return task_id

    assert [name for name, method in verbs(LeakService) if not asks_who(method)] == ["LeakService.read"]

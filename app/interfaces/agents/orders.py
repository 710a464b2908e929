"""The one subscription of the agents' contract: what this agent is to do, from its slots in the table."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from app.interfaces.agents.context import Info
from app.services.orders import AgentOrder, Assign, Cancel, Pause, Reconnect
from app.services.uploads import TaskInput


async def orders(_root: None, info: Info, session: int) -> AsyncGenerator[dict[str, Any], None]:
    """Batches of orders for the agent of this connection, until its session ends."""
    context = info.context
    async with aclosing(context.services.connections.orders(context.agent(session))) as batches:
        async for batch in batches:
            yield {"orders": {"orders": [_order(order) for order in batch]}}


def _order(order: AgentOrder) -> dict[str, Any]:
    match order:
        case Assign():
            return _assign(order)
        case Cancel(token=token, grace=grace):
            return {"__typename": "Cancel", "token": token, "grace": grace}
        case Pause(note=note):
            return {"__typename": "Pause", "note": note}
        case Reconnect(after=after):
            return {"__typename": "Reconnect", "after": after}
        case _:
            return {"__typename": type(order).__name__, "ok": True}


def _assign(order: Assign) -> dict[str, Any]:
    return {
        "__typename": "Assign",
        "token": order.token,
        "taskId": str(order.task_id),
        "attempt": order.attempt,
        "workflow": order.workflow,
        "runtime": order.runtime,
        "definition": order.definition,
        "parameters": order.parameters,
        "inputs": [_input(each) for each in order.inputs],
        "timeout": order.timeout,
        "exclusive": order.exclusive,
    }


def _input(given: TaskInput) -> dict[str, Any]:
    return {
        "parameter": given.parameter,
        "name": given.name,
        "mediaType": given.media_type,
        "size": given.size,
        "sha256": given.sha256.hex(),
        "url": given.url,
    }

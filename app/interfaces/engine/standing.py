"""Whether whoever opened a socket or a stream may keep it: asked again every few seconds."""

import asyncio
from collections.abc import Callable
from typing import Any

from app.domain.errors import DomainError, Unavailable
from app.interfaces.engine.engine import Interface
from app.interfaces.engine.errors import unexpected
from app.interfaces.engine.request import Credentials


async def ended(
    interface: Interface, credentials: Credentials, known: Callable[[Any], None], *, request_id: str
) -> DomainError:
    """Ask again and again who this is, and return why once it may not stay; `known` is told each time that it may.

    Nothing is concluded while that cannot be answered.
    """
    while True:
        await asyncio.sleep(interface.limits.recheck)
        try:
            caller = await interface.identify(credentials)
            interface.admit_socket(caller)
        except Unavailable:
            continue
        except DomainError as error:
            return error
        except Exception as error:
            unexpected(error, request_id=request_id)
        else:
            known(caller)

"""Passwords: argon2id hashes, made and checked off the event loop.

19 MiB, two passes, one lane. At most `AT_ONCE` run at a time, so that a flood of sign-ins takes neither the memory nor
all cores. An unknown address costs a check against a dummy, so that the time of an answer tells nothing.
"""

import asyncio
import secrets

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

AT_ONCE = 2


class Passwords:
    """Hashes and checks passwords under one set of parameters."""

    def __init__(self, *, memory_kib: int = 19 * 1024, passes: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1, type=Type.ID)
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._dummy = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        async with self._turn:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one of `stored`; None costs the same time and is False."""
        async with self._turn:
            fits = await asyncio.to_thread(self._fits, stored or self._dummy, password)
        return fits and stored is not None

    def outdated(self, stored: str) -> bool:
        """Whether `stored` was made under other parameters: hash anew while the password is at hand."""
        return self._hasher.check_needs_rehash(stored)

    def _fits(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

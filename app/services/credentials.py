"""Keys: who one is at each request, and making and revoking them, which people alone may do.

A key is shown once and never kept. A typo is refused by its checksum before any read; else one indexed read decides, at
every request and without a cache, so that a revocation counts from the next one; requests that come at once share it.
Use is marked at most once a minute.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from app.domain.credential import EXPIRY_DAYS, KeyKind, keyed_hash, mint, parse, proves
from app.domain.errors import NotFound, Unauthenticated
from app.domain.people import Credential, Scope
from app.persistence import credentials, idempotency, workflows
from app.persistence.credentials import Known, NewCredential
from app.persistence.gathering import GatheredReads
from app.persistence.idempotency import Claim
from app.services.access import SCOPE_GRANTS, AgentIdentity, AuthSubject, Permission, Viewer, tell_auth
from app.services.inputs import Checked
from app.services.ports import Bus
from app.services.sightings import Sightings

MOST_PINS = 64  # labels or workflows that a key is pinned to
MOST_SLOTS = 1024
_NOBODY = b"\0" * 32
_PATHS = {"max_slots": "maxSlots", "workflows": "workflowIds"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialWish:
    """What a person asks for. `scopes` for an integration key; `labels`, `max_slots` and `workflows` pin an agent key.

    `expires_in_days` from 1 to 365; None: never.
    """

    kind: KeyKind
    name: str
    scopes: Sequence[Scope] = ()
    labels: Sequence[str] | None = None
    max_slots: int | None = None
    workflows: Sequence[UUID] | None = None
    expires_in_days: int | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """A new credential and its whole key; a replayed creation comes without the key."""

    credential: Credential
    key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lent:
    """A key for an agent that a pool starts; `key` goes to that agent alone."""

    id: UUID
    key: str = field(repr=False)


class CredentialService:
    """The keys of the viewer's teams. `pepper` keys the stored hashes and is not in the database."""

    def __init__(self, *, bus: Bus, pepper: bytes) -> None:
        self._bus = bus
        self._pepper = pepper
        self._sightings = Sightings(credentials.used)
        self._known: GatheredReads[str, Known] = GatheredReads(credentials.known)

    async def authenticate(self, text: str) -> Viewer | AgentIdentity:
        """Who this key is: an integration key a viewer, an agent key an agent; raises `Unauthenticated`."""
        key = parse(text)
        known = await self._known.get(key.id)
        proven = proves(key, known.secret_hash if known else _NOBODY, self._pepper)
        if known is None or not proven:  # the hash covers the prefix too: kinds cannot cross
            raise Unauthenticated("no such key")
        credential = known.credential
        if credential.revoked_at is not None:
            raise Unauthenticated(f"the key {credential.key_id} was revoked")
        if known.expired:
            raise Unauthenticated(f"the key {credential.key_id} is past its expiry date")
        if known.stale:
            self._sightings.note(credential.id)
        return _agent(credential) if key.kind is KeyKind.AGENT else _viewer(credential)

    async def create(
        self, viewer: Viewer, team_id: UUID, wish: CredentialWish, *, idempotency_key: str | None = None
    ) -> Created:
        """A new key, shown in this answer alone; raises `InvalidInput` with every fault."""
        _require(viewer, team_id)
        new = await self._checked(team_id, wish, idempotency_key)
        key = mint(wish.kind, secrets.randbelow)

        async def store() -> UUID:
            stored = keyed_hash(key, self._pepper)
            made = await credentials.add(team_id, new, key_id=key.id, secret_hash=stored, made_by=viewer.user_id)
            if new.workflows:
                await workflows.separate(team_id, new.workflows)
            return made.id

        made = await idempotency.once(_claim(viewer, team_id, new, idempotency_key), store)
        credential = await credentials.get(made.id)
        if credential is None:
            raise NotFound(f"no credential {made.id}")
        return Created(credential, None if made.replayed else key.text)

    async def page(
        self, viewer: Viewer, team_id: UUID, *, kind: KeyKind | None = None, after: UUID | None, limit: int
    ) -> list[Credential]:
        """Up to `limit` keys of the team past the one with id `after`, the newest first, ended ones too."""
        _require(viewer, team_id)
        return await credentials.page(team_id, kind=kind, after=after, limit=limit)

    async def count(self, viewer: Viewer, team_id: UUID, *, kind: KeyKind | None = None) -> int:
        """How many keys the team has, counted up to 10,001."""
        _require(viewer, team_id)
        return await credentials.count(team_id, kind=kind)

    async def by_ids(self, viewer: Viewer, credential_ids: Sequence[UUID]) -> dict[UUID, Credential]:
        """Those of `credential_ids` that are of a team whose keys the viewer manages."""
        managed = [team_id for team_id in viewer.grants if viewer.may(Permission.MANAGE_CREDENTIALS, team_id)]
        return {each.id: each for each in await credentials.by_ids(credential_ids, managed)}

    async def own(self, viewer: Viewer) -> Credential | None:
        """The key that asks, where the viewer is one."""
        return None if viewer.credential_id is None else await credentials.get(viewer.credential_id)

    async def revoke(self, viewer: Viewer, credential_id: UUID) -> Credential:
        """End a key for good, from its next request on; raises `NotFound`. Revoking it again changes nothing."""
        found = await credentials.by_ids([credential_id], list(viewer.grants))
        if not found:
            raise NotFound(f"no credential {credential_id}")
        _require(viewer, found[0].team_id)
        if await credentials.revoke(credential_id):
            tell_auth(self._bus, AuthSubject.CREDENTIAL, credential_id)
        return await credentials.get(credential_id) or found[0]

    async def lend(self, team_id: UUID, name: str, *, labels: Sequence[str], max_slots: int, made_by: UUID) -> Lent:
        """System verb: a key for an agent that a pool starts, in the transaction around it. Nobody is shown it."""
        key = mint(KeyKind.AGENT, secrets.randbelow)
        pinned = NewCredential(
            kind=KeyKind.AGENT,
            name=name[:100],
            scopes=(),
            labels=tuple(sorted(labels)),
            max_slots=max_slots,
            workflows=None,
            expires_in=None,
        )
        stored = keyed_hash(key, self._pepper)
        made = await credentials.add(team_id, pinned, key_id=key.id, secret_hash=stored, made_by=made_by)
        return Lent(made.id, key.text)

    async def take_back(self, credential_id: UUID) -> None:
        """System verb: end such a key. Doing it again changes nothing."""
        if await credentials.revoke(credential_id):
            tell_auth(self._bus, AuthSubject.CREDENTIAL, credential_id)

    async def close(self) -> None:
        """Wait for the last mark of use."""
        await self._sightings.close()

    async def _checked(self, team_id: UUID, wish: CredentialWish, idempotency_key: str | None) -> NewCredential:
        checked = Checked()
        new = NewCredential(
            kind=wish.kind,
            name=checked.text("name", wish.name, longest=100),
            scopes=tuple(sorted(set(wish.scopes))),
            labels=_labels(checked, wish.labels),
            max_slots=wish.max_slots,
            workflows=None if wish.workflows is None else tuple(sorted(set(wish.workflows))),
            expires_in=None if wish.expires_in_days is None else timedelta(days=_days(checked, wish.expires_in_days)),
        )
        _check_kind(checked, wish)
        checked.key(idempotency_key)
        if wish.workflows is not None:
            await _check_workflows(checked, team_id, new.workflows or ())
        checked.settle()
        return new


def _require(viewer: Viewer, team_id: UUID) -> None:
    """People who manage the team's keys, and never a key: a stolen one must not mint a lasting one."""
    viewer.require(Permission.READ, team_id)
    viewer.require_person()
    viewer.require(Permission.MANAGE_CREDENTIALS, team_id)


def _claim(viewer: Viewer, team_id: UUID, new: NewCredential, key: str | None) -> Claim | None:
    return Claim.of(
        key,
        team_id=team_id,
        caller_id=viewer.caller_id,
        operation="createCredential",
        asked={name: getattr(new, name) for name in NewCredential.__slots__},
    )


def _check_kind(checked: Checked, wish: CredentialWish) -> None:
    if wish.kind is KeyKind.AGENT and wish.scopes:
        checked.fault("scopes", "expected none: an agent key opens the agents' contract alone")
    if wish.kind is KeyKind.INTEGRATION:
        if not wish.scopes:
            checked.fault("scopes", "expected at least one scope")
        for pin in ("labels", "max_slots", "workflows"):
            if getattr(wish, pin) is not None:
                checked.fault(_PATHS.get(pin, pin), "expected none: only agent keys are pinned")
    if wish.max_slots is not None and not 1 <= wish.max_slots <= MOST_SLOTS:
        checked.fault("maxSlots", f"expected from 1 to {MOST_SLOTS} slots, found {wish.max_slots}")


async def _check_workflows(checked: Checked, team_id: UUID, workflow_ids: Sequence[UUID]) -> None:
    if not 1 <= len(workflow_ids) <= MOST_PINS:
        checked.fault("workflowIds", f"expected from 1 to {MOST_PINS} workflows, found {len(workflow_ids)}")
        return
    for foreign in await credentials.foreign_workflows(team_id, workflow_ids):
        checked.fault("workflowIds", f"no workflow {foreign}")


def _labels(checked: Checked, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if len(labels) > MOST_PINS:
        checked.fault("labels", f"expected at most {MOST_PINS} labels, found {len(labels)}")
        return ()
    return tuple(
        sorted(
            {
                checked.text(("labels", str(place)), label, longest=100, what="a label")
                for place, label in enumerate(labels)
            }
        )
    )


def _days(checked: Checked, days: int) -> int:
    if days in EXPIRY_DAYS:
        return days
    checked.fault("expiresInDays", f"expected from {EXPIRY_DAYS.start} to {EXPIRY_DAYS.stop - 1} days, found {days}")
    return EXPIRY_DAYS.start


def _viewer(credential: Credential) -> Viewer:
    grants = frozenset().union(*(SCOPE_GRANTS[scope] for scope in credential.scopes))
    return Viewer(user_id=credential.made_by_id, grants={credential.team_id: grants}, credential_id=credential.id)


def _agent(credential: Credential) -> AgentIdentity:
    return AgentIdentity(
        credential_id=credential.id,
        team_id=credential.team_id,
        labels=credential.labels,
        max_slots=credential.max_slots,
        workflows=credential.workflows,
    )

"""Keys in the graph: made and revoked by people, never by a key."""

from typing import Annotated

import strawberry

from app.domain.credential import KeyKind
from app.domain.ids import Kind, decode
from app.domain.people import Scope
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.credential import Credential, credential, load_credentials
from app.interfaces.graphql.types.refusal import CommonRefusals, IdempotencyConflict
from app.services.access import Permission
from app.services.credentials import CredentialWish


@input_type()
class CreateCredentialInput:
    """A new key. Scopes are of an integration key; labels, slots and workflows pin an agent key."""

    team_id: strawberry.ID = attribute("The team that it is for.")
    kind: KeyKind = attribute("What it opens.")
    name: str = attribute("What people call it, 1 to 100 characters.")
    scopes: list[Scope] | None = attribute("What an integration key may do, at least one.", default=None)
    labels: list[str] | None = attribute("The only labels that an agent may offer; null: any.", default=None)
    max_slots: int | None = attribute("How many slots an agent may offer; null: any number.", default=None)
    workflow_ids: list[strawberry.ID] | None = attribute(
        "The only workflows that an agent runs; null: any.", default=None
    )
    expires_in_days: int | None = attribute("It ends after so many days, 1 to 365; null: never.", default=None)
    idempotency_key: str | None = attribute(
        "Makes a repeated call return the first call's credential, without the key.", default=None
    )


@object_type(Permission.MANAGE_CREDENTIALS)
class CreateCredentialSuccess:
    """The key is made."""

    credential: Credential = attribute("The credential.")
    key: str | None = attribute("The whole key, shown this once; null where the call was repeated.")


CreateCredentialResult = Annotated[
    CreateCredentialSuccess | IdempotencyConflict | CommonRefusals, union("CreateCredentialResult")
]


@input_type()
class RevokeCredentialInput:
    """Which key to end."""

    credential_id: strawberry.ID = attribute("The credential; never the key itself.")


@object_type(Permission.MANAGE_CREDENTIALS)
class RevokeCredentialSuccess:
    """The key is refused from its next request on."""

    credential: Credential = attribute("The credential as it now is.")


RevokeCredentialResult = Annotated[RevokeCredentialSuccess | CommonRefusals, union("RevokeCredentialResult")]


@object_type()
class CredentialMutations:
    """Changes to keys."""

    @mutation(Permission.MANAGE_CREDENTIALS, makes=Kind.CREDENTIAL)
    async def create_credential(
        self, info: Info, input: Annotated[CreateCredentialInput, argument("The new key.")]
    ) -> CreateCredentialResult:
        """Make a key: this answer is the only one that shows it."""
        created = await info.context.services.credentials.create(
            info.context.viewer,
            decode(input.team_id, Kind.TEAM)[1],
            _wish(input),
            idempotency_key=input.idempotency_key,
        )
        return CreateCredentialSuccess(credential=credential(created.credential), key=created.key)

    @mutation(Permission.MANAGE_CREDENTIALS)
    async def revoke_credential(
        self, info: Info, input: Annotated[RevokeCredentialInput, argument("Which key to end.")]
    ) -> RevokeCredentialResult:
        """End a key for good, from its next request on; its live streams end within seconds."""
        revoked = await info.context.services.credentials.revoke(
            info.context.viewer, decode(input.credential_id, Kind.CREDENTIAL)[1]
        )
        return RevokeCredentialSuccess(credential=credential(revoked))


def _wish(input: CreateCredentialInput) -> CredentialWish:
    workflows = input.workflow_ids
    return CredentialWish(
        kind=input.kind,
        name=input.name,
        scopes=input.scopes or (),
        labels=input.labels,
        max_slots=input.max_slots,
        workflows=None if workflows is None else [decode(id, Kind.WORKFLOW)[1] for id in workflows],
        expires_in_days=input.expires_in_days,
    )


NOUN = Noun(mutation=CredentialMutations, nodes={Kind.CREDENTIAL: load_credentials})

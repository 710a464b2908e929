"""Who asks, and what people do with their own account: signing in and out, links, name, password, sessions."""

from typing import Annotated

import strawberry

from app.domain.errors import BadRequest, Fault
from app.domain.errors import InvalidInput as Invalid
from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import (
    Noun,
    argument,
    attribute,
    field,
    input_type,
    object_type,
    union,
)
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.policy import Rule
from app.interfaces.graphql.types.refusal import (
    AlreadyExists,
    CommonRefusals,
    Forbidden,
    InvalidInput,
    LinkExpired,
    WrongState,
)
from app.interfaces.graphql.types.session import Session, load_sessions, session
from app.interfaces.graphql.types.user import User, Viewer, load_users, user
from app.services.accounts import Redemption
from app.services.sessions import SignedIn

TOKEN = (
    "The session's token, shown once, to send as `Authorization: Bearer`. Null for a browser, that is, where the "
    "request has a `X-Runyard-Client` header: there the session is a cookie that scripts cannot read."
)


@input_type()
class SignInInput:
    """Who signs in."""

    email: str = attribute("The account's e-mail address.")
    password: str = attribute("The account's password.")


@object_type(Rule.PUBLIC)
class SignInSuccess:
    """The user is signed in."""

    user: User = attribute("Who signed in.")
    session: Session = attribute("The new session.")
    token: str | None = attribute(TOKEN)


SignInResult = Annotated[SignInSuccess | InvalidInput, union("SignInResult")]


@input_type()
class SignOutInput:
    """Where to sign out."""

    everywhere: bool = attribute("End all other sessions of the user too.", default=False)


@object_type()
class SignOutSuccess:
    """The session has ended, and its cookie is gone."""

    ended: int = attribute("How many sessions have ended.")


SignOutResult = Annotated[SignOutSuccess | Forbidden, union("SignOutResult")]


@input_type()
class RedeemLinkInput:
    """A one-time link, with what its kind asks for: everything at the first run, the password for a reset."""

    token: str = attribute("What stands in the link after the `=`.")
    email: str | None = attribute("At the first run: the address of the first user.", default=None)
    name: str | None = attribute("At the first run: the name of the first user.", default=None)
    password: str | None = attribute("At the first run and for a reset: the new password.", default=None)
    team_name: str | None = attribute("At the first run: the name of the first team.", default=None)


@object_type(Rule.PUBLIC)
class RedeemLinkSuccess:
    """The link is used up, and the user is signed in."""

    user: User = attribute("Who signed in.")
    session: Session = attribute("The new session.")
    token: str | None = attribute(TOKEN)


RedeemLinkResult = Annotated[
    RedeemLinkSuccess | LinkExpired | InvalidInput | AlreadyExists | WrongState, union("RedeemLinkResult")
]


@input_type()
class UpdateProfileInput:
    """What a person says of itself."""

    name: str = attribute("Its name, 1 to 255 characters.")


@object_type()
class UpdateProfileSuccess:
    """The profile is changed."""

    user: User = attribute("The person as it now is.")


UpdateProfileResult = Annotated[UpdateProfileSuccess | CommonRefusals, union("UpdateProfileResult")]


@input_type()
class ChangePasswordInput:
    """The old and the new password."""

    current_password: str | None = attribute("The current password; null where the account has none.", default=None)
    new_password: str = attribute("The new one, 10 to 1024 characters.")


@object_type()
class ChangePasswordSuccess:
    """The password is changed, and all other sessions of the person have ended."""

    user: User = attribute("Whose password it is.")


ChangePasswordResult = Annotated[ChangePasswordSuccess | CommonRefusals, union("ChangePasswordResult")]


@input_type()
class RevokeSessionInput:
    """Which sessions to end: one, or all others."""

    session_id: strawberry.ID | None = attribute("The session.", default=None)
    all_others: bool = attribute("All sessions of the caller but this one.", default=False)


@object_type()
class RevokeSessionSuccess:
    """The sessions have ended; their next request is refused."""

    ended: int = attribute("How many sessions have ended.")


RevokeSessionResult = Annotated[RevokeSessionSuccess | CommonRefusals, union("RevokeSessionResult")]


@object_type()
class AccountQueries:
    """Root fields about who asks."""

    @field(Rule.SIGNED_IN)
    async def viewer(self, info: Info) -> Viewer:
        """Who asks."""
        caller = info.context.viewer
        person = await info.context.services.accounts.get(caller)
        return Viewer(user=user(person), has_password=person.has_password, caller=caller)


@object_type()
class AccountMutations:
    """What people do with their own account."""

    @mutation(Rule.PUBLIC)
    async def sign_in(self, info: Info, input: Annotated[SignInInput, argument("Who signs in.")]) -> SignInResult:
        """Sign in by e-mail and password; over HTTP alone. A wrong address and a wrong password get the same answer."""
        over_http(info)
        signed_in = await info.context.services.accounts.sign_in(
            email=input.email,
            password=input.password,
            client=info.context.exchange.client,
            user_agent=info.context.exchange.user_agent,
        )
        return SignInSuccess(
            user=user(signed_in.user),
            session=session(signed_in.session, signed_in.viewer),
            token=keep(info, signed_in),
        )

    @mutation(Rule.PERSON)
    async def sign_out(
        self, info: Info, input: Annotated[SignOutInput, argument("Where to sign out.")]
    ) -> SignOutResult:
        """End the session of this request."""
        sessions, viewer = info.context.services.sessions, info.context.viewer
        others = await sessions.revoke_others(viewer) if input.everywhere else 0
        await sessions.sign_out(viewer)
        info.context.drop_session()
        return SignOutSuccess(ended=others + 1)

    @mutation(Rule.PUBLIC)
    async def redeem_link(
        self, info: Info, input: Annotated[RedeemLinkInput, argument("The link, with what its kind asks for.")]
    ) -> RedeemLinkResult:
        """Use a one-time link: become the first user, sign in, or set a new password; over HTTP alone."""
        over_http(info)
        given = Redemption(email=input.email, name=input.name, password=input.password, team_name=input.team_name)
        signed_in = await info.context.services.accounts.redeem_link(
            input.token, given, user_agent=info.context.exchange.user_agent
        )
        return RedeemLinkSuccess(
            user=user(signed_in.user),
            session=session(signed_in.session, signed_in.viewer),
            token=keep(info, signed_in),
        )

    @mutation(Rule.PERSON)
    async def update_profile(
        self, info: Info, input: Annotated[UpdateProfileInput, argument("What the caller says of itself.")]
    ) -> UpdateProfileResult:
        """Change the caller's own name."""
        changed = await info.context.services.accounts.update_profile(info.context.viewer, name=input.name)
        return UpdateProfileSuccess(user=user(changed))

    @mutation(Rule.PERSON)
    async def change_password(
        self, info: Info, input: Annotated[ChangePasswordInput, argument("The old and the new password.")]
    ) -> ChangePasswordResult:
        """Change the caller's own password; its other sessions end."""
        accounts, viewer = info.context.services.accounts, info.context.viewer
        await accounts.change_password(viewer, current=input.current_password, new=input.new_password)
        return ChangePasswordSuccess(user=user(await accounts.get(viewer)))

    @mutation(Rule.PERSON)
    async def revoke_session(
        self, info: Info, input: Annotated[RevokeSessionInput, argument("Which sessions to end.")]
    ) -> RevokeSessionResult:
        """End one session of the caller, or all others; they are refused from their next request on."""
        sessions, viewer = info.context.services.sessions, info.context.viewer
        if (input.session_id is None) is not input.all_others:
            raise Invalid([Fault(("sessionId",), "expected either one session or allOthers")])
        if input.session_id is None:
            return RevokeSessionSuccess(ended=await sessions.revoke_others(viewer))
        await sessions.revoke(viewer, decode(input.session_id, Kind.SESSION)[1])
        return RevokeSessionSuccess(ended=1)


def over_http(info: Info) -> None:
    """Refuse to open a session over a socket: it could set no cookie, and would stand as whom it began."""
    if info.context.exchange.over_socket:
        raise BadRequest("expected this over HTTP: a socket keeps the identity that it began with")


def keep(info: Info, signed_in: SignedIn) -> str | None:
    """Go on as who signed in; the session's token, or None where a cookie holds it."""
    info.context.go_on_as(signed_in.viewer)
    return None if info.context.keep_session(signed_in.token) else signed_in.token


NOUN = Noun(
    query=AccountQueries,
    mutation=AccountMutations,
    nodes={Kind.USER: load_users, Kind.SESSION: load_sessions},
)

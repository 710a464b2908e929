"""Every service of one open App: what the interfaces and the loops are given. Only `wiring.py` makes one."""

from dataclasses import dataclass

from app.services.accounts import AccountService
from app.services.credentials import CredentialService
from app.services.invitations import InvitationService
from app.services.members import MemberService
from app.services.sessions import SessionService
from app.services.teams import TeamService


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One field for each service, named as the noun it serves."""

    accounts: AccountService
    sessions: SessionService
    teams: TeamService
    members: MemberService
    invitations: InvitationService
    credentials: CredentialService

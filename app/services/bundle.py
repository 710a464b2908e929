"""Every service of one open App: what the interfaces and the loops are given. Only `wiring/` makes one."""

from dataclasses import dataclass

from app.services.accounts import AccountService
from app.services.agents import AgentService
from app.services.bulk import BulkService
from app.services.connections import ConnectionService
from app.services.credentials import CredentialService
from app.services.dispatch import DispatchService
from app.services.feed import FeedService
from app.services.health import HealthService
from app.services.invitations import InvitationService
from app.services.members import MemberService
from app.services.metrics import MetricsService
from app.services.outputs import OutputService
from app.services.pools import PoolService
from app.services.sessions import SessionService
from app.services.tasks import TaskService
from app.services.teams import TeamService
from app.services.uploads import UploadService
from app.services.waiting import WaitingService
from app.services.workflows import WorkflowService


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One field for each service, named as the noun it serves."""

    accounts: AccountService
    agents: AgentService
    bulk: BulkService
    connections: ConnectionService
    credentials: CredentialService
    dispatch: DispatchService
    feed: FeedService
    health: HealthService
    invitations: InvitationService
    members: MemberService
    metrics: MetricsService
    outputs: OutputService
    pools: PoolService
    sessions: SessionService
    tasks: TaskService
    teams: TeamService
    uploads: UploadService
    waiting: WaitingService
    workflows: WorkflowService

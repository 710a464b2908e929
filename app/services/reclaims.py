"""What is told of leases that ended without their agent's word: to views, to agents, and to placement."""

from collections.abc import Sequence

from app.domain.events import Batch
from app.persistence.hot import Reclaimed
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler


def tell_reclaimed(reclaimed: Sequence[Reclaimed], publisher: FeedPublisher, scheduler: Scheduler, epoch: int) -> None:
    """Tell what a sweep did: to the tasks' views, to their agents, and to placement."""
    for each in reclaimed:
        batch = Batch(epoch, each.events[0].seq, each.events[-1].seq, each.state, each.events)
        publisher.task_changed(each.team_id, each.task_id, batch)
        publisher.agent_look(each.team_id, each.agent_id)
        publisher.agents_changed(each.team_id, each.agent_id)
    for team_id in {each.team_id for each in reclaimed}:
        scheduler.changed(team_id)

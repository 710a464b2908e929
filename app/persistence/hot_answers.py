"""What the rows of the hot statements mean."""

import asyncpg

from app.domain.events import Event, EventKind
from app.domain.task import TaskState, Verb, after
from app.persistence.hot_encoding import Reports
from app.persistence.hot_items import Cancelled, Fence, Finish, Finished, Reported

Record = asyncpg.Record

CANCELLED = after(TaskState.RUNNING, Verb.CANCEL)


def status(row: Record, seq: str) -> Event:
    """The status event that a statement made, whose number is in the column `seq`."""
    return Event(row[seq], row["at"], EventKind.STATUS, row["body"])


def reported(row: Record, reports: Reports) -> Reported:
    if row["had"] is None:
        return Reported(Fence.LEASE_LOST)
    latest = (row["revision"], row["progress"], row["preview"])
    if row["accepted"]:
        return Reported(Fence.ACCEPTED, row["team_id"], reports.stored(row, marked=True), row["last"], 0, *latest)
    if reports.number(row["n"]) <= row["had"]:
        return Reported(Fence.DUPLICATE, row["team_id"], (), row["last"], 0, *latest)
    return Reported(Fence.GAP, row["team_id"], (), row["last"], row["had"] + 1, *latest)


def finished(row: Record, item: Finish, reports: Reports) -> Finished:
    if row["had"] is None:
        return Finished(Fence.LEASE_LOST)
    if row["gap"]:
        return Finished(Fence.GAP, row["team_id"], expected=row["had"] + 1)
    events = reports.stored(row, marked=False) if row["next"] else ()
    return Finished(
        Fence.ACCEPTED,
        row["team_id"],
        TaskState(row["state"]),
        row["again"],
        (*events, status(row, "seq")),
        freed=item.lease.agent_id,
        revision=row["revision"] or 0,
        key_id=row["key_id"],
    )


def cancelled(row: Record) -> Cancelled:
    return Cancelled(row["task_id"], CANCELLED, status(row, "seq"), row["agent_id"], row["key_id"])

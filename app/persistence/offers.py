"""Offers: what the slots of an agent are good for, as placement compares it with requirements.

Invariants:
1. An offer is the agent's labels without those that no requirement of the team names, and the workflows that its key is
   pinned to.
2. When a requirement names a new label, `offer_anew` sees every connect that did not see it: a connect shares the lock
   of the team's labels, and `offer_anew` holds it alone.
Lock order: the team's labels, then as in `sessions.py`.
"""

from collections.abc import Sequence
from uuid import UUID

from app.persistence.database import Connection, Database


async def share_labels(c: Connection, team_id: UUID) -> None:
    """Until this transaction ends nobody offers anew: whoever does then sees the slots that it made."""
    await c.execute(_SHARE_LABELS, str(team_id))


async def offer_of(c: Connection, team_id: UUID, labels: Sequence[str], workflows: Sequence[UUID] | None) -> int:
    """The id of what an agent with these labels offers, pinned to these workflows; made where it is new."""
    found = await c.fetchrow(_NARROWED, team_id, list(labels), workflows)
    if found["id"] is None:
        await c.execute(
            "INSERT INTO offer (team_id, labels) VALUES ($1, $2) ON CONFLICT DO NOTHING", team_id, found["labels"]
        )
        found = await c.fetchrow("SELECT id FROM offer WHERE team_id = $1 AND labels = $2", team_id, found["labels"])
    return int(found["id"])


async def offer_anew(database: Database, team_id: UUID, labels: Sequence[str]) -> int:
    """After a commit whose requirement names new `labels`: agents with them offer them. Returns how many slots."""
    async with database.hot.transaction() as c:
        await c.execute(_OWN_LABELS, str(team_id))
        await c.execute(_MAKE_OFFERS, team_id, list(labels))
        changed = await c.fetch(_CHANGE_OFFERS, team_id, list(labels))
    return len(changed)


_SHARE_LABELS = "SELECT pg_advisory_xact_lock_shared(hashtext('runyard offers'), hashtext($1))"
_OWN_LABELS = "SELECT pg_advisory_xact_lock(hashtext('runyard offers'), hashtext($1))"

_NARROWED = """
SELECT n.labels, o.id FROM (
  SELECT ARRAY(SELECT DISTINCT label COLLATE "C" FROM requirement r, unnest(r.labels) AS label
    WHERE r.team_id = $1 AND label = ANY($2::text[]) ORDER BY 1)
    || ARRAY(SELECT '@' || id FROM unnest($3::uuid[]) AS id ORDER BY id) AS labels
) n LEFT JOIN offer o ON o.team_id = $1 AND o.labels = n.labels
"""
_OFFERED = """
WITH named AS MATERIALIZED (
  SELECT DISTINCT label FROM requirement r, unnest(r.labels) AS label WHERE r.team_id = $1
),
o AS MATERIALIZED (
  SELECT a.id AS agent_id, ARRAY(SELECT label COLLATE "C" FROM named WHERE label = ANY(a.labels) ORDER BY 1)
    || ARRAY(SELECT '@' || id FROM unnest(a.workflows) AS id ORDER BY id) AS labels
  FROM agent a WHERE a.team_id = $1 AND a.labels && $2::text[]
)
"""
_MAKE_OFFERS = f"""{_OFFERED}
INSERT INTO offer (team_id, labels) SELECT DISTINCT $1::uuid, labels FROM o ORDER BY 2 ON CONFLICT DO NOTHING
"""
_CHANGE_OFFERS = f"""{_OFFERED},
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, f.id FROM slot s JOIN o ON o.agent_id = s.agent_id
  JOIN offer f ON f.team_id = $1 AND f.labels = o.labels
  ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
)
UPDATE slot v SET offer_id = s.id FROM s
WHERE v.agent_id = s.agent_id AND v.no = s.no AND v.offer_id <> s.id RETURNING v.agent_id
"""

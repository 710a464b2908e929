-- The same processes over new connections; their sessions and slots are locked by the statements before. $1..$5: n,
-- agent, registration, instance, replica; $6..$8: agent, task, lease of what they hold; $9: states of a living lease.
-- What is told of itself and was not told before is not for here: the registration differs, and nothing is returned.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (SELECT * FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::text[])
  AS t(n, agent_id, registration, instance_id, replica)),
w AS MATERIALIZED (SELECT * FROM unnest($6::uuid[], $7::uuid[], $8::int[]) AS t(agent_id, task_id, lease_no)),
a AS MATERIALIZED (
  SELECT i.*, a.pause FROM i JOIN agent a ON a.id = i.agent_id
  WHERE a.removed_at IS NULL AND a.registration = i.registration
),
h AS MATERIALIZED (
  SELECT s.agent_id, s.no, s.task_id, s.lease_no, s.attempt FROM a JOIN slot s ON s.agent_id = a.agent_id
  WHERE s.task_id IS NOT NULL
),
l AS MATERIALIZED (
  SELECT l.task_id, l.lease_no, l.agent_id, l.state, h.attempt FROM h JOIN task_live l ON l.task_id = h.task_id
  WHERE l.lease_no = h.lease_no AND l.agent_id = h.agent_id AND l.state = ANY($9::text[])
  ORDER BY l.task_id FOR NO KEY UPDATE OF l
),
x AS (
  UPDATE agent_session s SET session_no = s.session_no + 1, alive = true, seen_at = now.at, left_at = NULL,
    replica = a.replica, connected_at = now.at
  FROM a, now WHERE s.agent_id = a.agent_id AND s.instance_id = a.instance_id
  RETURNING s.agent_id, s.session_no, s.slots, s.accepting,
    a.pause IS NULL AND s.accepting AND coalesce(s.suspect_until <= now.at, true) AS opens
),
t AS (
  UPDATE task_live v SET session_no = x.session_no FROM l JOIN x ON x.agent_id = l.agent_id WHERE v.task_id = l.task_id
),
f AS MATERIALIZED (  -- over, and not held any more
  SELECT h.agent_id, h.no FROM h
  WHERE NOT EXISTS (SELECT FROM l WHERE l.task_id = h.task_id AND l.lease_no = h.lease_no)
    AND NOT EXISTS (SELECT FROM w WHERE w.agent_id = h.agent_id AND w.task_id = h.task_id AND w.lease_no = h.lease_no)
),
u AS (
  UPDATE slot s SET session_no = x.session_no, open = x.opens AND s.no <= x.slots,
    task_id = CASE WHEN f.no IS NULL THEN s.task_id END, lease_no = CASE WHEN f.no IS NULL THEN s.lease_no END,
    acked_at = CASE WHEN f.no IS NULL THEN s.acked_at END, deadline_at = CASE WHEN f.no IS NULL THEN s.deadline_at END,
    since = CASE WHEN f.no IS NOT NULL THEN NULL WHEN s.task_id IS NOT NULL AND s.acked_at IS NULL THEN now.at
      ELSE s.since END
  FROM now, slot o JOIN x ON x.agent_id = o.agent_id LEFT JOIN f ON f.agent_id = o.agent_id AND f.no = o.no
  WHERE s.agent_id = o.agent_id AND s.no = o.no
)
SELECT a.n, a.agent_id, x.session_no, x.opens, x.accepting, l.task_id, l.lease_no, l.attempt, l.state
FROM a JOIN x ON x.agent_id = a.agent_id LEFT JOIN l ON l.agent_id = a.agent_id ORDER BY a.n, l.task_id

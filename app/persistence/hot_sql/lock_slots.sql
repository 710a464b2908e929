-- $1: agents; $2 acknowledge, $3 overrun in seconds. Their slots with a lease, locked; every slot is locked.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
s AS MATERIALIZED (
  SELECT agent_id, no, task_id, lease_no, since, acked_at, deadline_at
  FROM slot WHERE agent_id = ANY($1::uuid[]) ORDER BY agent_id, no FOR NO KEY UPDATE
)
SELECT agent_id, no, task_id, lease_no,
  acked_at IS NULL AND since < now.at - make_interval(secs => $2::float8) AS unanswered,
  coalesce(deadline_at < now.at - make_interval(secs => $3::float8), false) AS overdue
FROM s, now WHERE task_id IS NOT NULL

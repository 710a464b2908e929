-- Whose leases may have ended, by a plain read: $1 lease, $2 acknowledge, $3 overrun, $4 hold in seconds; $5 at most.
-- More than half of ten or more live sessions gone at once is our network: they are given the hold on top.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
silent AS (
  SELECT agent_id, seen_at < now.at - make_interval(secs => $1::float8 + $4::float8) AS long
  FROM agent_session, now WHERE alive AND seen_at < now.at - make_interval(secs => $1::float8)
),
network AS (
  SELECT (SELECT count(*) FROM agent_session WHERE alive) >= 10
    AND (SELECT count(*) FROM silent WHERE NOT long) * 2 > (SELECT count(*) FROM agent_session WHERE alive) AS ours
)
(SELECT agent_id, false AS spared FROM silent, network WHERE long OR NOT ours ORDER BY agent_id LIMIT $5)
UNION
SELECT agent_id, false FROM (
  SELECT DISTINCT agent_id FROM slot, now WHERE task_id IS NOT NULL AND (
    (acked_at IS NULL AND since < now.at - make_interval(secs => $2::float8))
    OR deadline_at < now.at - make_interval(secs => $3::float8)) LIMIT $5) late
UNION
(SELECT agent_id, true FROM silent, network WHERE NOT long AND ours LIMIT 1)

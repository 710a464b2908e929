-- $1..$4: leases. A lease once over stays over, so its slot may be freed on what this snapshot says.
WITH i AS (SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[]) AS t(n, task_id, lease_no, agent_id)),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, i.n, i.task_id, i.lease_no
  FROM slot s JOIN i ON s.task_id = i.task_id AND s.lease_no = i.lease_no AND s.agent_id = i.agent_id
  ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
),
u AS (
  UPDATE slot x SET task_id = NULL, lease_no = NULL, since = NULL, acked_at = NULL, deadline_at = NULL
  FROM s WHERE x.agent_id = s.agent_id AND x.no = s.no AND NOT EXISTS (
    SELECT FROM task_live v WHERE v.task_id = s.task_id AND v.lease_no = s.lease_no AND v.state = ANY($5::text[]))
  RETURNING s.n
)
SELECT i.n, s.n IS NULL OR u.n IS NOT NULL AS freed
FROM i LEFT JOIN s ON s.n = i.n LEFT JOIN u ON u.n = i.n ORDER BY i.n

-- $1..$5: leases, each task once; $6: the states that may be acknowledged; $7: what follows.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[], $5::int[])
    AS t(n, task_id, lease_no, agent_id, session_no)
),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, i.n, i.task_id, i.lease_no, i.session_no
  FROM slot s JOIN i ON s.task_id = i.task_id AND s.lease_no = i.lease_no AND s.agent_id = i.agent_id
  ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
),
l AS MATERIALIZED (
  SELECT s.n, s.no, l.team_id, l.task_id, l.state AS was
  FROM s JOIN task_live l ON l.task_id = s.task_id
  WHERE l.lease_no = s.lease_no AND l.agent_id = s.agent_id AND l.session_no = s.session_no
    AND (l.state = ANY($6::text[]) OR l.state = $7)
  ORDER BY l.task_id FOR NO KEY UPDATE OF l
),
t AS (
  UPDATE task_live v SET state = $7, attempts = v.attempts + 1, started_at = now.at, event_seq = v.event_seq + 1
  FROM l, now WHERE v.task_id = l.task_id AND l.was = ANY($6::text[])
  RETURNING l.n, l.no, v.team_id, v.task_id, v.agent_id, v.event_seq,
    jsonb_build_object('v', 1, 'from', l.was, 'state', $7, 'reason', NULL, 'attempt', v.attempts, 'agent', v.agent_id)
      AS body
),
u AS (
  UPDATE slot s SET acked_at = now.at,
    deadline_at = CASE WHEN k.timeout > 0 THEN now.at + make_interval(secs => k.timeout) END
  FROM t JOIN task k ON k.id = t.task_id, now WHERE s.agent_id = t.agent_id AND s.no = t.no
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT i.n, l.n IS NOT NULL AS held, l.team_id, t.event_seq, t.body, now.at
FROM i CROSS JOIN now LEFT JOIN l ON l.n = i.n LEFT JOIN t ON t.n = i.n
ORDER BY i.n

-- $1..$6: the plan, each task and each slot once; $7: the states that may be assigned. Never waits for a lock.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
p AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::smallint[], $5::uuid[], $6::int[])
    AS t(n, task_id, lane, rank, agent_id, no)
),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, s.session_no, s.team_id, p.n, p.task_id, p.lane, p.rank
  FROM slot s JOIN p ON p.agent_id = s.agent_id AND p.no = s.no
  WHERE s.task_id IS NULL AND s.open ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s SKIP LOCKED
),
r AS MATERIALIZED (
  SELECT s.* FROM s JOIN ready r ON r.lane_id = s.lane AND r.rank = s.rank AND r.task_id = s.task_id
  FOR UPDATE OF r SKIP LOCKED
),
l AS MATERIALIZED (
  SELECT r.*, l.state AS was FROM r JOIN task_live l ON l.task_id = r.task_id AND l.team_id = r.team_id
  WHERE l.state = ANY($7::text[]) FOR NO KEY UPDATE OF l SKIP LOCKED
),
z AS (  -- heads of tasks that have ended: a task once gone stays gone
  DELETE FROM ready q USING r
  WHERE q.lane_id = r.lane AND q.rank = r.rank AND q.task_id = r.task_id
    AND NOT EXISTS (SELECT FROM task_live v WHERE v.task_id = r.task_id)
),
d AS (
  DELETE FROM ready q USING l WHERE q.lane_id = l.lane AND q.rank = l.rank AND q.task_id = l.task_id
),
t AS (
  UPDATE task_live v SET state = 'queued', reason = NULL, lease_no = v.lease_no + 1, agent_id = l.agent_id,
    session_no = l.session_no, deliveries = v.deliveries + 1, event_seq = v.event_seq + 1, report_no = 0
  FROM l WHERE v.task_id = l.task_id
  RETURNING l.n, v.team_id, v.task_id, v.lease_no, v.agent_id, l.no, v.session_no, v.event_seq,
    v.attempts + 1 AS attempt, v.lane_id, jsonb_build_object('v', 1, 'from', l.was, 'state', 'queued', 'reason', NULL, 'attempt', v.attempts + 1,
      'agent', v.agent_id) AS body
),
u AS (
  UPDATE slot s SET task_id = t.task_id, lease_no = t.lease_no, attempt = t.attempt, lane_id = t.lane_id,
    since = now.at, acked_at = NULL, deadline_at = NULL
  FROM t, now WHERE s.agent_id = t.agent_id AND s.no = t.no
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT t.*, now.at FROM t, now ORDER BY t.n

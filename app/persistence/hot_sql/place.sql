-- $1..$6: the plan, each task and each slot once; $7: the states that may be assigned; $8: the tasks' keys. Never waits
-- for a lock.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
p AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::smallint[], $5::uuid[], $6::int[], $8::uuid[])
    AS t(n, task_id, lane, rank, agent_id, no, key_id)
),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, s.session_no, s.team_id, p.n, p.task_id, p.lane, p.rank, p.key_id
  FROM slot s JOIN p ON p.agent_id = s.agent_id AND p.no = s.no
  WHERE s.task_id IS NULL AND s.open ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s SKIP LOCKED
),
m AS MATERIALIZED (
  SELECT key_id, takes FROM semaphore WHERE key_id = ANY(ARRAY(SELECT DISTINCT key_id FROM s WHERE key_id IS NOT NULL))
  ORDER BY key_id FOR NO KEY UPDATE SKIP LOCKED
),
f AS MATERIALIZED (  -- what is free of each key: nothing is known where it was taken since this snapshot began
  SELECT m.key_id, coalesce(k.most - k.held, 1000) AS room
  FROM m CROSS JOIN LATERAL (SELECT * FROM permit k WHERE k.key_id = m.key_id AND k.takes = m.takes) k
),
g AS MATERIALIZED (
  SELECT * FROM s WHERE key_id IS NULL
  UNION ALL
  SELECT x.agent_id, x.no, x.session_no, x.team_id, x.n, x.task_id, x.lane, x.rank, x.key_id
  FROM (SELECT s.*, row_number() OVER (PARTITION BY key_id ORDER BY n) AS turn FROM s WHERE key_id IS NOT NULL) x
  JOIN f ON f.key_id = x.key_id WHERE x.turn <= f.room
),
r AS MATERIALIZED (
  SELECT g.* FROM g JOIN ready r ON r.lane_id = g.lane AND r.rank = g.rank AND r.task_id = g.task_id
    AND r.key_id IS NOT DISTINCT FROM g.key_id
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
    v.attempts + 1 AS attempt, v.lane_id, v.key_id, jsonb_build_object('v', 1, 'from', l.was, 'state', 'queued',
      'reason', NULL, 'attempt', v.attempts + 1, 'agent', v.agent_id) AS body
),
u AS (
  UPDATE slot s SET task_id = t.task_id, lease_no = t.lease_no, attempt = t.attempt, lane_id = t.lane_id,
    key_id = t.key_id, since = now.at, acked_at = NULL, deadline_at = NULL
  FROM t, now WHERE s.agent_id = t.agent_id AND s.no = t.no
),
y AS (
  UPDATE semaphore v SET takes = v.takes + 1, used_at = now.at
  FROM (SELECT DISTINCT key_id FROM t WHERE key_id IS NOT NULL) t, now WHERE v.key_id = t.key_id
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT t.*, now.at FROM t, now ORDER BY t.n

-- $1: tasks; $2: their team; $3: the states that may be cancelled; $4: the reason. Does not touch slots: their agents do.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
l AS MATERIALIZED (
  SELECT * FROM task_live WHERE task_id = ANY($1::uuid[]) AND team_id = $2 AND state = ANY($3::text[])
  ORDER BY task_id FOR UPDATE
),
d AS (DELETE FROM task_live v USING l WHERE v.task_id = l.task_id RETURNING v.task_id),
r AS (
  DELETE FROM ready q USING l WHERE q.lane_id = l.lane_id AND q.rank = l.rank AND q.task_id = l.task_id
),
p AS (
  DELETE FROM blocked q USING l WHERE q.team_id = l.team_id AND q.key_id = l.key_id AND q.lane_id = l.lane_id
    AND q.rank = l.rank AND q.task_id = l.task_id
),
x AS MATERIALIZED (
  SELECT l.*, l.event_seq + 1 AS seq, jsonb_build_object('v', 1, 'from', l.state, 'state', 'cancelled', 'reason', $4::text,
    'attempt', l.attempts, 'agent', l.agent_id)
    || CASE WHEN l.log_dropped > 0 THEN jsonb_build_object('droppedLines', l.log_dropped) ELSE '{}' END AS body
  FROM l JOIN d USING (task_id)
),
te AS (
  INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
    error, result, progress, preview, revision)
  SELECT task_id, team_id, 'cancelled', $4, lease_no, seq, attempts, agent_id, started_at, now.at, NULL, NULL, progress,
    preview, revision FROM x, now
),
at AS (
  INSERT INTO attempt (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome, reason)
  SELECT task_id, attempts, team_id, lease_no, agent_id, started_at, now.at, 'cancelled', $4
  FROM x, now WHERE started_at IS NOT NULL
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, seq, now.at, 'status', body FROM x, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT x.team_id, x.task_id, x.seq, li.kind FROM x JOIN listener li ON li.team_id = x.team_id
)
SELECT x.task_id, x.agent_id, x.key_id, x.seq, x.body, now.at FROM x, now

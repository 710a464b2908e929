-- $1: tasks for which too many launches came to nothing; $2: the states that fail so; $3: what the last one failed of.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
l AS MATERIALIZED (
  SELECT * FROM task_live WHERE task_id = ANY($1::uuid[]) AND state = ANY($2::text[]) ORDER BY task_id FOR UPDATE
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
  SELECT l.*, l.event_seq + 1 AS seq, jsonb_build_object('v', 1, 'from', l.state, 'state', 'failed',
    'reason', 'provisioning_failed', 'attempt', l.attempts, 'agent', NULL) AS body
  FROM l JOIN d USING (task_id)
),
te AS (
  INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
    error, result, progress, preview, revision)
  SELECT task_id, team_id, 'failed', 'provisioning_failed', lease_no, seq, attempts, NULL, NULL, now.at,
    jsonb_build_object('code', 'PROVISIONING_FAILED', 'message', $3::text, 'details', NULL,
      'lastLogLines', last_log_lines(task_id, attempts, '[]')), NULL, progress, preview, revision
  FROM x, now
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, seq, now.at, 'status', body FROM x, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT x.team_id, x.task_id, x.seq, li.kind FROM x JOIN listener li ON li.team_id = x.team_id
)
SELECT x.team_id, x.task_id, x.seq AS event_seq, x.body, now.at FROM x, now

-- $1: tasks that no pass could place; $2: the states that may be held.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
l AS MATERIALIZED (
  SELECT task_id, state AS was FROM task_live WHERE task_id = ANY($1::uuid[]) AND state = ANY($2::text[])
  ORDER BY task_id FOR NO KEY UPDATE
),
t AS (
  UPDATE task_live v SET state = 'waiting', event_seq = v.event_seq + 1 FROM l WHERE v.task_id = l.task_id
  RETURNING v.team_id, v.task_id, v.event_seq,
    jsonb_build_object('v', 1, 'from', l.was, 'state', 'waiting', 'reason', NULL, 'attempt', v.attempts, 'agent', NULL)
      AS body
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT t.*, now.at FROM t, now

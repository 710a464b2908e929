-- $1: tasks in the order of the queue; $2: the states that may be provisioned for; $3: at most so many. They stay in
-- `ready`. Never waits for a lock. A task in its pause is not in `ready`: it must come back from it as `waiting`.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (SELECT * FROM unnest($1::uuid[]) WITH ORDINALITY AS t(task_id, place)),
l AS MATERIALIZED (
  SELECT l.task_id, l.state AS was FROM i JOIN task_live l ON l.task_id = i.task_id
  WHERE l.state = ANY($2::text[]) AND l.reason IS DISTINCT FROM 'backing_off'
    AND EXISTS (SELECT FROM ready r WHERE r.lane_id = l.lane_id AND r.rank = l.rank AND r.task_id = l.task_id)
  ORDER BY l.task_id FOR NO KEY UPDATE OF l SKIP LOCKED
),
t AS (
  UPDATE task_live v SET state = 'provisioning', reason = NULL, event_seq = v.event_seq + 1
  FROM l WHERE v.task_id = l.task_id
  RETURNING v.team_id, v.task_id, v.event_seq, jsonb_build_object('v', 1, 'from', l.was, 'state', 'provisioning',
    'reason', NULL, 'attempt', v.attempts, 'agent', NULL) AS body
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT t.*, now.at FROM t, now

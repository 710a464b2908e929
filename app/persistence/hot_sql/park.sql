-- $1..$3: places in the queue, by lane, rank and task, whose tasks found their key held; $4: the states that may be held;
-- $5: the states in which a task waits. Places of tasks that have ended are dropped. Whoever parks looks again after its
-- commit (`wake`): the key may have been let go meanwhile.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
p AS MATERIALIZED (SELECT * FROM unnest($1::int[], $2::smallint[], $3::uuid[]) AS t(lane_id, rank, task_id)),
l AS MATERIALIZED (
  SELECT task_id, team_id, lane_id, rank, key_id, state AS was FROM task_live
  WHERE task_id = ANY($3::uuid[]) AND state = ANY($5::text[]) AND key_id IS NOT NULL
  ORDER BY task_id FOR NO KEY UPDATE
),
d AS (
  DELETE FROM ready q USING l JOIN p ON p.task_id = l.task_id
  WHERE q.lane_id = p.lane_id AND q.rank = p.rank AND q.task_id = p.task_id
  RETURNING l.team_id, l.key_id, l.lane_id, l.rank, l.task_id, l.was
),
z AS (  -- a task once gone stays gone
  DELETE FROM ready q USING p WHERE q.lane_id = p.lane_id AND q.rank = p.rank AND q.task_id = p.task_id
    AND NOT EXISTS (SELECT FROM task_live v WHERE v.task_id = p.task_id)
),
b AS (
  INSERT INTO blocked (team_id, key_id, lane_id, rank, task_id) SELECT team_id, key_id, lane_id, rank, task_id FROM d
),
t AS (
  UPDATE task_live v SET state = 'waiting', event_seq = v.event_seq + 1
  FROM d WHERE v.task_id = d.task_id AND d.was = ANY($4::text[])
  RETURNING v.team_id, v.task_id, v.event_seq,
    jsonb_build_object('v', 1, 'from', d.was, 'state', 'waiting', 'reason', NULL, 'attempt', v.attempts, 'agent', NULL)
      AS body
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, event_seq, now.at, 'status', body FROM t, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT t.team_id, t.task_id, t.event_seq, li.kind FROM t JOIN listener li ON li.team_id = t.team_id
)
SELECT d.key_id, d.team_id, d.task_id, t.event_seq, t.body, now.at FROM d CROSS JOIN now LEFT JOIN t USING (task_id)

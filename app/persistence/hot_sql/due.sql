-- At most $1 rows whose time has come: tasks after their pause are ready again, tasks past their queue timeout fail.
-- $2: the states that may expire; $3: seconds after which a task that is just being given out is looked at again.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
q AS MATERIALIZED (
  SELECT task_id, kind FROM later WHERE due_at <= (SELECT at FROM now) ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
),
w AS MATERIALIZED (SELECT task_id, bool_or(kind = 'expire') AS expires FROM q GROUP BY task_id),
l AS MATERIALIZED (
  SELECT l.*, CASE WHEN w.expires AND l.state = ANY($2::text[]) THEN 'expire'
    WHEN w.expires AND l.state = 'queued' THEN 'put off'
    WHEN NOT w.expires AND l.state = 'waiting' AND l.reason = 'backing_off' THEN 'queue' ELSE 'nothing' END AS verdict
  FROM w JOIN task_live l ON l.task_id = w.task_id ORDER BY l.task_id FOR UPDATE OF l
),
p AS (
  UPDATE later v SET due_at = now.at + make_interval(secs => $3::float8) FROM l, now
  WHERE v.task_id = l.task_id AND v.kind = 'expire' AND l.verdict = 'put off'
),
z AS (
  DELETE FROM later v USING q WHERE v.task_id = q.task_id AND v.kind = q.kind
    AND NOT EXISTS (SELECT FROM l WHERE l.task_id = q.task_id AND l.verdict = 'put off')
),
d AS (DELETE FROM task_live v USING l WHERE v.task_id = l.task_id AND l.verdict = 'expire' RETURNING v.task_id),
y AS (DELETE FROM ready v USING l WHERE v.lane_id = l.lane_id AND v.rank = l.rank AND v.task_id = l.task_id
  AND l.verdict = 'expire'),
k AS (DELETE FROM blocked v USING l WHERE v.team_id = l.team_id AND v.key_id = l.key_id AND v.lane_id = l.lane_id
  AND v.rank = l.rank AND v.task_id = l.task_id AND l.verdict = 'expire'),
u AS (
  UPDATE task_live v SET reason = NULL FROM l WHERE v.task_id = l.task_id AND l.verdict = 'queue' RETURNING v.task_id
),
r AS (
  INSERT INTO ready (lane_id, rank, task_id, key_id) SELECT lane_id, rank, task_id, key_id FROM l
  WHERE verdict = 'queue'
  ON CONFLICT DO NOTHING
),
x AS MATERIALIZED (
  SELECT l.*, l.event_seq + 1 AS seq, jsonb_build_object('v', 1, 'from', l.state, 'state', 'failed', 'reason', 'expired',
    'attempt', l.attempts, 'agent', NULL) AS body
  FROM l JOIN d USING (task_id)
),
te AS (
  INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
    error, result, progress, preview, revision)
  SELECT task_id, team_id, 'failed', 'expired', lease_no, seq, attempts, NULL, NULL, now.at,
    jsonb_build_object('code', 'EXPIRED', 'message', 'no agent took the task within its queue timeout', 'details', NULL,
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
SELECT l.task_id, l.team_id, l.lane_id, l.key_id, l.verdict, x.seq, x.body, now.at
FROM l CROSS JOIN now LEFT JOIN x ON x.task_id = l.task_id WHERE l.verdict IN ('queue', 'expire')

-- Ends leases whose slots the caller has locked: $1..$6; in a snapshot begun after those locks.
-- $7: states of a living lease; $8: agents that may miss a task before it fails; $9, $10: back-off, base and cap (s).
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[], $5::int[], $6::text[])
    AS t(n, agent_id, no, task_id, lease_no, cause)
),
l AS MATERIALIZED (
  SELECT i.n, i.cause, l.* FROM i JOIN task_live l ON l.task_id = i.task_id
  WHERE l.lease_no = i.lease_no AND l.agent_id = i.agent_id AND l.state = ANY($7::text[])
  ORDER BY l.task_id FOR UPDATE OF l
),
m AS MATERIALIZED (
  SELECT l.*, k.retry_max, k.retry_on, CASE l.cause WHEN 'unanswered' THEN 'ack_timeout' WHEN 'overdue' THEN 'timed_out'
      WHEN 'restarted' THEN 'agent_restarted' WHEN 'declined' THEN 'agent_paused' ELSE 'agent_lost' END AS why,
    CASE WHEN l.state = 'queued' AND l.cause IN ('unanswered', 'silent') AND l.agent_id <> ALL(l.missed)
      THEN l.missed || l.agent_id ELSE l.missed END AS missing
  FROM l JOIN task k ON k.id = l.task_id
),
f AS MATERIALIZED (  -- decided: back to the queue, back after a pause, or failed
  SELECT m.*, CASE
      WHEN state = 'queued' THEN CASE WHEN cardinality(missing) < $8 THEN 'queue' ELSE 'fail' END
      WHEN attempts <= retry_max
        AND CASE WHEN why = 'timed_out' THEN why ELSE 'agent_lost' END = ANY(retry_on) THEN 'pause'
      ELSE 'fail' END AS verdict,
    CASE WHEN state = 'queued' AND cardinality(missing) >= $8 THEN 'dispatch_exhausted' ELSE why END AS cause_told
  FROM m
),
d AS (DELETE FROM task_live v USING f WHERE v.task_id = f.task_id AND f.verdict = 'fail' RETURNING f.n),
w AS (
  UPDATE task_live v SET state = 'waiting', reason = CASE f.verdict WHEN 'pause' THEN 'backing_off' END, agent_id = NULL,
    session_no = NULL, started_at = NULL, event_seq = v.event_seq + 1, missed = f.missing,
    progress = NULL, revision = v.revision + (v.progress IS NOT NULL)::int
  FROM f WHERE v.task_id = f.task_id AND f.verdict <> 'fail' RETURNING f.n
),
r AS (
  INSERT INTO ready (lane_id, rank, task_id, key_id) SELECT lane_id, rank, task_id, key_id FROM f
  WHERE verdict = 'queue'
  ON CONFLICT DO NOTHING
),
b AS (
  INSERT INTO later (task_id, kind, due_at)
  SELECT task_id, 'retry', now.at + make_interval(secs =>
    least($10::float8, $9::float8 * 2 ^ least(attempts - 1, 30)) * (0.8 + 0.4 * random()))
  FROM f, now WHERE verdict = 'pause'
),
x AS MATERIALIZED (
  SELECT f.*, f.event_seq + 1 AS seq, CASE verdict WHEN 'fail' THEN 'failed' ELSE 'waiting' END AS became,
    jsonb_build_object('code', upper(cause_told), 'message', CASE cause_told
      WHEN 'timed_out' THEN 'the task ran for longer than its timeout'
      WHEN 'agent_restarted' THEN 'the agent was started anew while it ran the task'
      WHEN 'dispatch_exhausted' THEN 'the task was given to ' || $8 || ' agents and none of them acknowledged it'
      ELSE 'the agent that ran the task gave no sign of life' END,
      'details', CASE WHEN progress IS NOT NULL THEN jsonb_build_object('progress', progress) END, 'lastLogLines', last_log_lines(task_id, attempts, '[]')) AS told
  FROM f
),
te AS (
  INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
    error, result, progress, preview, revision)
  SELECT task_id, team_id, 'failed', cause_told, lease_no, seq, attempts, agent_id, started_at, now.at, told, NULL,
    progress, preview, revision FROM x, now WHERE verdict = 'fail'
),
at AS (
  INSERT INTO attempt (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome, reason, error)
  SELECT task_id, attempts, team_id, lease_no, agent_id, started_at, now.at,
    CASE why WHEN 'timed_out' THEN 'timed_out' ELSE 'agent_lost' END, why, told
  FROM x, now WHERE state = 'running'
),
u AS (  -- an overdue task's process may still run: its slot stays taken until the agent releases it
  UPDATE slot s SET task_id = NULL, lease_no = NULL, since = NULL, acked_at = NULL, deadline_at = NULL
  FROM i WHERE s.agent_id = i.agent_id AND s.no = i.no AND i.cause <> 'overdue'
),
v AS (
  UPDATE slot s SET deadline_at = NULL FROM i WHERE s.agent_id = i.agent_id AND s.no = i.no AND i.cause = 'overdue'
),
c AS MATERIALIZED (
  SELECT x.*, jsonb_build_object('v', 1, 'from', state, 'state', became, 'reason', cause_told, 'attempt', attempts,
    'agent', agent_id)
    || CASE WHEN verdict = 'fail' AND log_dropped > 0 THEN jsonb_build_object('droppedLines', log_dropped) ELSE '{}' END
    AS body
  FROM x
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, seq, now.at, 'status', body FROM c, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT c.team_id, c.task_id, c.seq, li.kind FROM c JOIN listener li ON li.team_id = c.team_id
)
SELECT c.n, c.team_id, c.task_id, c.agent_id, c.lease_no, c.lane_id, c.became, c.cause_told, c.seq, c.body, now.at
FROM c, now ORDER BY c.n

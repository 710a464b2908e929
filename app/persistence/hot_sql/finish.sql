-- $1..$16: results, each task once; $17: bytes at which a task's log ends; $18: the state that finishes; $19..$23: their
-- last events, `kept` counting those that pass also at the end of the log; $24, $25: back-off, base and cap in seconds.
-- The slot is freed only from the join with the live row that this statement ends: see rule 3.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[], $5::int[], $6::int[], $7::int[], $8::int[],
    $9::bigint[], $10::bigint[], $11::jsonb[], $12::text[], $13::jsonb[], $14::text[], $15::jsonb[], $16::jsonb[])
    AS t(n, task_id, lease_no, agent_id, session_no, number, events, kept, bytes, lines, progress, preview, error, reason,
      result, own)
),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no, i.n FROM slot s
  JOIN i ON s.task_id = i.task_id AND s.lease_no = i.lease_no AND s.agent_id = i.agent_id
  ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
),
l AS MATERIALIZED (
  SELECT i.*, s.no, l.team_id, l.report_no AS had, l.event_seq AS base, l.attempts, l.log_dropped, l.started_at,
    l.state AS was, l.key_id, i.bytes = 0 OR l.log_bytes + i.bytes <= $17 AS fits, l.report_no + 1 < i.number AS gap,
    l.report_no + 1 = i.number AS next
  FROM s JOIN i ON i.n = s.n JOIN task_live l ON l.task_id = i.task_id
  WHERE l.lease_no = i.lease_no AND l.agent_id = i.agent_id AND l.session_no = i.session_no AND l.state = $18
  ORDER BY l.task_id FOR UPDATE OF l
),
f AS MATERIALIZED (  -- decided: `again` is the back-off in seconds where the retry policy allows another attempt
  SELECT l.*, l.base + CASE WHEN NOT l.next THEN 0 WHEN l.fits THEN l.events ELSE l.kept END + 1 AS seq,
    CASE WHEN l.error IS NOT NULL AND l.attempts <= k.retry_max
        AND CASE WHEN l.reason = 'timed_out' THEN 'timed_out' WHEN l.reason = 'agent_restarted' THEN 'agent_lost'
          ELSE 'failed' END = ANY(k.retry_on)
      THEN least($25, $24 * 2 ^ least(l.attempts - 1, 30)) * (0.8 + 0.4 * random()) END AS again,
    CASE WHEN l.error IS NOT NULL
      THEN l.error || jsonb_build_object('lastLogLines', last_log_lines(l.task_id, l.attempts, l.own)) END AS told
  FROM l JOIN task k ON k.id = l.task_id WHERE NOT l.gap
),
d AS (
  DELETE FROM task_live v USING f WHERE v.task_id = f.task_id AND f.again IS NULL
  RETURNING f.n, v.progress, v.preview, v.revision
),
w AS (
  UPDATE task_live v SET state = 'waiting', reason = 'backing_off', agent_id = NULL, session_no = NULL,
    started_at = NULL, event_seq = f.seq, log_bytes = v.log_bytes + CASE WHEN f.next AND f.fits THEN f.bytes ELSE 0 END,
    log_dropped = v.log_dropped + CASE WHEN f.next AND NOT f.fits THEN f.lines ELSE 0 END,
    progress = NULL, preview = coalesce(f.preview, v.preview), revision = v.revision + 1
  FROM f WHERE v.task_id = f.task_id AND f.again IS NOT NULL RETURNING f.n
),
b AS (
  INSERT INTO later (task_id, kind, due_at)
  SELECT f.task_id, 'retry', now.at + make_interval(secs => f.again) FROM f JOIN w ON w.n = f.n, now
),
x AS MATERIALIZED (  -- what this statement ended
  SELECT f.*, CASE WHEN f.again IS NOT NULL THEN 'waiting' WHEN f.error IS NOT NULL THEN 'failed' ELSE 'completed' END
      AS state,
    CASE WHEN f.error IS NOT NULL THEN coalesce(f.reason, 'agent_error') END AS why,
    CASE WHEN f.next AND NOT f.fits THEN f.log_dropped + f.lines ELSE f.log_dropped END AS dropped
  FROM f WHERE f.n IN (SELECT n FROM d UNION ALL SELECT n FROM w)
),
te AS (
  INSERT INTO task_end (task_id, team_id, state, reason, lease_no, event_seq, attempts, agent_id, started_at, ended_at,
    error, result, progress, preview, revision)
  SELECT x.task_id, x.team_id, x.state, x.why, x.lease_no, x.seq, x.attempts, x.agent_id, x.started_at, now.at, x.told,
    x.result, coalesce(x.progress, d.progress), coalesce(x.preview, d.preview),
    d.revision + (x.progress IS NOT NULL OR x.preview IS NOT NULL)::int
  FROM x JOIN d ON d.n = x.n, now
),
at AS (
  INSERT INTO attempt (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome, reason, error, reported)
  SELECT task_id, attempts, team_id, lease_no, agent_id, started_at, now.at,
    CASE WHEN error IS NULL THEN 'completed' WHEN why = 'timed_out' THEN 'timed_out' ELSE 'failed' END, why, told, true
  FROM x, now
),
u AS (
  UPDATE slot s SET task_id = NULL, lease_no = NULL, since = NULL, acked_at = NULL, deadline_at = NULL
  FROM x WHERE s.agent_id = x.agent_id AND s.no = x.no RETURNING x.n
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body)
  SELECT x.task_id, x.base + CASE WHEN x.fits THEN y.ord ELSE y.kept END, now.at, y.kind, y.body
  FROM x JOIN unnest($19::int[], $20::int[], $21::int[], $22::text[], $23::jsonb[])
    AS y(n, ord, kept, kind, body) ON y.n = x.n, now
  WHERE x.next AND (x.fits OR y.kept IS NOT NULL)
),
c AS MATERIALIZED (
  SELECT x.n, x.team_id, x.task_id, x.seq, jsonb_build_object('v', 1, 'from', x.was, 'state', x.state, 'reason', x.why,
    'attempt', x.attempts, 'agent', x.agent_id)
    || CASE WHEN x.dropped > 0 THEN jsonb_build_object('droppedLines', x.dropped) ELSE '{}' END AS body
  FROM x
),
h AS (
  INSERT INTO task_event (task_id, seq, at, kind, body) SELECT task_id, seq, now.at, 'status', body FROM c, now
),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT c.team_id, c.task_id, c.seq, li.kind FROM c JOIN listener li ON li.team_id = c.team_id
)
SELECT i.n, now.at, l.team_id, l.had, l.gap, l.next, l.fits, l.base, x.state, x.key_id, x.again, x.seq, c.body,
  d.revision + (x.progress IS NOT NULL OR x.preview IS NOT NULL)::int AS revision
FROM i CROSS JOIN now LEFT JOIN l ON l.n = i.n LEFT JOIN x ON x.n = i.n LEFT JOIN c ON c.n = i.n
LEFT JOIN d ON d.n = i.n ORDER BY i.n

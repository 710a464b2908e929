-- $1..$12: reports, each task once; $13: bytes at which a task's log ends; $14: the state that reports; $15..$19: their
-- events, `kept` counting those that pass also then; $20: the event that stands for the first lines that do not; $21:
-- events at which a task's log ends.
-- Number 0 is the server's own word under the lease (a verified output): it is not counted among the reports.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS (
  SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[], $5::int[], $6::int[], $7::int[], $8::int[],
    $9::bigint[], $10::bigint[], $11::jsonb[], $12::text[])
    AS t(n, task_id, lease_no, agent_id, session_no, number, events, kept, bytes, lines, progress, preview)
),
l AS MATERIALIZED (
  SELECT i.n, l.task_id, l.team_id, l.report_no AS had, l.event_seq AS base, l.attempts, i.number, i.events, i.kept,
    i.bytes, i.lines, i.progress, i.preview,
    i.bytes = 0 OR (l.log_bytes + i.bytes <= $13 AND l.event_seq + i.events <= $21) AS fits,
    l.log_dropped = 0 AS first, l.revision, l.progress AS old_progress, l.preview AS old_preview
  FROM task_live l JOIN i ON i.task_id = l.task_id
  WHERE l.lease_no = i.lease_no AND l.agent_id = i.agent_id AND l.session_no = i.session_no AND l.state = $14
  ORDER BY l.task_id FOR NO KEY UPDATE OF l
),
t AS (
  UPDATE task_live v SET report_no = greatest(v.report_no, l.number),
    event_seq = v.event_seq + CASE WHEN l.fits THEN l.events ELSE l.kept + l.first::int END,
    log_bytes = v.log_bytes + CASE WHEN l.fits THEN l.bytes ELSE 0 END,
    log_dropped = v.log_dropped + CASE WHEN l.fits THEN 0 ELSE l.lines END,
    progress = coalesce(l.progress, v.progress), preview = coalesce(l.preview, v.preview),
    revision = v.revision + (l.progress IS NOT NULL OR l.preview IS NOT NULL)::int
  FROM l WHERE v.task_id = l.task_id AND l.number IN (0, l.had + 1)
  RETURNING l.n, v.task_id, v.event_seq, v.revision, v.progress, v.preview
),
e AS (
  INSERT INTO task_event (task_id, seq, at, kind, body)
  SELECT l.task_id, l.base + CASE WHEN l.fits THEN x.ord ELSE x.kept END, now.at, x.kind, x.body
  FROM t JOIN l ON l.n = t.n JOIN unnest($15::int[], $16::int[], $17::int[], $18::text[], $19::jsonb[])
    AS x(n, ord, kept, kind, body) ON x.n = l.n, now
  WHERE l.fits OR x.kept IS NOT NULL
),
m AS (
  INSERT INTO task_event (task_id, seq, at, kind, body)
  SELECT t.task_id, t.event_seq, now.at, 'log', $20::jsonb || jsonb_build_object('attempt', l.attempts)
  FROM t JOIN l ON l.n = t.n, now WHERE NOT l.fits AND l.first
)
SELECT i.n, now.at, l.team_id, l.had, l.base, l.attempts, l.fits, l.first, t.n IS NOT NULL AS accepted,
  coalesce(t.event_seq, l.base) AS last, coalesce(t.revision, l.revision) AS revision,
  coalesce(t.progress, l.old_progress) AS progress, coalesce(t.preview, l.old_preview) AS preview
FROM i CROSS JOIN now LEFT JOIN l ON l.n = i.n LEFT JOIN t ON t.n = i.n ORDER BY i.n

-- A task as it stands: its submit, and its present or its end. Exactly one of the two is there.
CREATE VIEW task_state AS
SELECT
  t.id, t.team_id, t.workflow_id, t.version, t.submitter_id, t.credential_id, t.lane_id, t.priority, t.tags, t.params,
  t.timeout, t.queue_timeout, t.retry_max, t.retry_on, t.retry_of, t.created_at,
  coalesce(l.state, e.state) AS state,
  CASE WHEN l.task_id IS NOT NULL THEN l.reason ELSE e.reason END AS reason,
  coalesce(l.lease_no, e.lease_no) AS lease_no,
  coalesce(l.attempts, e.attempts) AS attempts,
  coalesce(l.event_seq, e.event_seq) AS event_seq,
  CASE WHEN l.task_id IS NOT NULL THEN l.agent_id ELSE e.agent_id END AS agent_id,
  CASE WHEN l.task_id IS NOT NULL THEN l.started_at ELSE e.started_at END AS started_at,
  e.ended_at,
  CASE WHEN l.task_id IS NOT NULL THEN l.progress ELSE e.progress END AS progress,
  CASE WHEN l.task_id IS NOT NULL THEN l.preview ELSE e.preview END AS preview,
  coalesce(l.revision, e.revision) AS revision,
  e.error,
  e.result
FROM task t
LEFT JOIN task_live l ON l.task_id = t.id
LEFT JOIN task_end e ON e.task_id = t.id;

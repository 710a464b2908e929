-- Concurrency keys. Who holds a key is counted from the slots: a permit is a slot that holds a lease of a task with the
-- key, so that it ends however the lease ends, and there is no counter that could drift.

ALTER TABLE task ADD COLUMN concurrency_key text;      -- as people read it
ALTER TABLE task_live ADD COLUMN key_id uuid;          -- a hash of the workflow and the key
ALTER TABLE ready ADD COLUMN key_id uuid;
ALTER TABLE slot ADD COLUMN key_id uuid;               -- of the task that it holds or held last
CREATE INDEX task_live_by_key ON task_live (key_id, task_id) WHERE key_id IS NOT NULL;
CREATE INDEX ready_by_key ON ready (key_id, lane_id, rank, task_id) WHERE key_id IS NOT NULL;
CREATE INDEX slot_of_key ON slot (key_id) WHERE task_id IS NOT NULL AND key_id IS NOT NULL;

-- No version has used these two yet.
DROP TABLE blocked;
DROP TABLE semaphore;

-- Tasks whose key is held: parked here, not rescanned. Each lane of a key has a queue of its own.
CREATE TABLE blocked (
  team_id uuid NOT NULL,
  key_id  uuid NOT NULL,
  lane_id integer NOT NULL,
  rank    smallint NOT NULL,
  task_id uuid NOT NULL,
  PRIMARY KEY (team_id, key_id, lane_id, rank, task_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- What takers of a key lock, and how often it was taken: whoever finds another number than its snapshot has, finds
-- holders that its snapshot has not.
CREATE TABLE semaphore (
  key_id      uuid PRIMARY KEY,
  workflow_id uuid NOT NULL,
  takes       bigint NOT NULL DEFAULT 0,
  used_at     timestamptz NOT NULL DEFAULT app_now()
) WITH (fillfactor = 50);

-- How many may hold a key by the workflow's current version (null: any number), and how many do.
CREATE VIEW permit AS
SELECT m.key_id, m.workflow_id, m.takes, (v.concurrency->>'limit')::integer AS most,
  (SELECT count(*)::integer FROM slot s WHERE s.key_id = m.key_id AND s.task_id IS NOT NULL) AS held
FROM semaphore m
JOIN workflow w ON w.id = m.workflow_id
JOIN workflow_version v ON v.workflow_id = w.id AND v.number = w.version;

CREATE OR REPLACE VIEW task_state AS
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
  e.result,
  t.concurrency_key
FROM task t
LEFT JOIN task_live l ON l.task_id = t.id
LEFT JOIN task_end e ON e.task_id = t.id;

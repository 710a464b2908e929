-- The present: small, hot, deleted at the end. No foreign keys.

CREATE TABLE task_live (
  task_id     uuid PRIMARY KEY,
  team_id     uuid NOT NULL,
  state       text NOT NULL CHECK (state IN ('pending', 'waiting', 'provisioning', 'queued', 'running')),
  reason      text,
  lane_id     integer NOT NULL,
  rank        smallint NOT NULL,              -- the negated priority
  lease_no    integer NOT NULL DEFAULT 0,     -- grows by one with each assignment, is never reset
  agent_id    uuid,
  session_no  integer,
  attempts    integer NOT NULL DEFAULT 0,     -- acknowledged tries
  deliveries  integer NOT NULL DEFAULT 0,     -- dispatches
  event_seq   integer NOT NULL,               -- the number of the last durable event
  report_no   integer NOT NULL DEFAULT 0,     -- the last report of the current lease
  progress    jsonb,
  preview     text,
  revision    integer NOT NULL DEFAULT 0,     -- of progress and preview
  log_bytes   bigint NOT NULL DEFAULT 0,
  log_dropped bigint NOT NULL DEFAULT 0,      -- lines past the limit of the log
  missed      uuid[] NOT NULL DEFAULT '{}',   -- agents that were given it and did not acknowledge
  started_at  timestamptz,
  CHECK ((state IN ('queued', 'running')) = (agent_id IS NOT NULL)),
  CHECK ((agent_id IS NULL) = (session_no IS NULL))
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX task_live_by_team ON task_live (team_id, task_id);

-- Exactly the tasks that may run now: the queue is this index.
CREATE TABLE ready (
  lane_id integer NOT NULL,
  rank    smallint NOT NULL,
  task_id uuid NOT NULL,
  PRIMARY KEY (lane_id, rank, task_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE later (
  task_id uuid NOT NULL,
  kind    text NOT NULL CHECK (kind IN ('retry', 'expire')),  -- back-off before another attempt | queue timeout
  due_at  timestamptz NOT NULL,
  PRIMARY KEY (task_id, kind)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX later_by_due ON later (due_at);

-- Concurrency keys: tasks without a permit are parked here, not rescanned.
CREATE TABLE blocked (
  team_id uuid NOT NULL,
  key     text NOT NULL,
  rank    smallint NOT NULL,
  task_id uuid NOT NULL,
  PRIMARY KEY (team_id, key, rank, task_id)
);
CREATE TABLE semaphore (
  team_id uuid NOT NULL,
  key     text NOT NULL,
  held    integer NOT NULL DEFAULT 0 CHECK (held >= 0),
  PRIMARY KEY (team_id, key)
) WITH (fillfactor = 50);

-- A slot row holds one lease until its agent lets go or its session dies, whatever the task's state.
CREATE TABLE slot (
  agent_id    uuid NOT NULL,
  no          integer NOT NULL,  -- from 1
  team_id     uuid NOT NULL,
  offer_id    integer NOT NULL,
  open        boolean NOT NULL,  -- takes new work
  session_no  integer NOT NULL,
  task_id     uuid,
  lease_no    integer,
  attempt     integer,           -- the try that this lease is for
  lane_id     integer,           -- of the task that it holds or held last: who holds how many is counted from here
  since       timestamptz,
  acked_at    timestamptz,
  deadline_at timestamptz,
  PRIMARY KEY (agent_id, no),
  CHECK ((task_id IS NULL) = (lease_no IS NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX slot_free ON slot (team_id, offer_id, no, agent_id) WHERE task_id IS NULL AND open;
CREATE INDEX slot_held ON slot (lane_id) WHERE task_id IS NOT NULL;
-- Of a lease, not of a task: an agent may still hold the lease that timed out while another one runs the task again.
CREATE UNIQUE INDEX slot_of_lease ON slot (task_id, lease_no) WHERE task_id IS NOT NULL;

CREATE TABLE agent_session (
  agent_id      uuid PRIMARY KEY,
  team_id       uuid NOT NULL,
  session_no    integer NOT NULL,
  instance_id   text NOT NULL,
  alive         boolean NOT NULL,
  seen_at       timestamptz NOT NULL,
  left_at       timestamptz,                 -- its connection ended and it has not come back
  replica       text NOT NULL,
  slots         integer NOT NULL,
  misses        integer NOT NULL DEFAULT 0,  -- acknowledgements missed of late
  suspect_until timestamptz                  -- its slots are closed until then
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- Interned and immutable: whether a requirement fits an offer is a pure function of the two ids.
CREATE TABLE requirement (
  id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  team_id uuid NOT NULL,
  labels  text[] NOT NULL,  -- sorted
  UNIQUE (team_id, labels)
);
-- An agent's labels without those that no requirement of the team names.
CREATE TABLE offer (
  id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  team_id uuid NOT NULL,
  labels  text[] NOT NULL,  -- sorted
  UNIQUE (team_id, labels)
);
CREATE TABLE lane (
  id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  team_id        uuid NOT NULL,
  requirement_id integer NOT NULL,
  submitter_id   uuid NOT NULL,
  UNIQUE (team_id, requirement_id, submitter_id)
);
CREATE TRIGGER requirement_is_written_once BEFORE UPDATE OR DELETE ON requirement
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER offer_is_written_once BEFORE UPDATE OR DELETE ON offer
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER lane_is_written_once BEFORE UPDATE OR DELETE ON lane
  FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What a keyed submit made, for 48 h; a loop deletes the rest.
CREATE TABLE idempotency (
  team_id uuid NOT NULL,
  key     text NOT NULL,
  task_id uuid NOT NULL,
  hash    bytea NOT NULL,
  at      timestamptz NOT NULL,
  PRIMARY KEY (team_id, key)
);

-- Loops without a leader: whoever moves `ran_at` first does the round.
CREATE TABLE duty (
  name     text PRIMARY KEY,
  ran_at   timestamptz NOT NULL,
  floor_at timestamptz NOT NULL
) WITH (fillfactor = 40);

-- Outbox rows are written only for teams and kinds (webhook, notification) that someone listens to.
CREATE TABLE listener (
  team_id uuid NOT NULL,
  kind    text NOT NULL,
  PRIMARY KEY (team_id, kind)
);
CREATE TABLE outbox (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  team_id uuid NOT NULL,
  task_id uuid NOT NULL,
  seq     integer NOT NULL,
  kind    text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- Grows when the server's timeline does: a fail-over may have lost events, so cursors of the old epoch are void.
CREATE TABLE log_epoch (
  one      boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch    integer NOT NULL,
  timeline integer NOT NULL
);
INSERT INTO log_epoch (epoch, timeline) VALUES (1, 0);

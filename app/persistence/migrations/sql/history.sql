-- History: insert-only, no foreign keys, never vacuumed for updates.

CREATE TABLE task (
  id            uuid PRIMARY KEY,
  team_id       uuid NOT NULL,
  workflow_id   uuid NOT NULL,
  version       integer NOT NULL,
  submitter_id  uuid NOT NULL,
  credential_id uuid,
  lane_id       integer NOT NULL,
  priority      smallint NOT NULL CHECK (priority BETWEEN -100 AND 100),
  tags          text[] NOT NULL,
  params        jsonb NOT NULL,
  timeout       double precision NOT NULL,  -- seconds of execution, 0: none
  queue_timeout double precision,           -- seconds from the submit, null: none
  retry_max     smallint NOT NULL,
  retry_on      text[] NOT NULL,
  retry_of      uuid,
  created_at    timestamptz NOT NULL
) WITH (toast_tuple_target = 256);
CREATE INDEX task_by_team ON task (team_id, id);
CREATE INDEX task_by_workflow ON task (team_id, workflow_id, id);
CREATE INDEX task_by_submitter ON task (team_id, submitter_id, id);
-- The last parameters that someone ran a workflow with, however much else was run since.
CREATE INDEX task_by_workflow_and_submitter ON task (team_id, workflow_id, submitter_id, id);

-- "A task ends exactly once, for ever" is this primary key.
CREATE TABLE task_end (
  task_id     uuid PRIMARY KEY,
  team_id     uuid NOT NULL,
  state       text NOT NULL CHECK (state IN ('completed', 'failed', 'cancelled')),
  reason      text,
  lease_no    integer NOT NULL,
  event_seq   integer NOT NULL,  -- the number of its last event: the log is closed
  attempts    integer NOT NULL,
  agent_id    uuid,              -- of the last attempt
  started_at  timestamptz,       -- of the last attempt
  ended_at    timestamptz NOT NULL,
  error       jsonb,
  result      jsonb,
  progress    jsonb,
  preview     text,
  revision    integer NOT NULL
);
CREATE INDEX task_end_by_state ON task_end (team_id, state, task_id);

-- Written once, when the attempt ends.
CREATE TABLE attempt (
  task_id    uuid NOT NULL,
  no         integer NOT NULL,
  team_id    uuid NOT NULL,
  lease_no   integer NOT NULL,
  agent_id   uuid NOT NULL,
  started_at timestamptz NOT NULL,
  ended_at   timestamptz NOT NULL,
  outcome    text NOT NULL CHECK (outcome IN ('completed', 'failed', 'cancelled', 'timed_out', 'agent_lost')),
  reason     text,
  error      jsonb,
  reported   boolean NOT NULL DEFAULT false,  -- its agent said so, and gets the same answer again
  PRIMARY KEY (task_id, no)
);
CREATE INDEX attempt_by_agent ON attempt (agent_id, started_at);

-- All events of a task lie in the partition of its own week, since a task's id carries the time of its submit.
CREATE TABLE task_event (
  task_id uuid NOT NULL,
  seq     integer NOT NULL,
  at      timestamptz NOT NULL,
  kind    text NOT NULL,
  body    jsonb NOT NULL,
  PRIMARY KEY (task_id, seq)
) PARTITION BY RANGE (task_id);
-- Takes what no week was made for, so that a submit never fails for it.
CREATE TABLE task_event_default PARTITION OF task_event DEFAULT;

CREATE TABLE task_tag (
  team_id uuid NOT NULL,
  tag     text NOT NULL,
  task_id uuid NOT NULL,
  PRIMARY KEY (team_id, tag, task_id)
);

-- Weeks from the last one to `ahead` from now. Returns the names of those it made. A week whose events already lie in
-- the default partition stays there. Runs with the rights of its owner: the server's login may not make tables.
CREATE FUNCTION make_event_partitions(ahead integer) RETURNS SETOF text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
  AS $$
DECLARE
  monday timestamptz;
  name text;
  low uuid;
  high uuid;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('runyard'), hashtext('event partitions'));
  FOR week IN -1 .. ahead LOOP
    monday := date_trunc('week', app_now(), 'UTC') + week * interval '7 days';
    name := 'task_event_' || to_char(monday AT TIME ZONE 'UTC', 'IYYY"w"IW');
    low := uuid_floor(monday);
    high := uuid_floor(monday + interval '7 days');
    CONTINUE WHEN to_regclass(name) IS NOT NULL;
    CONTINUE WHEN EXISTS (SELECT FROM task_event_default WHERE task_id >= low AND task_id < high);
    EXECUTE format('CREATE TABLE %I (LIKE task_event INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE task_event ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, low, high);
    RETURN NEXT name;
  END LOOP;
END
$$;
SELECT make_event_partitions(8);

CREATE TRIGGER task_is_written_once BEFORE UPDATE OR DELETE ON task
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER task_end_is_for_ever BEFORE UPDATE OR DELETE ON task_end
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER attempt_is_written_once BEFORE UPDATE OR DELETE ON attempt
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER task_event_is_written_once BEFORE UPDATE OR DELETE ON task_event
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER task_tag_is_written_once BEFORE UPDATE OR DELETE ON task_tag
  FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- The last 20 lines of an attempt's log, `own` after those that are stored, cut at 8 KiB; what Task.error shows.
CREATE FUNCTION last_log_lines(task uuid, attempt integer, own jsonb) RETURNS jsonb
  LANGUAGE sql STABLE
  AS $$
WITH chunk AS (
  SELECT seq, body FROM task_event
  WHERE task_id = task AND kind = 'log' AND body->'attempt' = to_jsonb(attempt) ORDER BY seq DESC LIMIT 20
), line AS (
  SELECT chunk.seq, l.no, l.text FROM chunk, jsonb_array_elements_text(chunk.body->'lines') WITH ORDINALITY l(text, no)
  UNION ALL
  SELECT 2147483647, l.no, l.text FROM jsonb_array_elements_text(own) WITH ORDINALITY l(text, no)
), last AS (
  SELECT seq, no, text, sum(octet_length(text)) OVER (ORDER BY seq DESC, no DESC) AS bytes
  FROM line ORDER BY seq DESC, no DESC LIMIT 20
)
SELECT coalesce(jsonb_agg(text ORDER BY seq, no), '[]') FROM last WHERE bytes <= 8192
$$;

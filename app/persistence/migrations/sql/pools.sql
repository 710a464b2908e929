-- Pools start agents by themselves. A launch is one agent that a pool has asked for, from the wish to its end: whatever
-- dies between two steps, the row says what is still to be done.
CREATE TABLE pool (
  id           uuid PRIMARY KEY DEFAULT uuidv7(),
  team_id      uuid NOT NULL,
  name         text NOT NULL,
  labels       text[] NOT NULL,            -- sorted; what its agents offer
  min_agents   integer NOT NULL CHECK (min_agents >= 0),
  max_agents   integer NOT NULL CHECK (max_agents >= 1 AND max_agents >= min_agents),
  slots        integer NOT NULL CHECK (slots >= 1),
  provisioner  text NOT NULL CHECK (provisioner IN ('local', 'kubernetes')),
  settings     jsonb NOT NULL,
  idle         double precision NOT NULL,  -- seconds without work after which an agent above the minimum goes
  deadline     double precision NOT NULL,  -- seconds from the wish to the agent's connection
  enabled      boolean NOT NULL,
  failures     integer NOT NULL DEFAULT 0, -- launches in a row that came to nothing
  rests_until  timestamptz,                -- after a failure nothing is started until then
  trouble      text,                       -- what the last one failed of; null since one has connected
  made_by_id   uuid NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT app_now(),
  updated_at   timestamptz NOT NULL DEFAULT app_now(),
  removed_at   timestamptz
);
CREATE UNIQUE INDEX pool_by_name ON pool (team_id, name) WHERE removed_at IS NULL;
CREATE INDEX pool_by_team ON pool (team_id, id) WHERE removed_at IS NULL;

CREATE TABLE launch (
  id            uuid PRIMARY KEY DEFAULT uuidv7(),
  team_id       uuid NOT NULL,
  pool_id       uuid NOT NULL,
  provisioner   text NOT NULL,
  agent_name    text NOT NULL,
  state         text NOT NULL
    CHECK (state IN ('requested', 'starting', 'running', 'draining', 'stopping', 'ended', 'failed')),
  credential_id uuid,                       -- its key, revoked before its end
  reference     text,                       -- what its provisioner calls it
  agent_id      uuid,                       -- who it became
  error         text,
  due_at        timestamptz NOT NULL,       -- until when it is to be connected, or gone after a drain
  replica       text,                       -- who claimed it last; the processes of `local` end with that one
  claim_no      integer NOT NULL DEFAULT 0, -- grows with each claim: what an older one found is not written
  claimed_until timestamptz,
  created_at    timestamptz NOT NULL DEFAULT app_now(),
  running_at    timestamptz,
  ended_at      timestamptz,
  CHECK ((state IN ('ended', 'failed')) = (ended_at IS NOT NULL))
);
CREATE INDEX launch_by_pool ON launch (pool_id, id);
CREATE INDEX launch_living ON launch (team_id, pool_id) WHERE ended_at IS NULL;
CREATE INDEX launch_ended ON launch (ended_at) WHERE ended_at IS NOT NULL;

-- The tasks that are `provisioning`, each with the launch that was made for it, and how many came to nothing before.
CREATE TABLE provision (
  task_id   uuid PRIMARY KEY,
  team_id   uuid NOT NULL,
  launch_id uuid,
  tries     integer NOT NULL DEFAULT 0
);
CREATE INDEX provision_by_launch ON provision (launch_id) WHERE launch_id IS NOT NULL;

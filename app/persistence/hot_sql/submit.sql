-- $1..$22: one array for each field of the items. Returns one row for each item.
WITH now AS MATERIALIZED (SELECT app_now() AS at),
i AS MATERIALIZED (
  SELECT uuidv7() AS id, t.* FROM unnest(
    $1::int[], $2::uuid[], $3::uuid[], $4::int[], $5::bool[], $6::int[], $7::uuid[], $8::uuid[], $9::smallint[],
    $10::jsonb[], $11::jsonb[], $12::float8[], $13::float8[], $14::smallint[], $15::jsonb[], $16::uuid[], $17::text[],
    $18::bytea[], $19::bool[], $20::text[], $21::uuid[], $22::text[]
  ) AS t(n, team, workflow, version, pinned, lane, submitter, credential, rank, tags, params, timeout, queue_timeout,
    retry_max, retry_on, retry_of, key, hash, own_lane, concurrency_key,
    key_id, slug)
  ORDER BY t.n
),
c AS MATERIALIZED (  -- checked: the caller's version and slug may be cached ones
  SELECT i.*, w.id IS NOT NULL AS known, (i.pinned OR w.version = i.version) AND w.own_lanes = i.own_lane
    AND (i.slug IS NULL OR w.slug = i.slug) AS current
  FROM i LEFT JOIN workflow w ON w.id = i.workflow AND w.team_id = i.team AND w.active AND w.archived_at IS NULL
),
k AS (
  INSERT INTO idempotency (team_id, key, task_id, hash, at)
  SELECT team, key, id, hash, now.at FROM c, now WHERE known AND current AND key IS NOT NULL ORDER BY team, key
  ON CONFLICT DO NOTHING RETURNING task_id
),
a AS MATERIALIZED (
  SELECT c.*, p.parked, p.parked OR EXISTS (SELECT FROM ready r WHERE r.lane_id = c.lane AND r.rank <= c.rank) AS behind
  FROM c CROSS JOIN LATERAL (  -- behind those that wait for the same key: whoever stores it here looks again afterwards
    SELECT c.key_id IS NOT NULL AND EXISTS (SELECT FROM blocked b WHERE b.team_id = c.team AND b.key_id = c.key_id
      AND b.lane_id = c.lane AND b.rank <= c.rank) AS parked
  ) p WHERE known AND current AND (key IS NULL OR id IN (SELECT task_id FROM k))
),
t AS (
  INSERT INTO task (id, team_id, workflow_id, version, submitter_id, credential_id, lane_id, priority, tags, params,
    timeout, queue_timeout, retry_max, retry_on, retry_of, created_at, concurrency_key)
  SELECT id, team, workflow, version, submitter, credential, lane, -rank,
    ARRAY(SELECT jsonb_array_elements_text(tags)), params, timeout, queue_timeout, retry_max,
    ARRAY(SELECT jsonb_array_elements_text(retry_on)), retry_of, now.at, concurrency_key
  FROM a, now
),
g AS (
  INSERT INTO task_tag (team_id, tag, task_id)
  SELECT DISTINCT team, tag, id FROM a, jsonb_array_elements_text(tags) AS tag
),
l AS (
  INSERT INTO task_live (task_id, team_id, state, lane_id, rank, event_seq, key_id)
  SELECT id, team, CASE WHEN behind THEN 'waiting' ELSE 'pending' END, lane, rank, 1 + behind::int, key_id FROM a
),
r AS (INSERT INTO ready (lane_id, rank, task_id, key_id) SELECT lane, rank, id, key_id FROM a WHERE NOT parked),
b AS (
  INSERT INTO blocked (team_id, key_id, lane_id, rank, task_id) SELECT team, key_id, lane, rank, id FROM a WHERE parked
),
q AS (
  INSERT INTO later (task_id, kind, due_at)
  SELECT id, 'expire', now.at + make_interval(secs => queue_timeout) FROM a, now WHERE queue_timeout IS NOT NULL
),
s AS MATERIALIZED (
  SELECT id, team, 1 AS seq, '{"v": 1, "from": null, "state": "pending", "reason": null, "attempt": 0, "agent": null}'::jsonb AS body
  FROM a
  UNION ALL
  SELECT id, team, 2, '{"v": 1, "from": "pending", "state": "waiting", "reason": null, "attempt": 0, "agent": null}'::jsonb
  FROM a WHERE behind
),
e AS (INSERT INTO task_event (task_id, seq, at, kind, body) SELECT id, seq, now.at, 'status', body FROM s, now),
o AS (
  INSERT INTO outbox (team_id, task_id, seq, kind)
  SELECT s.team, s.id, s.seq, li.kind FROM s JOIN listener li ON li.team_id = s.team
)
SELECT c.n, c.known, c.current, a.id AS task_id, a.behind, a.parked, now.at
FROM c CROSS JOIN now LEFT JOIN a ON a.n = c.n ORDER BY c.n

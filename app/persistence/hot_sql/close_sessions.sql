-- $1: agents whose session is over; $2: agents that missed an acknowledgement; $3, $4: their closure, base and cap (s).
WITH now AS MATERIALIZED (SELECT app_now() AS at),
s AS (
  UPDATE agent_session s SET alive = alive AND agent_id <> ALL($1::uuid[]),
    session_no = session_no + (agent_id = ANY($1::uuid[]))::int,
    misses = CASE WHEN agent_id <> ALL($2::uuid[]) THEN misses
      WHEN suspect_until > now.at - make_interval(secs => $4::float8) THEN misses + 1 ELSE 1 END,
    suspect_until = CASE WHEN agent_id <> ALL($2::uuid[]) THEN suspect_until
      ELSE now.at + make_interval(secs => least($4::float8, $3::float8 * 2 ^ least(misses, 30))) END
  FROM now WHERE agent_id = ANY($1::uuid[] || $2::uuid[])
)
UPDATE slot SET open = false WHERE agent_id = ANY($1::uuid[] || $2::uuid[]) AND open

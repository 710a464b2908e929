-- $1..$3: signs of life, seconds ago, each session once. A session that is being changed just now misses this sign alone,
-- and what is said of it is what it was before: one that a standing replica has locked must not keep all others silent.
-- A sign from before the end of the connection does not say that it is back.
WITH i AS (SELECT * FROM unnest($1::uuid[], $2::int[], $3::float8[]) AS t(agent_id, session_no, age)),
s AS MATERIALIZED (
  SELECT s.agent_id, app_now() - make_interval(secs => i.age) AS at
  FROM agent_session s JOIN i ON i.agent_id = s.agent_id AND i.session_no = s.session_no
  WHERE s.alive ORDER BY s.agent_id FOR NO KEY UPDATE OF s SKIP LOCKED
),
u AS (
  UPDATE agent_session v SET seen_at = greatest(v.seen_at, s.at), left_at = CASE WHEN v.left_at > s.at THEN v.left_at END
  FROM s WHERE v.agent_id = s.agent_id
)
SELECT s.agent_id, s.session_no FROM agent_session s JOIN i ON i.agent_id = s.agent_id AND i.session_no = s.session_no
WHERE s.alive

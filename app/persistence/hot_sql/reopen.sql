-- Sessions whose closure is over, locked by the statement before, take work again. $1: agents; $2: closure's cap (s).
WITH c AS MATERIALIZED (
  SELECT s.agent_id, s.session_no, s.slots FROM agent_session s JOIN agent a ON a.id = s.agent_id
  WHERE s.agent_id = ANY($1::uuid[]) AND a.pause IS NULL AND s.left_at IS NULL AND s.accepting
),
s AS MATERIALIZED (
  SELECT s.agent_id, s.no FROM c JOIN slot s ON s.agent_id = c.agent_id
  WHERE NOT s.open AND s.no <= c.slots AND s.session_no = c.session_no
  ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
),
u AS (  -- misses are forgotten once the session has behaved for that long
  UPDATE agent_session v SET suspect_until = NULL, misses = 0
  WHERE v.agent_id = ANY($1::uuid[]) AND v.suspect_until < app_now() - make_interval(secs => $2::float8)
)
UPDATE slot v SET open = true FROM s WHERE v.agent_id = s.agent_id AND v.no = s.no RETURNING v.agent_id

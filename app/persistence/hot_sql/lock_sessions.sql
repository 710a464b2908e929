-- $1: agents; $2: lease in seconds. Their sessions, locked, and which of them are over.
SELECT agent_id, alive AND seen_at < app_now() - make_interval(secs => $2::float8) AS silent
FROM agent_session WHERE agent_id = ANY($1::uuid[]) ORDER BY agent_id FOR NO KEY UPDATE

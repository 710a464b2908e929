-- What the keys of $2 (of the teams $1) made; a key past its time ($3 seconds) is forgotten here and may be used anew.
WITH i AS (SELECT * FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS t(team_id, key, n)),
old AS (
  DELETE FROM idempotency d USING i
  WHERE d.team_id = i.team_id AND d.key = i.key AND d.at < app_now() - make_interval(secs => $3::float8)
  RETURNING d.task_id
)
SELECT i.n, k.task_id, k.hash, t.lane_id
FROM i JOIN idempotency k USING (team_id, key) JOIN task t ON t.id = k.task_id
WHERE k.task_id NOT IN (SELECT task_id FROM old)

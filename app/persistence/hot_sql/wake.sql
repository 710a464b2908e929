-- $1: a team; $2: its keys to look at, null: all that tasks are parked for; $3: at most so many of a lane.
-- Of each lane of a key as many as may hold it are in the queue: the best of those that stand there or are parked.
-- Parked rows of tasks that have ended are dropped; each row says where something was moved, and asks for another look.
-- Only what moves is locked: whoever holds one of those moves it too, or takes it away and looks again afterwards.
WITH RECURSIVE every AS (  -- one look into the index for each key
  (SELECT key_id FROM blocked WHERE team_id = $1 AND $2::uuid[] IS NULL ORDER BY key_id LIMIT 1)
  UNION ALL
  SELECT (SELECT b.key_id FROM blocked b WHERE b.team_id = $1 AND b.key_id > every.key_id ORDER BY b.key_id LIMIT 1)
  FROM every WHERE every.key_id IS NOT NULL
),
k AS MATERIALIZED (
  SELECT key_id FROM every WHERE key_id IS NOT NULL UNION SELECT unnest($2::uuid[])
),
free AS MATERIALIZED (
  SELECT k.key_id, least(coalesce(p.most - p.held, $3), $3) AS room FROM k LEFT JOIN permit p ON p.key_id = k.key_id
),
lanes AS (  -- and one for each lane of it
  SELECT key_id, room, (SELECT b.lane_id FROM blocked b WHERE b.team_id = $1 AND b.key_id = free.key_id
    ORDER BY b.lane_id LIMIT 1) AS lane_id
  FROM free WHERE room > 0
  UNION ALL
  SELECT key_id, room, (SELECT b.lane_id FROM blocked b WHERE b.team_id = $1 AND b.key_id = lanes.key_id
    AND b.lane_id > lanes.lane_id ORDER BY b.lane_id LIMIT 1)
  FROM lanes WHERE lane_id IS NOT NULL
),
b AS MATERIALIZED (
  SELECT x.*, l.room FROM lanes l CROSS JOIN LATERAL (
    SELECT b.key_id, b.lane_id, b.rank, b.task_id FROM blocked b
    WHERE b.team_id = $1 AND b.key_id = l.key_id AND b.lane_id = l.lane_id
    ORDER BY b.rank, b.task_id LIMIT l.room
  ) x
),
g AS MATERIALIZED (
  SELECT b.*, row_number() OVER (PARTITION BY b.key_id, b.lane_id ORDER BY b.rank, b.task_id) + (
    SELECT count(*) FROM (SELECT FROM ready r JOIN task_live l ON l.task_id = r.task_id  -- not what has ended there
      WHERE r.key_id = b.key_id AND r.lane_id = b.lane_id AND (r.rank, r.task_id) < (b.rank, b.task_id)
      LIMIT b.room) sooner) AS turn
  FROM b
),
m AS MATERIALIZED (
  SELECT v.key_id, v.lane_id, v.rank, v.task_id FROM g JOIN blocked v
    ON v.team_id = $1 AND v.key_id = g.key_id AND v.lane_id = g.lane_id AND v.rank = g.rank AND v.task_id = g.task_id
  WHERE g.turn <= g.room ORDER BY v.key_id, v.lane_id, v.rank, v.task_id FOR UPDATE OF v SKIP LOCKED
),
d AS (
  DELETE FROM blocked v USING m
  WHERE v.team_id = $1 AND v.key_id = m.key_id AND v.lane_id = m.lane_id AND v.rank = m.rank AND v.task_id = m.task_id
  RETURNING v.key_id, v.lane_id, v.rank, v.task_id
),
r AS (
  INSERT INTO ready (lane_id, rank, task_id, key_id) SELECT lane_id, rank, task_id, key_id FROM d
  WHERE EXISTS (SELECT FROM task_live l WHERE l.task_id = d.task_id) ON CONFLICT DO NOTHING
)
SELECT DISTINCT key_id, lane_id FROM d

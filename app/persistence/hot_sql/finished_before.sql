-- Leases that found nothing to finish: those that had finished before get the same answer again, also where the task
-- was to be tried again and ended in its pause, under the same lease number but later.
WITH i AS (SELECT * FROM unnest($1::int[], $2::uuid[], $3::int[], $4::uuid[]) AS t(n, task_id, lease_no, agent_id))
SELECT i.n, a.team_id, CASE WHEN e.lease_no = i.lease_no AND e.ended_at = a.ended_at THEN e.state ELSE 'waiting' END AS state,
  extract(epoch FROM la.due_at - app_now())::float8 AS again
FROM i
JOIN attempt a ON a.task_id = i.task_id AND a.lease_no = i.lease_no AND a.agent_id = i.agent_id
LEFT JOIN task_end e ON e.task_id = i.task_id
LEFT JOIN later la ON la.task_id = i.task_id AND la.kind = 'retry'
WHERE a.reported

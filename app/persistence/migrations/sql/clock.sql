-- The one clock of every stored time and deadline. clock_timestamp(), not now(): a statement that waited for a lock
-- must see the time after the wait. Tests replace this function by one with an offset.
CREATE FUNCTION app_now() RETURNS timestamptz
  LANGUAGE sql VOLATILE PARALLEL SAFE
  AS 'SELECT clock_timestamp()';

-- The lowest UUID of version 7 of an instant: bounds of partitions and of retention.
CREATE FUNCTION uuid_floor(at timestamptz) RETURNS uuid
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  AS $$SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid$$;

-- History is insert-only. Retention deletes under its own role, or, where the login may not act as it, with the setting
-- runyard.retention switched on in its transaction.
CREATE FUNCTION refuse_change() RETURNS trigger
  LANGUAGE plpgsql
  AS $$
BEGIN
  IF TG_OP = 'DELETE' AND (
    current_user = 'runyard_retention'
    OR (current_setting('runyard.retention', true) = 'on'
      AND NOT coalesce(pg_has_role(session_user, to_regrole('runyard_retention'), 'SET'), false))
  ) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION '% of % is refused: its rows are written once', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'restrict_violation';
END
$$;

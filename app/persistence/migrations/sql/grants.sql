-- What each role may do, where the roles could be made. Tables of later migrations follow by default.
DO $$
BEGIN
  IF to_regrole('runyard_app') IS NULL OR to_regrole('runyard_engine') IS NULL
    OR to_regrole('runyard_retention') IS NULL OR to_regrole('runyard_owner') IS NULL THEN
    RETURN;
  END IF;
  GRANT USAGE ON SCHEMA public TO runyard_owner, runyard_app, runyard_engine, runyard_retention;
  GRANT ALL ON ALL TABLES IN SCHEMA public TO runyard_owner;
  GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO runyard_app, runyard_engine;
  GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA public TO runyard_retention;
  ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO runyard_owner;
  ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO runyard_app, runyard_engine;
  ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, DELETE ON TABLES TO runyard_retention;
  -- History is written by the engine alone, and changed by nobody.
  REVOKE INSERT, UPDATE, DELETE ON task, task_end, attempt, task_event, task_tag FROM runyard_app;
  REVOKE UPDATE, DELETE ON task, task_end, attempt, task_event, task_tag FROM runyard_engine;
END
$$;

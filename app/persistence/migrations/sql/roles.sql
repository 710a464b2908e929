-- Roles belong to the whole server: another database may have made them already, or be making them now.
-- A login that may not make roles goes on under its own name.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['runyard_owner', 'runyard_app', 'runyard_engine', 'runyard_retention'] LOOP
    BEGIN
      IF to_regrole(name) IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      END IF;
      IF NOT pg_has_role(current_user, to_regrole(name), 'SET') THEN  -- a superuser may act as anyone
        EXECUTE format('GRANT %I TO CURRENT_USER', name);
      END IF;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN NULL;
      WHEN insufficient_privilege THEN
        RAISE WARNING 'this login may not make or take the role %: Runyard goes on under the login itself', name;
    END;
  END LOOP;
END
$$;

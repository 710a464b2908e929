-- What the ORM cannot say of its own tables.
CREATE UNIQUE INDEX membership_one_owner ON membership (team_id) WHERE role = 'owner';
CREATE UNIQUE INDEX invitation_one_open ON invitation (team_id, email)
  WHERE accepted_at IS NULL AND withdrawn_at IS NULL;
CREATE INDEX upload_unused ON upload (created_at) WHERE used_at IS NULL;
CREATE INDEX upload_used ON upload (used_at) WHERE used_at IS NOT NULL;
CREATE INDEX upload_condemned ON upload (condemned_at) WHERE condemned_at IS NOT NULL;

CREATE TRIGGER workflow_version_is_frozen BEFORE UPDATE OR DELETE ON workflow_version
  FOR EACH ROW EXECUTE FUNCTION refuse_change();

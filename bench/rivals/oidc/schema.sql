CREATE TABLE oidc_payloads (
  id text NOT NULL,
  type text NOT NULL,
  payload jsonb NOT NULL,
  grant_id text,
  user_code text,
  uid text,
  expires_at timestamptz,
  consumed_at timestamptz,
  PRIMARY KEY (id, type)
);
CREATE INDEX ON oidc_payloads (grant_id);
CREATE UNIQUE INDEX ON oidc_payloads (user_code) WHERE user_code IS NOT NULL;
CREATE UNIQUE INDEX ON oidc_payloads (uid) WHERE uid IS NOT NULL;

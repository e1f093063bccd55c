// node oidc-provider with PostgreSQL, set up for the fastest refresh that it has: a public client, JWT access tokens
// signed with HS256 (opaque ones would cost an INSERT each), no ID token, accounts that need no look-up, and a prepared
// statement for each of the adapter's steps. PORT, DATABASE_URL, POOL_SIZE and WORKERS come from the environment.

import cluster from "node:cluster";
import { createSecretKey, generateKeyPairSync, randomBytes } from "node:crypto";

import { Provider } from "oidc-provider";
import pg from "pg";

const { PORT, DATABASE_URL, POOL_SIZE = "10", WORKERS = "1" } = process.env;
const RESOURCE = "https://api.example.com";

function serve() {
  const pool = new pg.Pool({ connectionString: DATABASE_URL, max: Number(POOL_SIZE) });
  const run = async (name, text, ...values) => (await pool.query({ name, text, values })).rows[0];

  // The contract of the adapter and the shape of the table are those of oidc-provider's own examples.
  class Adapter {
    constructor(type) {
      this.type = type;
    }

    async upsert(id, payload, expiresIn) {
      await run(
        "upsert",
        `INSERT INTO oidc_payloads (id, type, payload, grant_id, user_code, uid, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id, type) DO UPDATE SET payload = excluded.payload, grant_id = excluded.grant_id,
           user_code = excluded.user_code, uid = excluded.uid, expires_at = excluded.expires_at`,
        id, this.type, payload, payload.grantId, payload.userCode, payload.uid,
        expiresIn ? new Date(Date.now() + expiresIn * 1000) : null,
      );
    }

    async find(id) {
      return found(await run("find", "SELECT payload, consumed_at FROM oidc_payloads WHERE id = $1 AND type = $2", id, this.type));
    }

    async findByUid(uid) {
      return found(await run("find_by_uid", "SELECT payload, consumed_at FROM oidc_payloads WHERE uid = $1 AND type = $2", uid, this.type));
    }

    async findByUserCode(code) {
      return found(await run("find_by_code", "SELECT payload, consumed_at FROM oidc_payloads WHERE user_code = $1 AND type = $2", code, this.type));
    }

    async consume(id) {
      await run("consume", "UPDATE oidc_payloads SET consumed_at = now() WHERE id = $1 AND type = $2", id, this.type);
    }

    async destroy(id) {
      await run("destroy", "DELETE FROM oidc_payloads WHERE id = $1 AND type = $2", id, this.type);
    }

    async revokeByGrantId(grantId) {
      await run("revoke", "DELETE FROM oidc_payloads WHERE grant_id = $1 AND type = $2", grantId, this.type);
    }
  }

  const found = (row) => row && { ...row.payload, ...(row.consumed_at ? { consumed: true } : undefined) };

  const resourceServer = {
    scope: "read",
    accessTokenFormat: "jwt",
    accessTokenTTL: 900,
    jwt: { sign: { alg: "HS256", key: createSecretKey(randomBytes(32)) } },
  };
  const signing = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });

  new Provider(`http://127.0.0.1:${PORT}`, {
    adapter: Adapter,
    clients: [{
      client_id: "bench",
      token_endpoint_auth_method: "none",
      id_token_signed_response_alg: "ES256",
      grant_types: ["authorization_code", "refresh_token"],
      redirect_uris: ["https://app.example.com/callback"],
    }],
    cookies: { keys: [randomBytes(16).toString("hex")] },
    jwks: { keys: [{ ...signing, use: "sig", alg: "ES256" }] },
    findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
    rotateRefreshToken: true,
    ttl: { AccessToken: 900, RefreshToken: 604800, Grant: 2592000 },
    features: {
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => RESOURCE,
        getResourceServerInfo: () => resourceServer,
        useGrantedResource: () => true,
      },
    },
  }).listen(Number(PORT), "127.0.0.1");
}

if (cluster.isPrimary && Number(WORKERS) > 1) {
  for (let i = 0; i < Number(WORKERS); i += 1) cluster.fork();
} else {
  serve();
}

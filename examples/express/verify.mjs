// Verifies access tokens without asking Keyturn: a logout counts when the token expires.

import { createRemoteJWKSet, jwtVerify } from "jose";

const KEYTURN = process.env.KEYTURN ?? "http://127.0.0.1:8000";
const ISSUER = process.env.ISSUER ?? "http://127.0.0.1:8000"; // Keyturn's default, whatever its port

const keys = createRemoteJWKSet(new URL(`${KEYTURN}/.well-known/jwks.json`)); // made once: it keeps the keys

export async function verified(token) {
  const { payload } = await jwtVerify(token, keys, {
    algorithms: ["ES256"],
    typ: "at+jwt",
    issuer: ISSUER,
    audience: ISSUER,
    clockTolerance: 5, // seconds: clocks differ
    requiredClaims: ["sub", "exp", "iat", "jti", "sid", "client_id", "role"],
  });
  return payload;
}

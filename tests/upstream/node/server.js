// node oidc-provider, unmodified, as an issuer that Keyturn has never heard of. Its own development pages sign users in.
// PORT, CERTIFICATE (PEM with key and certificate), CLIENT_ID, CLIENT_SECRET, REDIRECT_URI and BACK_CHANNEL come from the
// environment.

import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { generateKeyPairSync, randomBytes } from "node:crypto";

import { Provider } from "oidc-provider";

const { PORT, CERTIFICATE, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, BACK_CHANNEL } = process.env;

const signing = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" });

const provider = new Provider(`https://127.0.0.1:${PORT}`, {
  clients: [{
    client_id: CLIENT_ID,
    client_secret: CLIENT_SECRET,
    id_token_signed_response_alg: "ES256",
    grant_types: ["authorization_code"],
    redirect_uris: [REDIRECT_URI],
    post_logout_redirect_uris: [REDIRECT_URI],
    backchannel_logout_uri: BACK_CHANNEL,
    backchannel_logout_session_required: true,
  }],
  cookies: { keys: [randomBytes(16).toString("hex")] },
  jwks: { keys: [{ ...signing, use: "sig", alg: "ES256", kid: "first" }] },
  claims: { openid: ["sub"], email: ["email", "email_verified"] },
  conformIdTokenClaims: false, // so that the ID token says the e-mail address, as most issuers let it
  findAccount: (ctx, sub) => ({
    accountId: sub,
    claims: () => ({ sub, email: `${sub}@example.com`, email_verified: true }),
  }),
  pkce: { required: () => false },
  features: { backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  // The provider sends no logout token to a loopback address, unless it is configured to.
  fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
});
for (const event of ["backchannel.success", "backchannel.error", "server_error"]) {
  provider.on(event, (ctx, ...rest) => console.log(event, rest.find((each) => each instanceof Error)?.message ?? ""));
}

const pem = readFileSync(CERTIFICATE);
createServer({ key: pem, cert: pem }, provider.callback()).listen(Number(PORT), "127.0.0.1", () => console.log("listening"));

// A service with a protected route. Keyturn is asked about each request, so a logout counts at once.

import express from "express";

const KEYTURN = process.env.KEYTURN ?? "http://127.0.0.1:8000";

// Lets a request pass that has a good access token, with its claims in `request.user`. A 401 or 403 goes on to the client.
export async function signedIn(request, response, next) {
  let answer;
  try {
    // The address of the client counts if KEYTURN_TRUSTED_PROXIES has this service.
    const authorization = (request.get("Authorization") ?? "").replace(/[^ -~]/g, "?"); // no token has others
    const headers = { Authorization: authorization, "X-Forwarded-For": request.ip ?? "" };
    answer = await fetch(`${KEYTURN}/auth/verify`, { headers, signal: AbortSignal.timeout(5000) });
  } catch {
    return response.set("Retry-After", "1").sendStatus(503); // Keyturn is away: nobody is signed out
  }
  if ([401, 403].includes(answer.status)) {
    return response.set("WWW-Authenticate", answer.headers.get("WWW-Authenticate")).sendStatus(answer.status);
  }
  if (answer.status === 429 || answer.status >= 500) {
    return response.set("Retry-After", answer.headers.get("Retry-After") ?? "1").sendStatus(503);
  }
  // 400, 404: a defect of this service, so 500 and a line in its log
  if (!answer.ok) return next(new Error(`Keyturn refuses the question: ${await answer.text()}`));
  request.user = await answer.json();
  next();
}

const app = express();
app.get("/hello", signedIn, (request, response) => response.json({ hello: request.user.sub }));
app.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");

// A service with a protected route. Keyturn is asked about each request, so a logout counts at once.

import express from "express";

const KEYTURN = process.env.KEYTURN ?? "http://127.0.0.1:8000";

// Lets a request pass that has a good access token, with its claims in `request.user`. Keyturn's refusal goes on to the client.
export async function signedIn(request, response, next) {
  let answer;
  try {
    const headers = { Authorization: request.get("Authorization") ?? "" };
    answer = await fetch(`${KEYTURN}/auth/verify`, { headers, signal: AbortSignal.timeout(5000) });
  } catch {
    return response.set("Retry-After", "1").sendStatus(503); // Keyturn is away: nobody is signed out
  }
  for (const name of ["WWW-Authenticate", "Retry-After"]) {
    if (answer.headers.has(name)) response.set(name, answer.headers.get(name));
  }
  const body = await answer.json();
  if (!answer.ok) return response.status(answer.status).json({ error: body.error });
  request.user = body;
  next();
}

const app = express();
app.get("/hello", signedIn, (request, response) => response.json({ hello: request.user.sub }));
app.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");

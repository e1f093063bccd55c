// Signs in, calls the service, ends the session elsewhere and calls again: one refresh, which is refused, and the client ends.

import { createInterface } from "node:readline/promises";
import { Client } from "../client.mjs";

const KEYTURN = process.env.KEYTURN ?? "http://127.0.0.1:8000";
const SERVICE = process.env.SERVICE ?? "http://127.0.0.1:9000";

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(KEYTURN + path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer;
}

const terminal = createInterface({ input: process.stdin });
const [email, password] = [process.argv[2], (await terminal[Symbol.asyncIterator]().next()).value];
terminal.close();

const tokens = await (await post("/auth/login", { email, password })).json();
const client = new Client(KEYTURN, tokens, (now) => console.log(now === null ? "signed out" : "stored"));
const call = async () => console.log((await client.fetch(`${SERVICE}/hello`)).status);

await call();
await post("/auth/logout", { refresh_token: tokens.refresh_token });
await call();
await call();

// Uses the client that orval makes: `node driver.js URL PASSWORD`. The client has its address from orval.config.cjs.
import { login, logout, me, refresh } from "./keyturn";

async function main(password: string): Promise<void> {
  const first = await login({ email: "admin@localhost", password });
  if (first.status !== 200) throw new Error(first.data.error_description);
  const second = await refresh({ refresh_token: first.data.refresh_token });
  const again = await refresh({ refresh_token: first.data.refresh_token });
  if (second.status !== 200 || again.status !== 200) throw new Error("not refreshed");
  console.log(second.data.refresh_token === again.data.refresh_token ? "same refresh token" : "another");

  const headers = { Authorization: `Bearer ${second.data.access_token}` };
  const mine = await me({ headers });
  console.log(mine.status === 200 ? mine.data.user.email : mine.data.error_description);

  const out = await logout({ refresh_token: second.data.refresh_token });
  console.log(out.status);
  const refusal = await me({ headers });
  if (refusal.status !== 200) console.log(refusal.status, refusal.data.error, refusal.data.reason);
}

const [, password = ""] = process.argv.slice(2);
void main(password);

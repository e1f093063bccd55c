// Uses the client that @hey-api/openapi-ts makes: `node driver.js URL PASSWORD`.
import { login, logout, me, refresh } from "./keyturn";
import { client } from "./keyturn/client.gen";

async function main(baseUrl: string, password: string): Promise<void> {
  client.setConfig({ baseUrl });
  const first = await login({ body: { email: "admin@localhost", password }, throwOnError: true });
  const body = { refresh_token: first.data.refresh_token };
  const second = await refresh({ body, throwOnError: true });
  const again = await refresh({ body, throwOnError: true });
  console.log(second.data.refresh_token === again.data.refresh_token ? "same refresh token" : "another");

  client.setConfig({ auth: () => second.data.access_token });
  const mine = await me({ throwOnError: true });
  console.log(mine.data.user.email);

  const out = await logout();
  console.log(out.response?.status);
  const refusal = await me();
  console.log(refusal.response?.status, refusal.error?.error, refusal.error?.reason);
}

const [baseUrl = "", password = ""] = process.argv.slice(2);
void main(baseUrl, password);

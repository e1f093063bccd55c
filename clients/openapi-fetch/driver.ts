// Uses openapi-fetch with the types that openapi-typescript makes: `node driver.js URL PASSWORD`.
import createClient from "openapi-fetch";
import type { paths } from "./schema";

async function main(baseUrl: string, password: string): Promise<void> {
  const keyturn = createClient<paths>({ baseUrl });
  const first = await keyturn.POST("/auth/login", { body: { email: "admin@localhost", password } });
  if (!first.data) throw new Error(first.error.error_description);
  const body = { refresh_token: first.data.refresh_token };
  const second = await keyturn.POST("/auth/refresh", { body });
  const again = await keyturn.POST("/auth/refresh", { body });
  if (!second.data || !again.data) throw new Error(second.error?.error_description);
  console.log(second.data.refresh_token === again.data.refresh_token ? "same refresh token" : "another");

  const headers = { Authorization: `Bearer ${second.data.access_token}` };
  const mine = await keyturn.GET("/auth/me", { headers });
  console.log(mine.data?.user.email);

  const out = await keyturn.POST("/auth/logout", { headers });
  console.log(out.response.status);
  const refusal = await keyturn.GET("/auth/me", { headers });
  console.log(refusal.response.status, refusal.error?.error, refusal.error?.reason);
}

const [baseUrl = "", password = ""] = process.argv.slice(2);
void main(baseUrl, password);

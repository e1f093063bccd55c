// Keyturn's own API from a page in mode `split`: one refresh for all calls that meet a 401, and each call twice at most.
import createClient, { type Middleware } from "openapi-fetch";
import type { paths } from "./schema";

export function pageClient(baseUrl: string) {
  const bare = createClient<paths>({ baseUrl, credentials: "include" }); // a refresh meets no middleware
  let accessToken: string | undefined; // in memory, in no storage
  let refreshing: Promise<void> | undefined;
  const sent = new Map<string, Request>();

  async function renewed(): Promise<void> {
    const { data, response } = await bare.POST("/auth/refresh", { body: { mode: "split" } });
    if (data) accessToken = data.access_token;
    else if ([400, 401].includes(response.status)) accessToken = undefined; // over: show the login
    else throw new Error(`try again: ${response.status}`); // 429, 503: still signed in
  }

  const refresh = () => (refreshing ??= renewed().finally(() => (refreshing = undefined)));

  const refreshOnce: Middleware = {
    onRequest({ request, id }) {
      if (accessToken) request.headers.set("Authorization", `Bearer ${accessToken}`);
      sent.set(id, request.clone()); // a body can be read once
    },
    async onResponse({ response, id }) {
      const again = sent.get(id);
      sent.delete(id);
      if (response.status !== 401 || !again?.headers.has("Authorization")) return;
      if (again.headers.get("Authorization") === `Bearer ${accessToken}`) await refresh();
      if (!accessToken) return;
      again.headers.set("Authorization", `Bearer ${accessToken}`);
      return fetch(again);
    },
    onError({ id }) {
      sent.delete(id);
    },
  };

  const keyturn = createClient<paths>({ baseUrl, credentials: "include" });
  keyturn.use(refreshOnce);

  async function login(email: string, password: string): Promise<void> {
    const { data, error } = await bare.POST("/auth/login", { body: { email, password, mode: "split" } });
    if (!data) throw new Error(error.error_description);
    accessToken = data.access_token;
  }

  return { keyturn, login, refresh };
}

// One page, both modes. With cookies there is nothing to do but to call. In split mode the page keeps the access token.

import { Session } from "./session.js";

const $ = (id) => document.getElementById(id);
const say = (text) => ($("said").textContent = text);

const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// Mode `cookie`: the browser sends both cookies, and nginx asks Keyturn, which refreshes on the way.
const cookie = {
  async login(email, password) {
    const answer = await post("/auth/login", { email, password, mode: "cookie" });
    if (!answer.ok) throw new Error((await answer.json()).error_description);
  },
  fetch: (path) => fetch(path),
  async logout() {
    const answer = await post("/auth/logout", { mode: "cookie" });
    if (answer.ok || [400, 401].includes(answer.status)) return; // 400, 401: nobody was signed in, or not any more
    if (answer.status >= 500) throw new Error("Keyturn is away. You are still signed in.");
    throw new Error(`Not logged out (${answer.status}): ${(await answer.json()).error_description}`);
  },
};

// Mode `split`: the access token is in memory, and a refresh sends the cookie that goes to /auth alone.
let tokens = null;
const split = new Session("", (now) => (tokens = now));

const modes = { cookie, split };
const chosen = () => modes[document.querySelector("input[name=mode]:checked").value];

// What a call was answered, and by which session: the browser sends the cookies of mode `cookie` along with every call,
// and a call with an access token of its own counts for that one. 401: sign in. 503: nothing is lost, so try again.
async function call() {
  const answer = await chosen().fetch("/hello");
  const mode = chosen() === split && tokens ? "split" : "cookie";
  if (answer.ok) return `hello ${(await answer.json()).hello} (by the session of mode ${mode})`;
  return answer.status === 401 ? "You are not signed in." : `No answer now (${answer.status}). You are still signed in.`;
}

// Of both modes: a session that is left would answer the next call.
async function logout() {
  await Promise.all([cookie.logout(), split.logout()]);
  return "Logged out.";
}

async function attempt(act) {
  say("…");
  try {
    say(await act());
  } catch (error) {
    say(error.message);
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await chosen().login($("email").value, $("password").value, true);
    $("password").value = "";
    return "Signed in.";
  });
});
$("hello").addEventListener("click", () => attempt(call));
$("logout").addEventListener("click", () => attempt(logout));
attempt(async () => (await split.resume(), "Ready."));
